"""A sealed interval made anew from the segments that it covers: derived files may be lost, the log may not.

Owns the way from segments to the columns of an interval. Does not own its files (`imray.log.sealed`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from imray.core.errors import CorruptError, DerivedError, UnavailableError
from imray.core.fold import ReadBack
from imray.core.intervals import Interval
from imray.core.routing import log_of, log_position_of
from imray.kernels.arrays import I64, U32, U64
from imray.log.reader import read_segment
from imray.log.rows import read_back
from imray.log.sealed import POSTINGS_SCHEMA, IdColumns, SealedInterval, new_tag, write_interval
from imray.log.store import Store


def remake(
    store: Store,
    seed: int,
    interval: Interval,
    ends: Mapping[int, int],
    is_wanted: Callable[[], bool] = lambda: True,
) -> SealedInterval:
    """An interval with the same ids and postings, under names of its own.

    `ends` are the last segments, by slot, of the partitions' logs that some checkpoint covers: of an interval that does
    not say what it covers of them, all up to there is taken, since an id that two intervals hold does no harm.
    CorruptError where a segment does not verify. DerivedError where the log does not hold what the interval says.
    UnavailableError where it is not wanted any more, looked at between segments."""
    partitions = interval.partitions
    if partitions is None:
        partitions = tuple((slot, 1, end) for slot, end in sorted(ends.items()) if slot and end)
    fps: list[U64] = [np.empty(0, np.uint64)]
    log_positions: list[I64] = [np.empty(0, np.int64)]
    rows: list[U32] = [np.empty(0, np.uint32)]
    postings: list[pa.Table] = [POSTINGS_SCHEMA.empty_table()]
    for slot, first, last in ((0, interval.first, interval.last), *partitions):
        for log_position, found in _read(store, seed, interval.shard, slot, first, last):
            if not is_wanted():
                raise UnavailableError("the shard does not want it any more")
            fps.append(found.rows.fps)
            log_positions.append(np.full(len(found.seq), log_position, np.int64))
            rows.append(found.row)
            postings.append(_postings(log_position, found))
    ids = IdColumns(np.concatenate(fps), np.concatenate(log_positions), np.concatenate(rows))
    count = len(ids)
    if interval.partitions is not None and count != interval.ids:
        raise DerivedError(interval.name("ids"), f"it held {interval.ids} ids, and the log has {count} there")
    made = Interval(
        shard=interval.shard, first=interval.first, last=interval.last, ids=count, tag=new_tag(), partitions=partitions
    )
    return write_interval(store, made, [ids], pa.concat_tables(postings))


def _read(store: Store, seed: int, home: int, slot: int, first: int, last: int) -> Iterator[tuple[int, ReadBack]]:
    log = log_of(home, slot)
    number = _first(store, log, first)
    while number <= last:
        segment = read_segment(store, log, number)
        if segment.meta.rows:
            yield log_position_of(slot, number), read_back(segment.table().combine_chunks(), seed)
        number = segment.meta.fence.following if segment.meta.fence is not None else number + 1


def _first(store: Store, log: int, number: int) -> int:
    """The first segment of a log at or above a number: a fence just before may have left names out."""
    if number > 1:
        with contextlib.suppress(CorruptError):  # what it says is not needed, unless it was a fence
            before = read_segment(store, log, number - 1)
            if before.meta.fence is not None:
                return before.meta.fence.following
    return number


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
