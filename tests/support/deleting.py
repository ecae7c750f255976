"""Segments that are merged, marked and deleted, as far as the log knows: what they are merged into is not looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from imray.core.log_progress import LogProgress
from imray.log.marks import LogEnd, MergeMark, newest_mark, put_mark
from imray.log.reader import read_log, read_segment
from imray.log.segment import segment_number, segment_prefix
from imray.log.store import Store
from imray.shard.recovery import step
from tests.support.analytics_logs import FastStore


def log_end(store: Store, log: int, last: int | None = None) -> LogEnd:
    """Where a log stands after one of its segments (None: the last)."""
    mark = newest_mark(store, log)
    progress = LogProgress() if mark is None else mark.end.progress()
    for segment in read_log(store, log, progress, last):
        step(progress, segment)
    return LogEnd.of(log, progress)


def mark_and_delete(
    store: Store, log: int, last: int | None = None, fences: bool = False, version: int = 0
) -> list[int]:
    """Put the mark of a log's segments up to one (None: the last), and delete them, but for fences: which."""
    end = log_end(store, log, last)
    put_mark(store, MergeMark(end, version))
    gone = []
    for name in store.list(segment_prefix(log)):
        number = segment_number(name)
        if number <= end.segment and (fences or read_segment(store, log, number).meta.rows):
            store.delete(name)
            gone.append(number)
    return gone


class SleepyStore(FastStore):
    """Its owner falls asleep before its first put into a log's folder: between the end of reading and the fence."""

    def __init__(self, root: Path, log: int, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self._folder = segment_prefix(log)
        self._meanwhile: Callable[[], object] | None = meanwhile

    def wake(self) -> None:
        """What happens while it sleeps happens now."""
        meanwhile = self._meanwhile
        self._meanwhile = None
        if meanwhile is not None:
            meanwhile()

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        if name.startswith(self._folder):
            self.wake()
        return super().put_if_absent(name, parts)
