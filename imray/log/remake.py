"""A sealed interval made anew from the segments that it covers: derived files may be lost, the log may not.

Owns the way from segments to the columns of an interval. Does not own its files (`imray.log.sealed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from imray.core.errors import DerivedError
from imray.core.fold import ReadBack
from imray.core.routing import log_of, place_of
from imray.log.reader import read_segment
from imray.log.rows import read_back
from imray.log.sealed import POSTINGS_SCHEMA, Interval, SealedInterval, new_tag, write_interval
from imray.log.store import Store

_Span = tuple[str, int, int, int]
"""Conversation, place, first and last number."""


def remake(store: Store, seed: int, interval: Interval, ends: Mapping[int, int]) -> SealedInterval:
    """An interval with the same ids and postings, under names of its own.

    `ends` are the last segments, by slot, of the sub-topics' logs that some checkpoint covers: of an interval that does
    not say what it covers of them, all up to there is taken, since an id that two intervals hold does no harm.
    CorruptError where a segment does not verify. DerivedError where the log does not hold what the interval says."""
    topics = interval.topics
    if topics is None:
        topics = tuple((slot, 1, end) for slot, end in sorted(ends.items()) if slot and end)
    fps: list[np.ndarray] = []
    places: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    spans: list[_Span] = []
    for slot, first, last in ((0, interval.first, interval.last), *topics):
        for place, found in _read(store, seed, interval.shard, slot, first, last):
            fps.append(found.rows.fps)
            places.append(np.full(len(found.seq), place, np.int64))
            rows.append(found.row)
            spans += _spans(place, found)
    ids = {
        "fp": np.concatenate([np.empty(0, np.uint64), *fps]),
        "place": np.concatenate([np.empty(0, np.int64), *places]),
        "row": np.concatenate([np.empty(0, np.uint32), *rows]),
    }
    count = len(ids["fp"])
    if interval.topics is not None and count != interval.ids:
        raise DerivedError(interval.name("ids"), f"it held {interval.ids} ids, and the log has {count} there")
    columns = list(zip(*spans, strict=True)) or [()] * len(POSTINGS_SCHEMA)
    postings = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, POSTINGS_SCHEMA, strict=True)],
        schema=POSTINGS_SCHEMA,
    )
    made = Interval(interval.shard, interval.first, interval.last, count, new_tag(), topics)
    return write_interval(store, made, ids, postings)


def _read(store: Store, seed: int, home: int, slot: int, first: int, last: int) -> Iterator[tuple[int, ReadBack]]:
    for number in range(first, last + 1):
        segment = read_segment(store, log_of(home, slot), number)
        if segment.meta.rows:
            yield place_of(slot, number), read_back(segment.table().combine_chunks(), seed)


def _spans(place: int, found: ReadBack) -> list[_Span]:
    """Which numbers of which conversations a segment settles: runs of messages, and voids."""
    rows = found.rows
    names = [
        rows.names_data[a:b].tobytes().decode()
        for a, b in zip(rows.names_offsets[:-1].tolist(), rows.names_offsets[1:].tolist(), strict=True)
    ]
    spans = [(names[conv], place, first, last) for conv, first, last in found.voids]
    if len(rows.conv):
        order = np.argsort(rows.conv, kind="stable")
        starts = np.flatnonzero(np.diff(rows.conv[order], prepend=-1))
        conv = rows.conv[order][starts].tolist()
        low = np.minimum.reduceat(found.seq[order], starts).tolist()
        high = np.maximum.reduceat(found.seq[order], starts).tolist()
        spans += [(names[c], place, a, b) for c, a, b in zip(conv, low, high, strict=True)]
    return spans
