"""The errors of the engine, one class for each thing that a caller must do.

Owns the vocabulary. Does not own HTTP: the gateway translates (`api.problems`).
"""

from __future__ import annotations


class ImrayError(Exception):
    """Base of all errors that imray raises on purpose. `str(e)` says what happened and what to do."""


class InvalidError(ImrayError):
    """The input is wrong; nothing was written. The caller must fix it."""


class BusyError(ImrayError):
    """A bounded queue is full; nothing was written. The caller must wait `retry_after_s` seconds and retry."""

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, retry_after_s)
        self.detail = detail
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.detail


class UnavailableError(ImrayError):
    """The outcome is unknown: the message may be durable or not. Retry with the same client_msg_id; it is safe."""


class StaleError(UnavailableError):
    """What this knows of a log is behind what was merged of it and deleted meanwhile: it slept. Nothing may be
    concluded from what it read or wrote; it must begin anew, with the newest checkpoint or the history."""


class FencedError(ImrayError):
    """Another writer owns the log. This incarnation must stop for good; callers retry with the same ids.

    `by_home`: a partition's log was fenced by its home shard, which wants it to be opened anew."""

    def __init__(self, detail: str, by_home: bool = False) -> None:
        super().__init__(detail)
        self.by_home = by_home


class StorageError(ImrayError):
    """The store refused a write (disk full, failed fsync, time-out): whether it landed is unknown.

    The writer that meets it stops; a new incarnation reads the log to find out."""


class DerivedError(ImrayError):
    """A derived file (checkpoint, ids, filter, postings) is missing or does not verify. Never fatal: an older one
    serves, or it is made anew from the log.

    `file` is the name in the store, `check` what is wrong with it."""

    def __init__(self, file: str, check: str) -> None:
        super().__init__(file, check)
        self.file = file
        self.check = check

    def __str__(self) -> str:
        return f"derived file {self.file}: {self.check}"


class CorruptError(ImrayError):
    """Published bytes do not verify. Nothing is served from them; a person must look.

    `file` is the name in the store, `where` the bytes or part of it, `check` which check failed."""

    def __init__(self, file: str, where: str, check: str) -> None:
        super().__init__(file, where, check)
        self.file = file
        self.where = where
        self.check = check

    def __str__(self) -> str:
        return (
            f"corrupt file {self.file} ({self.where}): {self.check}. Nothing is served from it: "
            "restore the file from a replica or a backup, or ask for help before removing anything."
        )
