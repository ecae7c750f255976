"""Sealed intervals: for a run of segments, where each id stands, a filter over the ids, and which numbers are where.

Owns three derived files an interval: `ids` (fingerprints, sorted, with place and row), `bloom` (a filter over them),
`postings` (conversation, place, first and last number). All can be made again from the log (`imray.log.remake`), so
what does not verify here is a DerivedError. Intervals of like size are merged, as levels of a log-structured merge tree
(O'Neil et al. 1996), so a look-up meets few of them.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.dedup import RELEASED, BlockedBloom, IdTable
from imray.core.errors import CorruptError, DerivedError, StorageError
from imray.core.intervals import Interval, joined, overlap
from imray.core.postings import Postings
from imray.kernels.arrays import I64, U32, U64, Bools
from imray.kernels.ordering import sort_into
from imray.log import digest as digests
from imray.log.column_file import ColumnFile
from imray.log.segment import META_KEY, encode_parquet, read_meta
from imray.log.store import Store

MERGE_FANOUT = 8
IDS_PER_INTERVAL_MAX = 16_000_000
"""No merge makes a larger one: an ids file is read whole to be verified (20 bytes an id)."""

FILTERED_IDS_MAX = 64_000_000
"""So many have one filter in front of them (`imray.log.sealed_filter`), 2 to 4 bytes each: beyond that (256 MB) memory
is worth more than time."""
_FILTERED_INTERVAL_MAX = 4_000_000
"""No merge makes a larger one there: it costs 70 ns an id in the process that numbers, and would spare no look-up."""

_COLUMNS: Mapping[str, Mapping[str, type[np.generic]]] = {
    "ids": {"fp": np.uint64, "place": np.int64, "row": np.uint32},
    "bloom": {"words": np.uint64},
}
POSTINGS_SCHEMA = pa.schema(
    [("conv_id", pa.string()), ("place", pa.int64()), ("first", pa.int64()), ("last", pa.int64())]
)


@dataclass(frozen=True)
class IdColumns:
    """Where ids stand: fingerprint, log position and row in the segment of each."""

    fp: U64
    log_position: I64
    row: U32

    def __len__(self) -> int:
        return len(self.fp)

    @classmethod
    def concatenated(cls, parts: Sequence[IdColumns]) -> IdColumns:
        """The ids of some parts, one after the other."""
        return cls(
            np.concatenate([p.fp for p in parts]),
            np.concatenate([p.log_position for p in parts]),
            np.concatenate([p.row for p in parts]),
        )

    def take(self, which: Bools | I64) -> IdColumns:
        """The ids that a mask or indices name."""
        return IdColumns(self.fp[which], self.log_position[which], self.row[which])


@dataclass(eq=False)
class SealedInterval:
    """One interval's filter in memory and its ids on call: `imray.core.dedup.SealedIds` and what confirms it.

    Equal to itself only: an interval made anew is another one."""

    store: Store
    interval: Interval
    bloom: BlockedBloom | None
    """None: its file is missing or damaged, so every id may be there."""

    def maybe(self, fps: U64) -> Bools | None:
        """True for each row that may be there; None where no row may."""
        if not self.interval.ids:
            return None
        return np.ones(len(fps), np.bool_) if self.bloom is None else self.bloom.maybe(fps)

    @cached_property
    def ids(self) -> pa.RecordBatch:
        """Columns fp (sorted), place, row, in memory that the system may take back. Verified at first use: DerivedError
        where the file is missing or changed."""
        return _open_arrow(self.store.map, self.interval, "ids")

    def loaded(self) -> SealedInterval:
        """Itself, with its ids read and verified: no commit has to wait for that (100 ms for 2 million ids that the
        system has not in memory)."""
        assert self.ids.num_rows == self.interval.ids
        if self.bloom is None:
            self.bloom = BlockedBloom.build(self.ids.column("fp").to_numpy())
        return self

    def check(self) -> None:
        """Read all three files. DerivedError where one is missing or does not verify."""
        for kind in ("ids", "bloom"):
            _open_arrow(self.store.get, self.interval, kind)
        self.postings()

    def candidates(self, fps: U64) -> list[tuple[int, int, int]]:
        """(position in `fps`, place, row) of every entry with an equal fingerprint; DerivedError as `ids`."""
        column = self.ids.column("fp").to_numpy()
        low = np.searchsorted(column, fps, "left")
        high = np.searchsorted(column, fps, "right")
        log_position = self.ids.column("place").to_numpy()
        row = self.ids.column("row").to_numpy()
        return [
            (int(i), int(log_position[e]), int(row[e]))
            for i in np.flatnonzero(high > low)
            for e in range(low[i], high[i])
        ]

    def postings(self) -> pa.Table:
        """Its postings, sorted by conv_id and first number."""
        return read_postings(self.store, self.interval)


def open_interval(store: Store, interval: Interval) -> SealedInterval:
    """Load an interval's filter (2 bytes an id). DerivedError where its file is missing or changed."""
    words = _open_arrow(store.get, interval, "bloom").column("words").to_numpy()
    return SealedInterval(store, interval, BlockedBloom(words))


def read_postings(store: Store, interval: Interval) -> pa.Table:
    """The postings of an interval, verified. DerivedError where the file is missing or changed."""
    name = interval.name("postings")
    data = _bytes(store.get, name)
    try:
        digests.verify(data, name)
        said = read_meta(memoryview(data), name, META_KEY, Interval)
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
    except (CorruptError, pa.ArrowException, OSError) as e:
        raise DerivedError(name, f"it does not verify: {why(e)}") from e
    if said != interval:
        raise DerivedError(name, "it is another interval's file")
    return table


def seal(
    store: Store,
    shard: int,
    table: IdTable,
    postings: Postings,
    last: int,
    names: list[str],
    partitions: tuple[tuple[int, int, int], ...] = (),
) -> SealedInterval:
    """Write the files of the interval that ends with segment `last`. `names[i]` is conversation i's conv_id; `topics`
    as in Interval."""
    n = table.count
    ids = IdColumns(table.fps[:n], table.log_position[:n], table.row[:n])
    released = table.conv[:n] == RELEASED
    if released.any():
        ids = ids.take(~released)
    interval = Interval(
        shard=shard, first=table.base_segment + 1, last=last, ids=len(ids), tag=new_tag(), partitions=partitions
    )
    entries = postings.entries
    conv = np.concatenate([e.conv for e in entries]) if entries else np.empty(0, np.int32)
    columns = {
        "conv_id": pa.array(names, pa.string()).take(pa.array(conv)),
        "place": pa.array(np.repeat([e.log_position for e in entries], [len(e.conv) for e in entries]), pa.int64()),
        "first": pa.array(np.concatenate([e.first for e in entries]) if entries else [], pa.int64()),
        "last": pa.array(np.concatenate([e.last for e in entries]) if entries else [], pa.int64()),
    }
    found = pa.table(columns, schema=POSTINGS_SCHEMA)
    return write_interval(store, interval, [ids], found)


def merge(store: Store, parts: list[SealedInterval]) -> SealedInterval:
    """One interval in place of adjacent ones."""
    first = parts[0].interval
    last = parts[-1].interval
    total = sum(p.interval.ids for p in parts)
    covered = joined([p.interval.partitions for p in parts])
    interval = Interval(
        shard=first.shard, first=first.first, last=last.last, ids=total, tag=new_tag(), partitions=covered
    )
    ids = [IdColumns(*(p.ids.column(name).to_numpy() for name in _COLUMNS["ids"])) for p in parts]
    postings = pa.concat_tables([p.postings() for p in parts])
    if overlap([p.interval.partitions for p in parts]):
        # intervals of an earlier version, made anew: each has all of the partitions' ids
        whole = IdColumns.concatenated(ids)
        _, once = np.unique(np.stack([whole.log_position, whole.row.astype(np.int64)]), axis=1, return_index=True)
        ids = [whole.take(once)]
        postings = postings.group_by(postings.column_names).aggregate([])
        interval = msgspec.structs.replace(interval, ids=len(once))
    return write_interval(store, interval, ids, postings)


def new_tag() -> str:
    """A tag that no other try has."""
    return secrets.token_hex(6)


def merge_due(intervals: Sequence[Interval]) -> slice | None:
    """Which adjacent intervals to merge now: the newest MERGE_FANOUT of about one size, or as many of these as one
    interval may hold, but not under half of them; None where there are none.

    Past the ids that one filter may stand for older ones count, too: they were left as they were until then."""
    for a, b in pairwise(intervals):
        assert a.last + 1 == b.first, "intervals are adjacent"
    filtered = sum(i.ids for i in intervals) <= FILTERED_IDS_MAX
    ids_max = _FILTERED_INTERVAL_MAX if filtered else IDS_PER_INTERVAL_MAX
    oldest_end = len(intervals) if filtered else MERGE_FANOUT
    for end in range(len(intervals), max(oldest_end, MERGE_FANOUT) - 1, -1):
        fitting = _fitting(intervals[end - MERGE_FANOUT : end], ids_max)
        if 2 * fitting >= MERGE_FANOUT:
            return slice(end - fitting, end)
    return None


def _fitting(some: Sequence[Interval], ids_max: int) -> int:
    """How many of these, from the last one on, are of about one size and fit into one interval."""
    if max(_span(i) for i in some) > MERGE_FANOUT * _span(some[-1]):
        return 0
    fitting = 0
    total = 0
    for interval in reversed(some):
        total += interval.ids
        if total > ids_max:
            break
        fitting += 1
    return fitting


def _span(interval: Interval) -> int:
    return interval.ids + interval.last - interval.first + 1


def write_interval(store: Store, interval: Interval, ids: Sequence[IdColumns], postings: pa.Table) -> SealedInterval:
    """Write the files of a new interval: `ids`, in parts, and `postings` in any order.

    StorageError where the store refuses; what was written by then is removed."""
    rows = sum(map(len, ids))
    file = _file(interval, "ids", rows)
    columns = file.columns["fp"], file.columns["place"], file.columns["row"]
    sort_into([(part.fp, part.log_position, part.row) for part in ids], columns)
    words = _file(interval, "bloom", BlockedBloom.words_for(rows))
    bloom = BlockedBloom(words.columns["words"])
    bloom.put(file.columns["fp"])
    try:
        _put_columns(store, interval, "ids", file)
        _put_columns(store, interval, "bloom", words)
        ordered = postings.sort_by([("conv_id", "ascending"), ("first", "ascending")])
        data = encode_parquet(ordered, META_KEY, msgspec.json.encode(interval), "lz4")
        store.put_if_absent(interval.name("postings"), digests.seal(data)[0])
        return SealedInterval(store, interval, bloom).loaded()
    except BaseException:
        remove(store, interval)
        raise


def remove(store: Store, interval: Interval) -> None:
    """Remove the files of an interval that nothing names; what cannot be removed is left to a later writer."""
    for name in interval.names:
        with contextlib.suppress(StorageError):
            store.delete(name)


def _put_columns(store: Store, interval: Interval, kind: str, file: ColumnFile) -> None:
    store.put_if_absent(interval.name(kind), file.seal())


def _file(interval: Interval, kind: str, rows: int) -> ColumnFile:
    return ColumnFile(_COLUMNS[kind], rows, {META_KEY: msgspec.json.encode(interval)})


def why(error: Exception) -> str:
    """What is wrong with a derived file, without the advice that damage to the log needs."""
    return f"{error.where}, {error.check}" if isinstance(error, CorruptError) else str(error)


def _bytes(read: Callable[[str], bytes | memoryview | None], name: str) -> bytes | memoryview:
    try:
        data = read(name)
    except StorageError as e:
        if isinstance(e.__cause__, OSError) and e.__cause__.errno == errno.EIO:
            raise DerivedError(name, f"it cannot be read: {e}") from e  # a bad sector stays bad
        raise
    if data is None:
        raise DerivedError(name, "a checkpoint names it, but it is not there")
    return data


def _open_arrow(read: Callable[[str], bytes | memoryview | None], interval: Interval, kind: str) -> pa.RecordBatch:
    name = interval.name(kind)
    data = _bytes(read, name)
    try:
        digests.verify(data, name)
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            said = msgspec.json.decode((reader.schema.metadata or {}).get(META_KEY, b""), type=Interval)
            batch = reader.read_next_batch()
    except (CorruptError, msgspec.DecodeError, pa.ArrowException) as e:
        raise DerivedError(name, f"it does not verify: {why(e)}") from e
    if said != interval or batch.schema.names != list(_COLUMNS[kind]):
        raise DerivedError(name, "it is another interval's file, or of another kind")
    return batch
