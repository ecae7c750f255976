"""Sealed intervals: for a run of segments, where each id stands, a filter over the ids, and which numbers are where.

Owns three derived files an interval (all can be made again from the log): `ids` (fingerprints, sorted, with place
and row), `bloom` (a filter over them), `postings` (conversation, place, first and last number). Intervals of like
size are merged, as levels of a log-structured merge tree (O'Neil et al. 1996), so a look-up meets few of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.dedup import RELEASED, BlockedBloom, IdTable
from imray.core.errors import CorruptError
from imray.core.hashing import I64, U64, jit
from imray.core.postings import Postings
from imray.log import digest as digests
from imray.log.segment import META_KEY, encode_parquet, read_meta
from imray.log.store import Store

MERGE_FANOUT = 8
IDS_PER_INTERVAL_MAX = 16_000_000
"""No merge makes a larger one: an ids file is read whole to be verified (20 bytes an id)."""

_COLUMNS = {"ids": ["fp", "place", "row"], "bloom": ["words"]}
POSTINGS_SCHEMA = pa.schema(
    [("conv_id", pa.string()), ("place", pa.int64()), ("first", pa.int64()), ("last", pa.int64())]
)


class Interval(msgspec.Struct, frozen=True):
    """Which segments of the shard's own log an interval covers, and how many ids it holds.

    It also covers segments of its sub-topics' logs: which ones the checkpoints say."""

    shard: int
    first: int
    last: int
    ids: int

    def name(self, kind: str) -> str:
        """The name in the store of its `ids`, `bloom` or `postings` file."""
        suffix = "parquet" if kind == "postings" else "arrow"
        return f"sealed/shard={self.shard:04d}/{self.first:020d}-{self.last:020d}.{kind}.{suffix}"

    @property
    def names(self) -> list[str]:
        """All its files."""
        return [self.name(kind) for kind in ("ids", "bloom", "postings")]


@jit
def _bucket_order(fps: U64, shift: int, starts: I64, out: I64) -> None:
    """A stable order by fingerprint: one distribution by the top bits, then insertion inside the small buckets."""
    n = len(fps)
    for i in range(n):
        starts[np.int64(fps[i] >> np.uint64(shift)) + 1] += 1
    for b in range(1, len(starts)):
        starts[b] += starts[b - 1]
    for i in range(n):
        bucket = np.int64(fps[i] >> np.uint64(shift))
        at = starts[bucket]
        starts[bucket] += 1
        out[at] = i
    for i in range(1, n):
        x = out[i]
        j = i - 1
        while j >= 0 and fps[out[j]] > fps[x]:
            out[j + 1] = out[j]
            j -= 1
        out[j + 1] = x


@jit
def _gather(column: np.ndarray, order: I64) -> np.ndarray:
    """column[order]. numpy holds the interpreter's lock for it, and with it every commit (200 ms of ack latency)."""
    out = np.empty(len(order), column.dtype)
    for i in range(len(order)):
        out[i] = column[order[i]]
    return out


def order_of(fps: U64) -> I64:
    """The permutation that sorts fingerprints (uniform 64-bit values), ascending."""
    bits = min(22, max(1, (len(fps) // 8).bit_length()))
    out = np.empty(len(fps), np.int64)
    _bucket_order(fps, 64 - bits, np.zeros((1 << bits) + 1, np.int64), out)
    return out


@dataclass
class SealedInterval:
    """One interval's filter in memory and its ids on call: `imray.core.dedup.SealedIds` and what confirms it."""

    store: Store
    interval: Interval
    bloom: BlockedBloom

    def maybe(self, fps: U64) -> np.ndarray | None:
        """True for each row that may be there; None where no row may."""
        return self.bloom.maybe(fps) if self.interval.ids else None

    @cached_property
    def ids(self) -> pa.RecordBatch:
        """Columns fp (sorted), place, row, in memory that the system may take back. Verified at first use."""
        return _open_arrow(self.store.map, self.interval, "ids")

    def loaded(self) -> SealedInterval:
        """Itself, with its ids read and verified: no commit has to wait for that (100 ms for 2 million ids that the
        system has not in memory)."""
        assert self.ids.num_rows == self.interval.ids
        return self

    def candidates(self, fps: U64) -> list[tuple[int, int, int]]:
        """(position in `fps`, place, row) of every entry with an equal fingerprint."""
        column = self.ids.column("fp").to_numpy()
        low, high = np.searchsorted(column, fps, "left"), np.searchsorted(column, fps, "right")
        place, row = self.ids.column("place").to_numpy(), self.ids.column("row").to_numpy()
        return [
            (int(i), int(place[e]), int(row[e])) for i in np.flatnonzero(high > low) for e in range(low[i], high[i])
        ]

    def postings(self) -> pa.Table:
        """Its postings, sorted by conv_id and first number."""
        return read_postings(self.store, self.interval)


def open_interval(store: Store, interval: Interval) -> SealedInterval:
    """Load an interval's filter (2 bytes an id)."""
    words = _open_arrow(store.get, interval, "bloom").column("words").to_numpy()
    return SealedInterval(store, interval, BlockedBloom(words))


def read_postings(store: Store, interval: Interval) -> pa.Table:
    """The postings of an interval, verified. CorruptError where the file is missing or changed."""
    name = interval.name("postings")
    data = store.get(name)
    if data is None:
        raise CorruptError(name, "the whole file", "a checkpoint names it, but it is not there")
    digests.verify(data, name)
    if read_meta(memoryview(data), name, META_KEY, Interval) != interval:
        raise CorruptError(name, "metadata", "it is another interval's file")
    return pq.read_table(pa.BufferReader(data), use_threads=False)


def seal(store: Store, shard: int, table: IdTable, postings: Postings, last: int, names: list[str]) -> SealedInterval:
    """Write the files of the interval that ends with segment `last`. `names[i]` is conversation i's conv_id."""
    n = table.count
    ids: dict[str, np.ndarray] = {"fp": table.fps[:n], "place": table.place[:n], "row": table.row[:n]}
    released = table.conv[:n] == RELEASED
    if released.any():
        n -= int(np.count_nonzero(released))
        ids = {name: column[~released] for name, column in ids.items()}
    interval = Interval(shard, table.base_segment + 1, last, n)
    entries = postings.entries
    conv = np.concatenate([e.conv for e in entries]) if entries else np.empty(0, np.int32)
    columns = {
        "conv_id": pa.array(names, pa.string()).take(pa.array(conv)),
        "place": pa.array(np.repeat([e.place for e in entries], [len(e.conv) for e in entries]), pa.int64()),
        "first": pa.array(np.concatenate([e.first for e in entries]) if entries else [], pa.int64()),
        "last": pa.array(np.concatenate([e.last for e in entries]) if entries else [], pa.int64()),
    }
    found = pa.table(columns, schema=POSTINGS_SCHEMA)
    return _write(store, interval, ids, found)


def merge(store: Store, parts: list[SealedInterval]) -> SealedInterval:
    """One interval in place of adjacent ones."""
    first, last = parts[0].interval, parts[-1].interval
    interval = Interval(first.shard, first.first, last.last, sum(p.interval.ids for p in parts))
    ids = {name: np.concatenate([p.ids.column(name).to_numpy() for p in parts]) for name in _COLUMNS["ids"]}
    return _write(store, interval, ids, pa.concat_tables([p.postings() for p in parts]))


def merge_due(intervals: list[Interval]) -> slice | None:
    """Which adjacent intervals to merge now: the newest MERGE_FANOUT of about one size; None where there are none."""
    for a, b in pairwise(intervals):
        assert a.last + 1 == b.first, "intervals are adjacent"
    newest = intervals[-MERGE_FANOUT:]
    total = sum(i.ids for i in newest)
    if len(newest) < MERGE_FANOUT or total > IDS_PER_INTERVAL_MAX:
        return None
    if max(_span(i) for i in newest) > MERGE_FANOUT * _span(newest[-1]):
        return None
    return slice(len(intervals) - MERGE_FANOUT, len(intervals))


def _span(interval: Interval) -> int:
    return interval.ids + interval.last - interval.first + 1


def _write(store: Store, interval: Interval, ids: dict[str, np.ndarray], postings: pa.Table) -> SealedInterval:
    order = order_of(ids["fp"])
    bloom = BlockedBloom.build(ids["fp"])
    _put_arrow(store, interval, "ids", {name: _gather(column, order) for name, column in ids.items()})
    _put_arrow(store, interval, "bloom", {"words": bloom.words})
    ordered = postings.sort_by([("conv_id", "ascending"), ("first", "ascending")])
    data = encode_parquet(ordered, META_KEY, msgspec.json.encode(interval), "lz4")
    # "exists" is success: the files are derived from the log, and an earlier try may have left them
    store.put_if_absent(interval.name("postings"), digests.seal(data)[0])
    return SealedInterval(store, interval, bloom).loaded()


def _put_arrow(store: Store, interval: Interval, kind: str, columns: dict[str, np.ndarray]) -> None:
    batch = pa.RecordBatch.from_pydict({k: pa.array(v) for k, v in columns.items()})
    meta = {META_KEY: msgspec.json.encode(interval), digests.KEY: digests.BLANK}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema.with_metadata(meta)) as writer:
        writer.write_batch(batch.replace_schema_metadata(meta))
    store.put_if_absent(interval.name(kind), digests.seal(sink.getvalue())[0])


def _open_arrow(read: Callable[[str], bytes | memoryview | None], interval: Interval, kind: str) -> pa.RecordBatch:
    name = interval.name(kind)
    data = read(name)
    if data is None:
        raise CorruptError(name, "the whole file", "a checkpoint names it, but it is not there")
    digests.verify(data, name)
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            said = msgspec.json.decode((reader.schema.metadata or {}).get(META_KEY, b""), type=Interval)
            batch = reader.read_next_batch()
    except (msgspec.DecodeError, pa.ArrowException) as e:
        raise CorruptError(name, "metadata", f"not what this version of imray writes: {e}") from e
    if said != interval or batch.schema.names != _COLUMNS[kind]:
        raise CorruptError(name, "metadata", "it is another interval's file, or of another kind")
    return batch
