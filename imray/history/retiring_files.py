"""Deleting files of the table's runs that no version has any more, or none ever had.

Shares with `imray.history.retiring` when something may go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from imray.history.layout import run_prefix
from imray.history.retiring import SWEEP_S, Deleting, LiveFiles
from imray.history.snapshot import TableSnapshot


@dataclass(frozen=True)
class _Orphan:
    files: frozenset[str]
    since_s: float
    wait_s: float
    version: int


class FileDeleter:
    """Deletes files of a shard's runs that are not live any more, or never were.

    Of a file that no commit names one cannot tell whether a merge still works on it. A merge that lives adds a file to
    its run now and then; and before such a file goes, what is unfinished is shut out of the table, so that no commit
    can name it afterwards."""

    def __init__(self, shared: Deleting, shard: int, live: LiveFiles, shut_out: Callable[[int], TableSnapshot]) -> None:
        """`shut_out` makes void what is unfinished of a shard: the table after that."""
        self._shared = shared
        self._store = shared.store
        self._shard = shard
        self._live = live
        self._shut_out = shut_out
        self._before: frozenset[str] = frozenset()
        self._replaced: dict[str, tuple[int, float]] = {}
        """By name: from which version on it is not live, and since when that is known."""
        self._orphans: dict[str, _Orphan] = {}
        """By run: files that no commit names."""
        self._doomed: deque[str] = deque()
        """Orphans that no commit can name any more."""
        self._is_new = True
        self._sweep_at = shared.monotonic_s()
        self.deleted = 0

    def step(self, snapshot: TableSnapshot) -> bool:
        """One piece of work; True: look again at once. CorruptError: a file that the table names is not there."""
        self._see(snapshot)
        now = self._shared.monotonic_s()
        read_s_max = self._shared.settings.read_s_max
        ripe = [(name, version) for name, (version, since) in self._replaced.items() if now - since >= read_s_max]
        if ripe and not self._doomed:
            self._doomed.extend(self._not_pinned(ripe))
        if self._doomed:
            self._live.confirm(snapshot, self._shard)
            self._shared.table.make_durable()  # whoever replaced them may have died before that was
            before = list(self._doomed)
            self.deleted += self._shared.delete(self._doomed)
            for name in before[: len(before) - len(self._doomed)]:
                self._replaced.pop(name, None)
            return bool(self._doomed)
        if self._ripe_orphans():
            self._sweep(snapshot)  # a merge that lives may have added to one since
            if self._ripe_orphans():
                self._doom(self._shut_out(self._shard))
                return True
        if now >= self._sweep_at:
            self._sweep_at = now + min(SWEEP_S, self._shared.settings.orphan_s)
            self._sweep(snapshot)
        return False

    def note_replaced(self, names: Iterable[str], version: int) -> None:
        """These are not live any more, from a version on; they may have been for so short that no step saw them."""
        now = self._shared.monotonic_s()
        for name in names:
            self._replaced.setdefault(name, (version, now))

    def sweep_soon(self) -> None:
        """As `SegmentDeleter.sweep_soon`."""
        self._sweep_at = self._shared.monotonic_s()

    def ripe_in_s(self) -> float | None:
        """As `SegmentDeleter.ripe_in_s`, of replaced files and those that were found first of all."""
        now = self._shared.monotonic_s()
        read_s_max = self._shared.settings.read_s_max
        waits = [since + read_s_max - now for _, since in self._replaced.values()]
        waits += [o.since_s + o.wait_s - now for o in self._orphans.values() if o.wait_s == read_s_max]
        return max(0.0, min(waits)) if waits else None

    def _see(self, snapshot: TableSnapshot) -> None:
        """Note what is not live any more."""
        live = frozenset(f.name for run in snapshot.runs.get(self._shard, ()) for f in run.files)
        now = self._shared.monotonic_s()
        for name in self._before - live:
            self._replaced.setdefault(name, (snapshot.version, now))
        self._before = live

    def _not_pinned(self, files: Iterable[tuple[str, int]]) -> list[str]:
        lowest = self._shared.pins.lowest()
        return sorted(name for name, version in files if lowest is None or version <= lowest)

    def _ripe_orphans(self) -> list[_Orphan]:
        now = self._shared.monotonic_s()
        ripe = [o for o in self._orphans.values() if now - o.since_s >= o.wait_s]
        if not ripe:
            return []
        lowest = self._shared.pins.lowest()
        return [o for o in ripe if lowest is None or o.version <= lowest]

    def _doom(self, snapshot: TableSnapshot) -> None:
        self._see(snapshot)
        for orphan in self._ripe_orphans():
            self._doomed.extend(sorted(orphan.files - self._before))
        self._orphans = {run: o for run, o in self._orphans.items() if not o.files <= {*self._doomed, *self._before}}

    def _sweep(self, snapshot: TableSnapshot) -> None:
        """Look for files that no commit names; what was never given a name goes, too."""
        self._store.sweep()
        settings = self._shared.settings
        wait_s = settings.read_s_max if self._is_new else settings.orphan_s
        self._is_new = False
        found: dict[str, set[str]] = {}
        for name in self._store.list(run_prefix(self._shard)):
            if name not in self._before and name not in self._replaced:
                found.setdefault(_run_of(name), set()).add(name)
        orphans: dict[str, _Orphan] = {}
        for run, names in found.items():
            known = self._orphans.get(run)
            if known is None or known.files != names:
                known = _Orphan(frozenset(names), self._shared.monotonic_s(), wait_s, snapshot.version)
            orphans[run] = known
        self._orphans = orphans


def _run_of(name: str) -> str:
    """The run that a file's name says it belongs to (`imray.history.layout.run_name`)."""
    return name.rsplit("-", 2)[0]
