"""Merging: segments of the log become a sorted run, and runs of one size a larger one.

Owns which rows go into a run, and the proof that they are all rows of what it covers. Owns no commit: until the table
names the files they are nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import pyarrow as pa

from imray.core.errors import CorruptError, InvalidError
from imray.core.log_progress import LogProgress
from imray.history.run_file import write_run
from imray.history.run_streams import merged_tables
from imray.history.segment_rows import note_table, rows_of_segments
from imray.history.snapshot import Covered, Run, RunFile
from imray.history.sorting import sorted_tables
from imray.log.marks import LogEnd
from imray.log.reader import read_log
from imray.log.segment import Segment, segment_name
from imray.log.store import Store
from imray.settings import Settings

MERGE_FANOUT = 8
"""Runs of one tier that become one of the next."""
_DECODE_BYTES = 2 * 1024 * 1024
"""Segments that are decoded at once."""
_STEPS_IN_MEMORY = 8
"""Of `merge_step_bytes_max`, this part is sorted at once where runs are merged: what was sorted and what will be are in
memory beside it, and the file that is being made."""


def merge_segments(
    store: Store,
    shard: int,
    begin: Mapping[int, LogEnd | None],
    cut: Mapping[int, LogEnd],
    settings: Settings,
) -> tuple[list[RunFile], dict[int, LogEnd]]:
    """Make one run of the segments of a shard's logs, of each from where it `begin`s (None: its first segment) up to
    the `cut`, or until `merge_step_bytes_max` of them are read: its files, and where each log that moved stands now.

    CorruptError where a segment does not verify, or the log is another one at the cut."""
    logs = [_LogInput(store, log, begin.get(log), cut[log]) for log in sorted(cut)]
    _read_step(logs, settings.merge_step_bytes_max)
    moved = [log for log in logs if log.bytes]
    if not moved:
        return [], {}
    ends = {log.log: LogEnd.of(log.log, log.progress) for log in moved}
    covers = [Covered(log.log, log.first, log.progress.segment) for log in moved]
    rows = pa.concat_tables([table for log in moved for table in log.take_tables()])
    files = write_run(store, shard, 0, sorted_tables(rows), covers, list(ends.values()), settings)
    return files, ends


class _LogInput:
    """One log that is read up to the cut."""

    def __init__(self, store: Store, log: int, begin: LogEnd | None, cut: LogEnd) -> None:
        self.log = log
        self.progress = begin.progress() if begin is not None else LogProgress()
        self.first = self.progress.segment + 1
        self.bytes = 0
        """Of the segments that were read."""
        self._tables: list[pa.Table] = []
        self._segments: list[Segment] = []
        """Not decoded yet."""
        self._waiting_bytes = 0
        self._cut = cut
        self._rest = read_log(store, log, self.progress.copy(), last=cut.segment)
        self._check_cut(self.progress.segment, self.progress.digest)

    def read(self) -> bool:
        """One more segment; False: the cut is reached."""
        if self.progress.segment >= self._cut.segment:
            return False
        segment = next(self._rest, None)
        if segment is None:
            name = segment_name(self.log, self._cut.segment)
            what = f"it is the cut, but after segment {self.progress.segment} comes {self.progress.following}"
            raise CorruptError(name, "the whole file", what)
        self._follow(segment)
        self._segments.append(segment)
        self._waiting_bytes += len(segment.data)
        if self._waiting_bytes >= _DECODE_BYTES:
            self._decode()
        self.bytes += len(segment.data)
        return True

    def take_tables(self) -> list[pa.Table]:
        """All rows that were read, those that stand for segments among them; they are not kept here."""
        self._decode()
        tables = self._tables
        self._tables = []
        return tables

    def _decode(self) -> None:
        # segments are let go of as early as can be: memory that is used again costs much less than new memory
        if self._segments:
            self._tables += [note_table(self._segments), rows_of_segments(self._segments)]
            self._segments = []
            self._waiting_bytes = 0

    def _follow(self, segment: Segment) -> None:
        meta = segment.meta
        try:
            self.progress.advance(meta.segment, meta.epoch, segment.digest, meta.fence)
        except InvalidError as e:
            raise CorruptError(segment.name, "metadata", str(e)) from e
        self.progress.sequencer = max(self.progress.sequencer, meta.sequencer)
        self._check_cut(meta.segment, segment.digest)

    def _check_cut(self, segment: int, digest: bytes) -> None:
        """CorruptError where this is the cut's segment, and another one than it names."""
        if segment == self._cut.segment and digest.hex() != self._cut.digest:
            what = f"digest is {digest.hex()}, the checkpoint that names the cut says {self._cut.digest}"
            raise CorruptError(segment_name(self.log, segment), "the whole file", what)


def _read_step(logs: Sequence[_LogInput], bytes_max: int) -> None:
    """Read segments, always of the log of which the fewest bytes were read, until there are `bytes_max` or no more."""
    waiting = [(0, log.log, log) for log in logs]
    total = 0
    while waiting and total < bytes_max:
        before, number, log = heapq.heappop(waiting)
        if log.read():
            total += log.bytes - before
            heapq.heappush(waiting, (log.bytes, number, log))


def due(runs: Sequence[Run], fanout: int | None = None) -> slice | None:
    """The runs of a shard that should become one now: the lowest tier of which enough stand side by side, the oldest
    of them. None: nothing is due."""
    count = MERGE_FANOUT if fanout is None else fanout
    found: list[tuple[int, int]] = []
    start = 0
    for i in range(1, len(runs) + 1):
        if i == len(runs) or runs[i].tier != runs[start].tier:
            if i - start >= count:
                found.append((runs[start].tier, start))
            start = i
    if not found:
        return None
    _, first = min(found)
    return slice(first, first + count)


def merge_runs(store: Store, shard: int, runs: Sequence[Run], settings: Settings) -> list[RunFile]:
    """Make one run of several adjacent ones of a shard, a tier above the highest of them: its files.

    Memory is bounded by about `merge_step_bytes_max`, however large the runs are. CorruptError where they do not
    verify."""
    tier = 1 + max(run.tier for run in runs)
    covers = joined_covers(runs)
    newest: dict[int, LogEnd] = {}
    for run in runs:
        for end in run.ends:
            if end.log not in newest or end.segment > newest[end.log].segment:
                newest[end.log] = end
    ends = [newest[log] for log in sorted(newest)]
    return write_run(
        store,
        shard,
        tier,
        merged_tables(store, runs, settings.merge_step_bytes_max // _STEPS_IN_MEMORY),
        covers,
        ends,
        settings,
    )


def joined_covers(runs: Sequence[Run]) -> list[Covered]:
    """What several runs cover, stretches that follow one another as one."""
    joined: list[Covered] = []
    for cover in sorted(c for run in runs for c in run.covers):
        if joined and joined[-1].log == cover.log and joined[-1].last + 1 == cover.first:
            joined[-1] = Covered(cover.log, joined[-1].first, cover.last)
        else:
            joined.append(cover)
    return joined
