"""Becoming the writer of a shard: checkpoint, then the segments after it, then the fence. Also: old ids confirmed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from imray.core.errors import CorruptError, UnavailableError
from imray.core.sequencer import First, Located, Rows, ShardState, apply
from imray.log import checkpoint
from imray.log.reader import read_log, read_segment
from imray.log.rows import read_commit
from imray.log.schema import id_words, payload_fingerprints
from imray.log.sealed import SealedInterval
from imray.log.segment import Segment
from imray.log.store import Store
from imray.log.writer import Writer

_FENCE_TRIES_MAX = 100
_CONFIRM_COLUMNS = ["conv_id", "client_msg_id", "conv_seq", "sender", "topic", "content_type", "body"]


def replay(store: Store, shard: int, state: ShardState) -> None:
    """Fold the rest of the log into the state. CorruptError at the first segment that does not verify."""
    for segment in read_log(store, shard, state.segment, state.digest):
        apply(state, read_commit(state, segment))


def become_writer(store: Store, shard: int, seed: int, now_ms: Callable[[], int]) -> tuple[ShardState, Writer]:
    """Recover a shard and fence off every earlier writer.

    CorruptError: the log does not verify, a person must look. StorageError: the fence could not be written.
    UnavailableError: others keep taking the next number."""
    state = checkpoint.restore(store, shard, seed)
    for _ in range(_FENCE_TRIES_MAX):
        replay(store, shard, state)
        writer = Writer(store, shard, state.segment, state.epoch, state.digest)
        if writer.fence(now_ms()):
            replay(store, shard, state)  # the fence itself, by the one way that everything takes
            if state.segment != writer.segment:
                continue  # another one fenced this one off already
            return state, writer
    raise UnavailableError(f"shard {shard}: other writers keep taking the log; is a second deployment using this data?")


class Confirmer:
    """Looks a filter's "maybe" up in the segments, confirmed against conversation and 128 bits.

    Keeps a few decoded segments, since retries of one time stand together."""

    SEGMENTS_MAX = 64
    ROWS_MAX = 500_000

    def __init__(self, store: Store, shard: int) -> None:
        self._store = store
        self._shard = shard
        self._cache: OrderedDict[int, tuple[Segment, pa.RecordBatch]] = OrderedDict()

    def confirm(self, rows: Rows, located: Located) -> dict[int, First]:
        """For each row of `located.maybe` that really is an old id: the first send's numbers."""
        found: dict[int, First] = {}
        by_segment: dict[int, list[tuple[int, int]]] = {}
        for sealed, which in located.maybe:
            assert isinstance(sealed, SealedInterval)
            for i, segment, row in sealed.candidates(rows.fps[which]):
                by_segment.setdefault(segment, []).append((int(which[i]), row))
        for number, hits in by_segment.items():
            found.update(self._firsts(number, hits, rows))
        return found

    def _firsts(self, number: int, hits: list[tuple[int, int]], rows: Rows) -> Iterable[tuple[int, First]]:
        segment, batch = self._segment(number)
        there = batch.take(pa.array([row for _, row in hits]))
        ids, payload = id_words(there.column("client_msg_id")), payload_fingerprints(there)
        names, seq = there.column("conv_id").cast(pa.string()).to_pylist(), there.column("conv_seq").to_numpy()
        for j, (i, row) in enumerate(hits):
            k = rows.conv[i]
            name = rows.names_data[rows.names_offsets[k] : rows.names_offsets[k + 1]].tobytes()
            if np.array_equal(ids[j], rows.ids[i]) and names[j].encode() == name:
                meta = segment.meta
                yield i, First(int(seq[j]), int(payload[j]), number, row, meta.epoch, meta.server_ts)

    def _segment(self, number: int) -> tuple[Segment, pa.RecordBatch]:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        segment = read_segment(self._store, self._shard, number)
        table = segment.table(_CONFIRM_COLUMNS).combine_chunks()
        if not table.num_rows:
            raise CorruptError(segment.name, "rows", "a sealed file names a row in it, but it has none")
        self._cache[number] = segment, table.to_batches()[0]
        while len(self._cache) > 1 and (
            len(self._cache) > self.SEGMENTS_MAX or sum(b.num_rows for _, b in self._cache.values()) > self.ROWS_MAX
        ):
            self._cache.popitem(last=False)
        return self._cache[number]
