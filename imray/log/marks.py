"""Marks: how far a log was merged into the history, put before the first of its segments is deleted.

Deleting makes put-if-absent forget. A writer that slept since before a segment was deleted finds that name free; so
every writer looks at the marks after its fence, and stops where one is at or above its number.
"""

from __future__ import annotations

import msgspec

from imray.core.errors import CorruptError, StaleError, StorageError
from imray.core.log_progress import LogProgress
from imray.log import digest as digests
from imray.log.store import Store

_MARKS = "merged/"
MARKS_KEPT = 2


class LogEnd(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a log stands after one of its segments: from here it can be read on, and verified against its past."""

    log: int
    segment: int
    epoch: int
    digest: str
    """Hex, of the segment: what the next one names as its predecessor's."""
    epoch_starts: list[tuple[int, int]]
    sequencer: int = 0
    window: int = 1
    following: int = 0
    """As in `LogProgress`; 0: the next number."""

    @classmethod
    def of(cls, log: int, progress: LogProgress) -> LogEnd:
        """Where a log stands."""
        return cls(
            log=log,
            segment=progress.segment,
            epoch=progress.epoch,
            digest=progress.digest.hex(),
            epoch_starts=list(progress.epoch_starts),
            sequencer=progress.sequencer,
            window=progress.window,
            following=0 if progress.following == progress.segment + 1 else progress.following,
        )

    def progress(self) -> LogProgress:
        """The same as what a fold goes on from."""
        return LogProgress(
            segment=self.segment,
            epoch=self.epoch,
            digest=bytes.fromhex(self.digest),
            epoch_starts=list(self.epoch_starts),
            sequencer=self.sequencer,
            window=self.window,
            following=self.following,
        )


class MergeMark(msgspec.Struct, frozen=True):
    """All segments of a log up to `end` are merged, and may be deleted from now on."""

    end: LogEnd
    version: int
    """Of the history's table that has them: a table below it has lost commits."""


def mark_prefix(log: int) -> str:
    """The folder of a log's marks."""
    return f"{_MARKS}log={log:05d}/"


def mark_name(log: int, segment: int) -> str:
    """The name of the mark of a log's last merged segment."""
    return f"{mark_prefix(log)}{segment:020d}.json"


def newest_mark(store: Store, log: int) -> MergeMark | None:
    """The newest mark of a log; None: nothing of it was ever deleted. CorruptError where it does not verify.

    StorageError where marks were replaced again and again while they were being read."""
    for _ in range(10):
        names = store.list(mark_prefix(log))
        if not names:
            return None
        data = store.get(names[-1])
        if data is not None:
            return read_mark(data, names[-1])
    raise StorageError(f"marks of log {log}: they are replaced faster than they can be read")


def marked(store: Store, log: int) -> int:
    """The last segment of a log that may have been deleted, from the marks' names; 0: none. CorruptError for a name
    that is no mark's."""
    names = store.list(mark_prefix(log))
    if not names:
        return 0
    number = names[-1].rsplit("/", 1)[-1].removesuffix(".json")
    if not number.isdecimal() or mark_name(log, int(number)) != names[-1]:
        raise CorruptError(names[-1], "name", "not a mark's name: remove the foreign file")
    return int(number)


def check_not_deleted(store: Store, log: int, segment: int) -> None:
    """StaleError where a segment's name may have been deleted: what is, or is not, there says nothing of the log.

    Asked after the name was looked at, or taken: a mark is durable before the first of its segments goes."""
    last = marked(store, log)
    if last >= segment:
        raise StaleError(
            f"log {log} is merged up to segment {last}, and may be deleted up to there: what was known of it before "
            f"segment {segment} is old"
        )


def marked_logs(store: Store) -> list[int]:
    """The numbers of the logs of which something may have been deleted, ascending."""
    folders = {name.removeprefix(_MARKS).split("/")[0].removeprefix("log=") for name in store.list(_MARKS)}
    return sorted(int(folder) for folder in folders if folder.isdecimal())


def read_mark(data: bytes, name: str) -> MergeMark:
    """A mark's content; CorruptError where it does not verify."""
    digests.verify_json(data, name)
    try:
        mark = msgspec.json.decode(data, type=_File).mark
    except msgspec.DecodeError as e:
        raise CorruptError(name, "the whole file", str(e)) from e
    if mark_name(mark.end.log, mark.end.segment) != name:
        raise CorruptError(
            name, "the whole file", f"it is the mark of segment {mark.end.segment} of log {mark.end.log}"
        )
    return mark


def put_mark(store: Store, mark: MergeMark) -> None:
    """Make a mark durable, and let go of all but the two newest. StorageError where the store refuses."""
    name = mark_name(mark.end.log, mark.end.segment)
    content = digests.seal_json(msgspec.json.encode(_File(digests.BLANK, mark)))
    if not store.put_if_absent(name, [content]):
        there = store.get(name)
        if there is not None:
            read_mark(there, name)  # an earlier try, or another merger's: it says the same of the log
    for old in store.list(mark_prefix(mark.end.log))[:-MARKS_KEPT]:
        store.delete(old)


class _File(msgspec.Struct, frozen=True):
    digest: str
    mark: MergeMark
