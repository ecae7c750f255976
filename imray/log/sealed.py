"""Sealed intervals: for a run of segments, what each of its ids became, a filter over the ids, which numbers are where.

Owns the derived files of an interval: `ids` in parts (`imray.log.id_run`), `bloom` (a filter over them), `postings`
(conversation, place, first and last number). All can be made again from the log and the history
(`imray.history.remake`), so what does not verify is a DerivedError. Intervals of like size are merged, as levels of a
log-structured merge tree (O'Neil et al. 1996), so a look-up meets few of them; a merge holds a part and no more in
memory, however large they are. Does not own how they are read (`imray.log.sealed_interval`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa

from imray.core.dedup import RELEASED, IdTable, WordBloom
from imray.core.intervals import VERSION, Interval, joined, overlap
from imray.core.postings import Postings
from imray.core.routing import offset_of
from imray.kernels.arrays import U64
from imray.kernels.hashing import keyed_hashes, keyed_hashes_of
from imray.kernels.id_columns import take_entries, take_ids
from imray.kernels.ordering import sort_into
from imray.kernels.packing import COLUMNS, FP, LOG_POSITION, ROW
from imray.log import digest as digests
from imray.log.column_file import ColumnFile
from imray.log.derived import why as why
from imray.log.id_run import IdRunWriter
from imray.log.marks import marked
from imray.log.sealed_interval import SealedInterval as SealedInterval
from imray.log.sealed_interval import open_interval as open_interval
from imray.log.sealed_interval import read_postings as read_postings
from imray.log.sealed_interval import remove as remove
from imray.log.segment import META_KEY, encode_parquet
from imray.log.store import Store

MERGE_FANOUT = 4
"""A new id is looked up in each interval's filter (10 to 40 ns), and an id is written anew once for each power of this:
of 100 million in one shard there are ten intervals at most, and each id was written four times. With eight it would be
three times, and twice as many filters."""
LIKE_SIZE_IDS_MIN = 32_768
"""Smaller intervals count as of one size: a quiet shard makes a checkpoint of a few ids a minute."""
FILTERED_IDS_MAX = 2_000_000
"""So many have one filter in front of them (`imray.log.sealed_filter`), 2 to 4 bytes of memory each. Beyond that it
would grow with the history, and spares little: the filters behind it are asked all at once."""
IDS_PER_PART = 1 << 19
"""At most, about: 23 MB, which a merge holds in memory at once."""
_IDS_AT_ONCE = 1 << 16
"""So many are sorted at once, in the processor's caches."""

POSTINGS_SCHEMA = pa.schema(
    [("conv_id", pa.string()), ("place", pa.int64()), ("first", pa.int64()), ("last", pa.int64())]
)
IdsBetween = Callable[[int, int], U64]
"""The ids (COLUMNS, rows) whose fingerprints are from one to another, both included, ascending by them."""
Written = Callable[[int], tuple[int, int]]
"""Epoch and server_ts of the segment at a log position."""
_NAMES = 0xA0761D6478BD642F


def conversation_keys(names_offsets: np.ndarray, names_data: np.ndarray, seed: int) -> U64:
    """What stands for each conversation beside an id: a hash of its name under the folder's secret. `names_offsets` are
    int32. Stored, so it may not change for a data folder."""
    return keyed_hashes(len(names_offsets) - 1, names_offsets.ctypes.data, names_data.ctypes.data, _key(seed))


def _key(seed: int) -> np.uint64:
    return np.uint64(seed ^ _NAMES)


def seal(
    store: Store,
    shard: int,
    seed: int,
    table: IdTable,
    postings: Postings,
    last: int,
    names: Sequence[str] | pa.Array,
    written: Written,
    partitions: tuple[tuple[int, int, int], ...] = (),
) -> SealedInterval:
    """Write the files of the interval that ends with segment `last`. `names[i]` is conversation i's conv_id;
    `partitions` as in Interval; `written` says of the segments of the table's ids."""
    ids = int(np.count_nonzero(table.conv[: table.count] != RELEASED))
    interval = draft(shard, table.base_segment + 1, last, ids, partitions)
    name_texts = pa.array(names, pa.large_string()) if not isinstance(names, pa.Array) else names
    source = _of_table(table, name_texts, seed, written) if ids else _nothing
    entries = postings.entries
    conv = np.concatenate([e.conv for e in entries]) if entries else np.empty(0, np.int32)
    columns = {
        "conv_id": name_texts.cast(pa.string()).take(pa.array(conv)),
        "place": pa.array(np.repeat([e.log_position for e in entries], [len(e.conv) for e in entries]), pa.int64()),
        "first": pa.array(np.concatenate([e.first for e in entries]) if entries else [], pa.int64()),
        "last": pa.array(np.concatenate([e.last for e in entries]) if entries else [], pa.int64()),
    }
    return write_interval(store, interval, source, pa.table(columns, schema=POSTINGS_SCHEMA))


def draft(shard: int, first: int, last: int, ids: int, partitions: tuple[tuple[int, int, int], ...] | None) -> Interval:
    """An interval to be written, with a tag that no other try has."""
    parts = 1 << max(0, (ids - 1) // IDS_PER_PART).bit_length()
    return Interval(shard, first, last, ids, tag=new_tag(), partitions=partitions, version=VERSION, parts=parts)


def new_tag() -> str:
    """A tag that no other try has."""
    return secrets.token_hex(6)


def _nothing(_low: int, _high: int) -> U64:
    return np.empty((COLUMNS, 0), np.uint64)


def _of_table(table: IdTable, names: pa.Array, seed: int, written: Written) -> IdsBetween:
    n = table.count
    sorted_fps = np.empty(n, np.uint64)
    order = np.empty(n, np.int64)
    scrap = np.empty(n, np.uint32)
    sort_into([(table.fps[:n], np.arange(n), table.row[:n])], (sorted_fps, order, scrap))
    conv = table.conv[:n]
    if (conv == RELEASED).any():
        kept = conv[order] != RELEASED
        order = order[kept]
        sorted_fps = sorted_fps[kept]
    _, offsets, data = names.buffers()
    address = data.address if data else 0
    keys = keyed_hashes_of(conv, len(names), offsets.address + 8 * names.offset, address, _key(seed))
    log_position = table.log_position[:n]
    starts = np.flatnonzero(np.diff(log_position, prepend=log_position[0] - 1))
    commit = np.repeat(np.arange(len(starts), dtype=np.int32), np.diff(starts, append=n))
    # of a grant that became void nothing was written
    said = [(p, *(written(p) if p > 0 else (0, 0))) for p in log_position[starts].tolist()]
    commits = np.array(said, np.int64)

    def between(low: int, high: int) -> U64:
        begin = int(np.searchsorted(sorted_fps, np.uint64(low), "left"))
        end = int(np.searchsorted(sorted_fps, np.uint64(high), "right"))
        out = np.empty((COLUMNS, end - begin), np.uint64)
        take_entries(
            order[begin:end], sorted_fps[begin:end], table.ids, table.conv, keys, table.seq, table.payload, table.row,
            commit, commits, out,
        )  # fmt: skip
        return out

    return between


def of_columns(ids: U64) -> IdsBetween:
    """Ids (COLUMNS, rows) in any order, as a source of `write_interval`."""
    fps = np.empty(ids.shape[1], np.uint64)
    order = np.empty(ids.shape[1], np.int64)
    sort_into([(ids[FP], np.arange(ids.shape[1]), np.zeros(ids.shape[1], np.uint32))],
              (fps, order, np.empty(ids.shape[1], np.uint32)))  # fmt: skip

    def between(low: int, high: int) -> U64:
        begin = int(np.searchsorted(fps, np.uint64(low), "left"))
        end = int(np.searchsorted(fps, np.uint64(high), "right"))
        out = np.empty((COLUMNS, end - begin), np.uint64)
        take_ids(ids, order[begin:end], out)
        return out

    return between


def merge(store: Store, parts: Sequence[SealedInterval]) -> SealedInterval:
    """One interval in place of adjacent ones. Postings of segments that may be deleted are left out: the history says
    where their numbers are. DerivedError where a file of a part does not verify."""
    first = parts[0].interval
    last = parts[-1].interval
    total = sum(p.interval.ids for p in parts)
    covered = joined([p.interval.partitions for p in parts])
    postings = [_still_needed(store, p) for p in parts]
    found = pa.concat_tables(postings)
    source: IdsBetween = MergedIds([part.between for part in parts])
    if overlap([p.interval.partitions for p in parts]):
        # made of intervals of an earlier version: each has all of the partitions' ids
        source = _each_once(source)
        found = found.group_by(found.column_names).aggregate([])
        total = sum(source(low, high).shape[1] for low, high in _ranges(total, 1, 0))
    interval = draft(first.shard, first.first, last.last, total, covered)
    return write_interval(store, interval, source, found)


def _still_needed(store: Store, part: SealedInterval) -> pa.Table:
    table = part.postings()
    logs, segments = offset_of(part.interval.shard, table.column("place").to_numpy())
    ends = {log: marked(store, log) for log in np.unique(logs).tolist()}
    if not any(ends.values()):
        return table
    gone = np.array([ends[log] for log in logs.tolist()]) >= segments
    return table.filter(pa.array(~gone))


class MergedIds:
    """The ids of several sources as one."""

    def __init__(self, sources: Sequence[IdsBetween]) -> None:
        self._sources = sources

    def __call__(self, low: int, high: int) -> U64:
        """As `IdsBetween`."""
        whole = np.concatenate([source(low, high) for source in self._sources], axis=1)
        rows = whole.shape[1]
        order = np.empty(rows, np.int64)
        # a sort by the highest bits: those that all have in common are left out
        spread = np.uint64(64 - (high - low).bit_length())
        fps = (whole[FP] - np.uint64(low)) << spread
        scrap = np.empty(rows, np.uint32)
        sort_into([(fps, np.arange(rows), scrap)], (np.empty(rows, np.uint64), order, scrap.copy()))
        out = np.empty((COLUMNS, rows), np.uint64)
        take_ids(whole, order, out)
        return out


def _each_once(source: IdsBetween) -> IdsBetween:
    def between(low: int, high: int) -> U64:
        ids = source(low, high)
        _, once = np.unique(np.stack([ids[LOG_POSITION], ids[ROW]]), axis=1, return_index=True)
        kept: U64 = np.ascontiguousarray(ids[:, np.sort(once)])
        return kept

    return between


def _ranges(ids: int, parts: int, part: int) -> Iterator[tuple[int, int]]:
    """Ranges of fingerprints that a part consists of, each with about `_IDS_AT_ONCE` ids."""
    pieces = 1 << max(0, ids // parts // _IDS_AT_ONCE).bit_length()
    size = (1 << 64) // parts // pieces
    begin = part * size * pieces
    for piece in range(pieces):
        yield begin + piece * size, begin + (piece + 1) * size - 1


def merge_due(intervals: Sequence[Interval]) -> slice | None:
    """Which adjacent intervals to merge now: the newest MERGE_FANOUT of about one size; None where there are none, or
    one of them is to be made anew first."""
    for a, b in pairwise(intervals):
        assert a.last + 1 == b.first, "intervals are adjacent"
    # the newest first; of larger ones there may be enough though the newest are few
    for end in range(len(intervals), MERGE_FANOUT - 1, -1):
        some = intervals[end - MERGE_FANOUT : end]
        if all(i.version >= VERSION for i in some) and max(map(_size, some)) <= MERGE_FANOUT * _size(some[-1]):
            return slice(end - MERGE_FANOUT, end)
    return None


def _size(interval: Interval) -> int:
    return max(LIKE_SIZE_IDS_MIN, interval.ids + interval.last - interval.first + 1)


def write_interval(store: Store, interval: Interval, ids: IdsBetween, postings: pa.Table) -> SealedInterval:
    """Write the files of a new interval (`draft`): its ids, and `postings` in any order.

    StorageError where the store refuses; what was written by then is removed."""
    words = WordBloom.words_for(interval.ids)
    filter_file = ColumnFile({"words": np.uint64}, words, {META_KEY: msgspec.json.encode(interval)})
    bloom = WordBloom(filter_file.columns["words"])
    rows = 0
    try:
        writer = IdRunWriter(interval.ids // interval.parts)
        for part in range(interval.parts):
            for low, high in _ranges(interval.ids, interval.parts, part):
                some = ids(low, high)
                bloom.put(some[FP])
                writer.add(some)
                rows += some.shape[1]
            store.put_if_absent(interval.run_name(part), writer.seal(interval, part))
        assert rows == interval.ids, "it has the ids that it says"
        bloom.seal()
        store.put_if_absent(interval.name("bloom"), filter_file.seal())
        ordered = postings.sort_by([("conv_id", "ascending"), ("first", "ascending")])
        data = encode_parquet(ordered, META_KEY, msgspec.json.encode(interval), "lz4")
        store.put_if_absent(interval.name("postings"), digests.seal(data)[0])
        return open_interval(store, interval).loaded()
    except BaseException:
        remove(store, interval)
        raise
