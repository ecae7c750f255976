"""A sealed interval made anew: derived files may be lost, the log and the history may not.

What is merged is read from the history's runs, the rest from the log's segments; where a run is damaged, all that is
still in the log is read from there. Owns the way from both to the columns of an interval. Does not own its files
(`imray.log.sealed`). However many ids there are, a million are in memory: those that were read are written as intervals
of their own, which are merged in the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from imray.core.errors import CorruptError, DerivedError, StaleError, UnavailableError
from imray.core.fold import ReadBack
from imray.core.intervals import Interval
from imray.core.routing import log_of, log_position_of
from imray.history.old_rows import OLD_ROW_COLUMNS, ids_of
from imray.history.run_reader import RunReader
from imray.history.snapshot import Run, TableSnapshot
from imray.history.table import Table
from imray.kernels import packing
from imray.kernels.arrays import U64
from imray.log.marks import LogEnd, marked
from imray.log.reader import read_segment
from imray.log.rows import read_back
from imray.log.sealed import (
    POSTINGS_SCHEMA,
    IdsBetween,
    MergedIds,
    SealedInterval,
    conversation_keys,
    draft,
    of_columns,
    remove,
    write_interval,
)
from imray.log.segment import SegmentMeta, segment_prefix
from imray.log.store import Store

_IDS_AT_ONCE = 1 << 20
_CACHE_BYTES = 1 << 20
"""Each group of a run is read once."""
_TRIES = 5
"""Each further one means that segments were merged and deleted, or runs, while they were read: minutes apart."""


@dataclass(frozen=True)
class _Range:
    """Segments of one log that an interval covers."""

    slot: int
    log: int
    first: int
    last: int


def remake(
    store: Store,
    seed: int,
    interval: Interval,
    ends: Mapping[int, int],
    is_wanted: Callable[[], bool] = lambda: True,
) -> SealedInterval:
    """An interval with the same ids, under names of its own, and with the postings of segments that are in the log.

    `ends` are the last segments, by slot, of the partitions' logs that some checkpoint covers: of an interval that does
    not say what it covers of them, all up to there is taken, since an id that two intervals hold does no harm.
    CorruptError where a segment or a run does not verify. DerivedError where they do not hold what the interval says.
    UnavailableError where it is not wanted any more, looked at again and again, or what it reads goes away too fast."""
    partitions = interval.partitions
    if partitions is None:
        partitions = tuple((slot, 1, end) for slot, end in sorted(ends.items()) if slot and end)
    own = _Range(0, interval.shard, interval.first, interval.last)
    ranges = [own, *(_Range(slot, log_of(interval.shard, slot), first, last) for slot, first, last in partitions)]

    def made(source: _Source) -> SealedInterval:
        gathered = _Gathered(store, interval, is_wanted)
        try:
            source.read(ranges, gathered)
            if interval.partitions is not None and gathered.count != interval.ids:
                held = f"it held {interval.ids} ids, and log and history have {gathered.count} there"
                raise DerivedError(interval.ids_names[0], held)
            return gathered.written(partitions)
        finally:
            gathered.close()

    for _ in range(_TRIES):
        try:
            return _of_either(made, lambda by_marks: _Source(store, seed, interval.shard, by_marks), ranges)
        except StaleError:
            continue
    raise UnavailableError("log and history are merged faster than they can be read")


def _of_either(
    made: Callable[[_Source], SealedInterval], source: Callable[[bool], _Source], ranges: Sequence[_Range]
) -> SealedInterval:
    try:
        return made(source(False))
    except CorruptError as e:
        if any(e.file.startswith(segment_prefix(each.log)) for each in ranges):
            raise  # what only the log has
        try:
            return made(source(True))
        except CorruptError:
            raise e from None


class _Gathered:
    """The ids and postings that were read so far."""

    def __init__(self, store: Store, interval: Interval, is_wanted: Callable[[], bool]) -> None:
        self._store = store
        self._interval = interval
        self._is_wanted = is_wanted
        self._ids: list[U64] = []
        self._in_memory = 0
        self._pieces: list[SealedInterval] = []
        self._postings = [POSTINGS_SCHEMA.empty_table()]
        self.count = 0

    def add(self, ids: U64, postings: pa.Table | None = None) -> None:
        """Further ids (COLUMNS, rows), in any order. UnavailableError where nobody wants them any more."""
        if not self._is_wanted():
            raise UnavailableError("the shard does not want it any more")
        self._ids.append(ids)
        self._in_memory += ids.shape[1]
        self.count += ids.shape[1]
        if postings is not None:
            self._postings.append(postings)
        if self._in_memory >= _IDS_AT_ONCE:
            piece = self._draft(self._in_memory, ())
            self._pieces.append(write_interval(self._store, piece, self._source(), POSTINGS_SCHEMA.empty_table()))
            self._ids = []
            self._in_memory = 0

    def _draft(self, ids: int, partitions: tuple[tuple[int, int, int], ...]) -> Interval:
        return draft(self._interval.shard, self._interval.first, self._interval.last, ids, partitions)

    def _source(self) -> IdsBetween:
        return of_columns(np.concatenate([np.empty((packing.COLUMNS, 0), np.uint64), *self._ids], axis=1))

    def written(self, partitions: tuple[tuple[int, int, int], ...]) -> SealedInterval:
        """The interval of all of them."""
        source = self._source()
        if self._pieces:
            source = MergedIds([*(piece.between for piece in self._pieces), source])
        made = self._draft(self.count, partitions)
        return write_interval(self._store, made, source, pa.concat_tables(self._postings))

    def close(self) -> None:
        """Remove what was written on the way."""
        for piece in self._pieces:
            remove(self._store, piece.interval)


class _Source:
    """Log and history of one shard, read into what is gathered."""

    def __init__(self, store: Store, seed: int, shard: int, by_marks: bool) -> None:
        """`by_marks`: of the history only what may be deleted from the logs, and not all that is merged."""
        self._store = store
        self._seed = seed
        self._shard = shard
        self._by_marks = by_marks
        self._table = Table(store)

    def read(self, ranges: Sequence[_Range], gathered: _Gathered) -> None:
        """StaleError where what it reads was merged and deleted meanwhile."""
        taken = {each.log: marked(self._store, each.log) for each in ranges}
        snapshot = TableSnapshot()
        if not self._by_marks or any(each.first <= taken[each.log] for each in ranges):
            snapshot = self._table.snapshot()
            self._check_has(snapshot, ranges, taken)
        if not self._by_marks:
            taken = {log: snapshot.merged.get(log, 0) for log in taken}
        self._read_history(snapshot, ranges, taken, gathered)
        for each in ranges:
            try:
                self._read_log(each, snapshot.end(each.log), taken[each.log], gathered)
            except CorruptError as e:
                if self._taken_now(snapshot, each.log) > taken[each.log]:
                    raise StaleError(f"segments of log {each.log} were merged while they were read") from e
                raise

    def _taken_now(self, snapshot: TableSnapshot, log: int) -> int:
        return marked(self._store, log) if self._by_marks else self._table.snapshot(snapshot).merged.get(log, 0)

    def _check_has(self, snapshot: TableSnapshot, ranges: Sequence[_Range], gone: Mapping[int, int]) -> None:
        for each in ranges:
            last = min(each.last, gone[each.log])
            if each.first <= last and snapshot.merged.get(each.log, 0) < last:
                text = f"segment {last} may be deleted, and is not in"
                raise CorruptError(f"the history of log {each.log}", "its end", text)

    def _read_log(self, each: _Range, merged: LogEnd | None, taken: int, gathered: _Gathered) -> None:
        first = max(each.first, taken + 1)
        if merged is not None and first == merged.segment + 1:
            first = merged.progress().following  # it may be a fence that left names out
        if first > each.last:
            return
        number = self._first(each.log, first)
        while number <= each.last:
            segment = read_segment(self._store, each.log, number)
            if segment.meta.rows:
                log_position = log_position_of(each.slot, number)
                found = read_back(segment.table().combine_chunks(), self._seed)
                ids = _ids_of_segment(found, segment.meta, log_position, self._seed)
                gathered.add(ids, _postings(log_position, found))
            number = segment.meta.fence.following if segment.meta.fence is not None else number + 1

    def _first(self, log: int, number: int) -> int:
        """The first segment of a log at or above a number: a fence just before may have left names out."""
        if number > 1:
            with contextlib.suppress(CorruptError):  # what it says is not needed, unless it was a fence
                before = read_segment(self._store, log, number - 1)
                if before.meta.fence is not None:
                    return before.meta.fence.following
        return number

    def _read_history(
        self, snapshot: TableSnapshot, ranges: Sequence[_Range], taken: Mapping[int, int], gathered: _Gathered
    ) -> None:
        wanted = {r.log: (r.first, min(r.last, taken[r.log])) for r in ranges if r.first <= taken[r.log]}
        if not wanted:
            return
        reader = RunReader(self._store, _CACHE_BYTES)
        for run in _that_cover(snapshot, self._shard, wanted):
            for file in run.files:
                try:
                    for rows in reader.tables(file, OLD_ROW_COLUMNS):
                        gathered.add(ids_of(rows, wanted, self._seed))
                except CorruptError as e:
                    if file.name not in self._table.snapshot(snapshot).files:
                        raise StaleError(f"{file.name} was merged into another run while it was read") from e
                    raise


def _that_cover(snapshot: TableSnapshot, shard: int, wanted: Mapping[int, tuple[int, int]]) -> Iterator[Run]:
    for run in snapshot.runs.get(shard, ()):
        if any(c.log in wanted and c.first <= wanted[c.log][1] and c.last >= wanted[c.log][0] for c in run.covers):
            yield run


def _ids_of_segment(found: ReadBack, meta: SegmentMeta, log_position: int, seed: int) -> U64:
    rows = found.rows
    out = np.empty((packing.COLUMNS, len(rows)), np.uint64)
    out[packing.FP] = rows.fps
    out[packing.ID_LOW : packing.ID_HIGH + 1] = rows.ids.T
    out[packing.CONV] = conversation_keys(rows.names_offsets, rows.names_data, seed)[rows.conv]
    out[packing.SEQ] = found.seq
    out[packing.PAYLOAD] = rows.payload
    out[packing.LOG_POSITION] = log_position
    out[packing.ROW] = found.row
    out[packing.EPOCH] = meta.epoch
    out[packing.SERVER_TS] = np.int64(meta.server_ts).view(np.uint64)
    return out


def _postings(log_position: int, found: ReadBack) -> pa.Table:
    """Which numbers of which conversations a segment settles: runs of messages, and voids."""
    conv = [np.array([v[0] for v in found.voids], np.int64)]
    first = [np.array([v[1] for v in found.voids], np.int64)]
    last = [np.array([v[2] for v in found.voids], np.int64)]
    if len(found.rows.conv):
        order = np.argsort(found.rows.conv, kind="stable")
        starts = np.flatnonzero(np.diff(found.rows.conv[order], prepend=-1))
        conv.append(found.rows.conv[order][starts].astype(np.int64))
        first.append(np.minimum.reduceat(found.seq[order], starts))
        last.append(np.maximum.reduceat(found.seq[order], starts))
    offsets = found.rows.names_offsets
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(found.rows.names_data)]
    names = pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)
    which = np.concatenate(conv)
    columns = [
        names.take(pa.array(which)),
        pa.array(np.full(len(which), log_position, np.int64)),
        pa.array(np.concatenate(first)),
        pa.array(np.concatenate(last)),
    ]
    return pa.Table.from_arrays(columns, schema=POSTINGS_SCHEMA)
