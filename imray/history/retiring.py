"""Deleting segments of the log that the history has taken over. Files of the table: `imray.history.retiring_files`.

The rules (`docs/history.md` has the argument): a fence is never deleted; a mark is durable before the first delete;
segments go in ascending order. Nothing goes that a reader may still need: times are taken by the clock of who deletes,
from when it saw for itself that something was merged or replaced.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from imray.core.errors import CorruptError
from imray.core.routing import home_of
from imray.history.pins import PinWatch
from imray.history.snapshot import TableSnapshot
from imray.history.table import Table
from imray.log import digest as digests
from imray.log.checkpoint_file import checkpoint_prefix
from imray.log.marks import LogEnd, MergeMark, mark_prefix, marked, newest_mark, put_mark
from imray.log.segment import open_segment, segment_name, segment_number, segment_prefix
from imray.log.store import Store
from imray.settings import Settings

log = logging.getLogger("imray.history")

DELETES_A_STEP = 1000
"""Some 50 ms of a local disk: whoever waits for the next step waits no longer."""
SWEEP_S = 600.0
"""How often folders are listed for what should not be there: a former writer's late puts, runs of merges that died. It
takes seconds where a folder is large, and each such file is rare."""
FENCE_BYTES_MAX = 8192
"""No fence is larger: it has no rows."""
_NO_ROWS = b'"rows":0'
_ENDS_KEPT_MAX = 64
"""Places at which a log may be marked; with more of them, every second one is forgotten."""


@dataclass
class Deleting:
    """What all deleters of one merger share."""

    store: Store
    settings: Settings
    monotonic_s: Callable[[], float]
    pins: PinWatch
    table: Table

    def held(self, version: int) -> bool:
        """Whether a pin holds what was merged or replaced at a version of the table."""
        lowest = self.pins.lowest()
        return lowest is not None and lowest < version

    def delete(self, names: deque[str], may_go: Callable[[str], bool] = lambda _: True) -> int:
        """Delete one name or more, from the left: how many. It stops where the look at the pins is too long ago."""
        until = self.monotonic_s() + self.settings.read_s_max / 2
        gone = 0
        for n in range(min(len(names), DELETES_A_STEP)):
            if n and self.monotonic_s() > until:
                break
            if may_go(names[0]):
                self.store.delete(names[0])
                gone += 1
            names.popleft()
        return gone


class LiveFiles:
    """Which live files were found where the table says: nothing is deleted for the sake of a file that is not there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: set[str] = set()

    def confirm(self, snapshot: TableSnapshot, shard: int) -> None:
        """CorruptError where a live file of the shard is missing."""
        live = {f.name for run in snapshot.runs.get(shard, ()) for f in run.files}
        for name in sorted(live - self._found):
            if not self._store.exists(name):
                raise CorruptError(name, "the whole file", f"version {snapshot.version} of the table names it")
        self._found = live


@dataclass(frozen=True)
class _Merged:
    end: LogEnd
    version: int
    """Of the table, at which it was seen to be merged."""
    seen_s: float


class SegmentDeleter:
    """Marks and deletes the merged segments of one log."""

    def __init__(self, shared: Deleting, number: int, live: LiveFiles) -> None:
        self._shared = shared
        self._table = shared.table
        self._store = shared.store
        self._log = number
        self._live = live
        self._ends: list[_Merged] = []
        self._mark: MergeMark | None = None
        self._opened = False
        self._doomed: deque[str] = deque()
        self._sweep_at = shared.monotonic_s()
        self.fences: set[str] = set()
        """Names of fences up to the mark that were met."""
        self.deleted = 0

    def step(self, snapshot: TableSnapshot, limit: int | None, limit_now: Callable[[], int | None]) -> bool:
        """One piece of work; True: look again at once. `limit`: the last segment that need not be kept for recovery and
        retries (None: all must be). `limit_now` looks whether that is so still: it is asked right before a mark is put.

        CorruptError: the table lacks what a mark says that it has, or a file that it names."""
        if not self._opened:
            self._mark = newest_mark(self._store, self._log)
            if self._mark is not None:
                self._table.check_mark(snapshot, self._mark)
            self._opened = True
        self._see(snapshot)
        if self._doomed:
            return self._delete_some()
        merged = None if limit is None else self._ripe(limit)
        if merged is not None and self._put_mark(snapshot, merged, limit_now):
            self._list_doomed()
            return True
        is_due = self._mark is not None and self._shared.monotonic_s() >= self._sweep_at
        if is_due and self._mark is not None and not self._shared.held(self._mark.version):
            self._list_doomed()
            return bool(self._doomed)
        return False

    def sweep_soon(self) -> None:
        """Have the next step list the folder, whenever it was last listed."""
        self._sweep_at = self._shared.monotonic_s()

    def ripe_in_s(self, limit: int | None) -> float | None:
        """In how many seconds there is more to mark; None: that does not depend on time."""
        now = self._shared.monotonic_s()
        waits = [m.seen_s + self._shared.settings.read_s_max - now for m in self._ends if self._may_mark(m, limit)]
        return max(0.0, min(waits)) if waits else None

    def _see(self, snapshot: TableSnapshot) -> None:
        """Note where the log stands after each run: it can be marked there."""
        home, _ = home_of(self._log)
        now = self._shared.monotonic_s()
        live = {end.segment: end for run in snapshot.runs.get(home, ()) for end in run.ends if end.log == self._log}
        known = {m.end.segment: m for m in self._ends}
        for segment, end in live.items():
            known.setdefault(segment, _Merged(end, snapshot.version, now))
        self._ends = [known[segment] for segment in sorted(known) if segment > self._marked]
        if len(self._ends) > _ENDS_KEPT_MAX:
            self._ends = [m for i, m in enumerate(self._ends) if i % 2 or m.end.segment in live]

    @property
    def _marked(self) -> int:
        return 0 if self._mark is None else self._mark.end.segment

    def _may_mark(self, merged: _Merged, limit: int | None) -> bool:
        return limit is not None and self._marked < merged.end.segment <= limit

    def _ripe(self, limit: int) -> _Merged | None:
        """The highest place up to which everything may go."""
        before = self._shared.monotonic_s() - self._shared.settings.read_s_max
        ripe = [m for m in self._ends if self._may_mark(m, limit) and m.seen_s <= before]
        if not ripe:
            return None
        lowest = self._shared.pins.lowest()
        free = [m for m in ripe if lowest is None or m.version <= lowest]
        return free[-1] if free else None

    def _put_mark(self, snapshot: TableSnapshot, merged: _Merged, limit_now: Callable[[], int | None]) -> bool:
        """False: not, as it relies on a checkpoint that is damaged by now."""
        home, _ = home_of(self._log)
        self._live.confirm(snapshot, home)
        # a merger or a shard may have died between giving a file its name and making that durable
        self._table.make_durable()
        self._store.sync(checkpoint_prefix(home))
        limit = limit_now()
        if limit is None or limit < merged.end.segment:
            return False
        mark = MergeMark(merged.end, merged.version)
        put_mark(self._store, mark)
        self._mark = mark
        return True

    def _list_doomed(self) -> None:
        """What is up to the mark and no fence, in ascending order."""
        if marked(self._store, self._log) < self._marked:
            raise CorruptError(mark_prefix(self._log), "the newest mark", f"it was put for segment {self._marked}")
        self._store.sync(mark_prefix(self._log))
        last = segment_name(self._log, self._marked)
        names = self._store.list(segment_prefix(self._log))
        self._doomed.extend(name for name in names if name <= last and name not in self.fences)
        self._sweep_at = self._shared.monotonic_s() + SWEEP_S

    def _delete_some(self) -> bool:
        if self._mark is None or self._shared.held(self._mark.version):
            self._doomed.clear()
            self.sweep_soon()
            return False
        self.deleted += self._shared.delete(self._doomed, self._may_go)
        return bool(self._doomed)

    def _may_go(self, name: str) -> bool:
        try:
            segment_number(name)
        except CorruptError:
            return False  # a foreign file: whoever reads the log says so
        if is_fence(self._store, name):
            self.fences.add(name)
            return False
        return True


def is_fence(store: Store, name: str) -> bool:
    """Whether a segment is a fence, or so small and damaged that it may be one."""
    end = store.get_range(name, -FENCE_BYTES_MAX, FENCE_BYTES_MAX)
    if end is None or len(end) == FENCE_BYTES_MAX:
        return False
    try:
        digests.verify(end, name)
        # looked for as text first: to read the metadata of each takes ten times as long as all the rest
        return _NO_ROWS in end and open_segment(end, name).meta.rows == 0
    except CorruptError:
        return True
