"""The files that one piece of work puts, and the commit that is to name them: nothing stays of what is given up."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from imray.core.errors import StorageError
from imray.history.snapshot import RunFile, TableSnapshot
from imray.log.store import Store

log = logging.getLogger("imray.history")


class OwnFiles:
    """A store that remembers what was put by way of it; also an `imray.log.store.Store`.

    A context manager: where its block ends with an error, the files go."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names: list[str] = []
        self.writer_id = store.writer_id
        self.puts_at_once = store.puts_at_once
        self.get = store.get
        self.get_range = store.get_range
        self.exists = store.exists
        self.sync = store.sync
        self.sweep = store.sweep
        self.map = store.map
        self.list = store.list
        self.delete = store.delete

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        """As `Store.put_if_absent`."""
        self._names.append(name)  # before: after an error it may be there
        if self._store.put_if_absent(name, parts):
            return True
        self._names.remove(name)
        return False

    def remove(self) -> None:
        """Delete what was put. Where the store refuses, what is left is an orphan."""
        try:
            while self._names:
                self._store.delete(self._names[-1])
                self._names.pop()
        except StorageError as e:
            log.warning("files of a merge that was given up stay for now: %s", e)

    def __enter__(self) -> OwnFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.remove()


@dataclass(frozen=True)
class PreparedCommit:
    """A commit whose files are durable and verified."""

    base: TableSnapshot
    """Read before the first of its files was put."""
    own: OwnFiles
    add: Sequence[RunFile]
    remove: Sequence[str]
    moves: Mapping[int, tuple[int, int]]
    operation: str
