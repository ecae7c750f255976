"""Which files of runs were read whole and found sound: remembered while they cannot have changed, over processes too.

Owns the notes `verified/` in the data folder: empty files, named by the run's file and its identity (inode, size,
times), so that a copy, or a file that was written to, is read again. What rots under an unchanged inode is for a scrub.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from analytics.verified import Identity, identity_of
from imray.core.errors import CorruptError, StorageError
from imray.history.run_reader import RunReader
from imray.history.snapshot import RunFile
from imray.log.schema import RecordKind
from imray.log.store import LocalStore

NOTES = "verified/"
_COMPLETE = "-complete"
_BATCH_ROWS = 64 * 1024


class VerifiedRuns:
    """Verifies files of runs. Safe for threads."""

    def __init__(self, data: Path | str, verify: Callable[[RunFile], None] | None = None) -> None:
        self._data = Path(data)
        self._store = LocalStore(data)
        self._verify = verify or RunReader(self._store, 0).verify
        self._known: dict[str, Identity] = {}

    def faults(self, files: Sequence[RunFile]) -> list[CorruptError]:
        """Read what was not read before; what is wrong, in the order of `files`."""
        noted = self._noted()
        new = [f for f in files if not self._is_known(f, noted)]
        with ThreadPoolExecutor(os.cpu_count() or 1, "verify") as pool:
            found = list(pool.map(self._fault, new))
        self._forget(noted, files)
        return [fault for fault in found if fault is not None]

    def check(self, files: Sequence[RunFile]) -> None:
        """CorruptError at the first fault."""
        for fault in self.faults(files):
            raise fault

    def lacking(self, files: Sequence[RunFile]) -> set[str]:
        """The files (their names) in which a message has no sender or no body. Of verified files; what has none is
        noted, too, so that it is read once."""
        noted = self._noted()
        found = set()
        for file in files:
            identity = self._identity(file)
            if identity is None or _note(file, identity) + _COMPLETE in noted:
                continue
            if _is_complete(self._data / file.name):
                self._put(_note(file, identity) + _COMPLETE)
            else:
                found.add(file.name)
        return found

    def path(self, file: RunFile) -> Path:
        """Where a file lies."""
        return self._data / file.name

    def unchanged(self, files: Iterable[RunFile]) -> None:
        """CorruptError where a file is not the one that was verified: what was read between may be wrong."""
        for file in files:
            if self._identity(file) != self._known.get(file.name):
                raise CorruptError(file.name, "the whole file", "it was changed while it was being read")

    def _is_known(self, file: RunFile, noted: set[str]) -> bool:
        identity = self._identity(file)
        if identity is None:
            return False
        if self._known.get(file.name) == identity:
            return True
        if _note(file, identity) not in noted:
            return False
        self._known[file.name] = identity
        return True

    def _fault(self, file: RunFile) -> CorruptError | None:
        identity = self._identity(file)  # first, so that a change during the read is seen as one
        try:
            self._verify(file)
        except CorruptError as e:
            return e
        if identity is None or identity != self._identity(file):
            return CorruptError(file.name, "the whole file", "it was changed while it was being read")
        self._known[file.name] = identity
        self._put(_note(file, identity))
        return None

    def _put(self, note: str) -> None:
        # a folder that we may not write to is audited all the same, only slower the next time
        with contextlib.suppress(StorageError):
            self._store.put_if_absent(NOTES + note, [])

    def _noted(self) -> set[str]:
        with contextlib.suppress(StorageError):
            return {name.removeprefix(NOTES) for name in self._store.list(NOTES)}
        return set()

    def _forget(self, noted: set[str], files: Sequence[RunFile]) -> None:
        """Remove the notes of files that are no part of the history any more, or are others now."""
        live = {_note(f, identity) for f in files if (identity := self._known.get(f.name))}
        with contextlib.suppress(StorageError):
            for name in noted - live - {note + _COMPLETE for note in live}:
                self._store.delete(NOTES + name)

    def _identity(self, file: RunFile) -> Identity | None:
        try:
            return identity_of(os.stat(self._data / file.name))
        except OSError:
            return None


def _note(file: RunFile, identity: Identity) -> str:
    stem = file.name.removesuffix(".parquet").rsplit("/", 1)[-1]
    return "-".join([stem, *(f"{part:x}" for part in identity)])


def _is_complete(path: Path) -> bool:
    """Whether each message of a file has a sender and a body."""
    columns = ("sender", "body")
    file = pq.ParquetFile(path, read_dictionary=["sender"])
    for batch in file.iter_batches(_BATCH_ROWS, columns=["kind", *columns], use_threads=False):
        missing = [batch.column(name).is_null() for name in columns if batch.column(name).null_count]
        is_message = pc.equal(batch.column("kind"), RecordKind.MESSAGE)
        if any(pc.any(pc.and_(one, is_message)).as_py() for one in missing):
            return False
    return True
