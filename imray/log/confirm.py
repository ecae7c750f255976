"""Old ids confirmed: a filter's "maybe" is looked up in the segments, against conversation and 128 bits.

What cannot be read takes out the rows that need it, and no others.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from imray.core.columns import First, KnownIds, Rows, RowStatus
from imray.core.errors import CorruptError, DerivedError, StorageError
from imray.core.routing import offset_of
from imray.kernels.arrays import I64
from imray.log.reader import read_segment
from imray.log.schema import id_words, payload_fingerprints
from imray.log.sealed import SealedInterval
from imray.log.segment import Segment
from imray.log.store import Store

log = logging.getLogger("imray.confirm")

_CONFIRM_COLUMNS = ["conv_id", "client_msg_id", "conv_seq", "sender", "topic", "content_type", "body"]


class Confirmer:
    """Looks a filter's "maybe" up in the segments, confirmed against conversation and 128 bits.

    Keeps a few decoded segments, since retries of one time stand together."""

    SEGMENTS_MAX = 64
    ROWS_MAX = 500_000

    def __init__(self, store: Store, shard: int, seed: int, on_damage: Callable[[str], None] = lambda _: None) -> None:
        """`on_damage` is told once of each segment that does not verify."""
        self._on_damage = on_damage
        self._told: set[str] = set()
        self._store = store
        self._shard = shard
        self._seed = seed
        self._cache: OrderedDict[int, tuple[Segment, pa.RecordBatch]] = OrderedDict()
        self.damaged: set[SealedInterval] = set()
        """Intervals whose ids could not be read, until they are made anew: whoever looks here does that."""
        self.lost: set[SealedInterval] = set()
        """Those of them that cannot be made anew, as the log is damaged, too."""

    def forget(self, intervals: Sequence[SealedInterval]) -> None:
        """Others took their place."""
        self.damaged.difference_update(intervals)
        self.lost.difference_update(intervals)

    def confirm(self, rows: Rows, located: KnownIds) -> dict[int, First]:
        """For each row of `located.maybe` that really is an old id: the first send's numbers.

        A row whose first send, if there is one, stands in a segment that does not verify is UNREADABLE; one for which a
        file cannot be read now (the store's error, ids that are made anew) is WAITING."""
        found: dict[int, First] = {}
        by_log_position: dict[int, list[tuple[int, int]]] = {}
        for sealed, which in located.maybe:
            assert isinstance(sealed, SealedInterval)
            for i, log_position, row in self._candidates(sealed, rows, which, found):
                by_log_position.setdefault(log_position, []).append((int(which[i]), row))
        for log_position, hits in by_log_position.items():
            try:
                found.update(self._firsts(log_position, hits, rows))
            except (CorruptError, StorageError) as e:
                if isinstance(e, CorruptError) and e.file not in self._told:
                    self._told.add(e.file)
                    self._on_damage(f"the log is damaged, retries of what stands there are refused: {e}")
                status = RowStatus.UNREADABLE if isinstance(e, CorruptError) else RowStatus.WAITING
                found.update((i, _unknown(status, log_position, row)) for i, row in hits if i not in found)
        return found

    def _candidates(
        self, sealed: SealedInterval, rows: Rows, which: I64, found: dict[int, First]
    ) -> list[tuple[int, int, int]]:
        if sealed not in self.damaged:
            try:
                return sealed.candidates(rows.fps[which])
            except DerivedError as e:
                log.warning("rows wait for the ids of an interval: %s", e)
                self.damaged.add(sealed)
            except StorageError as e:
                log.warning("rows wait for the ids of an interval: %s", e)
        status = RowStatus.UNREADABLE if sealed in self.lost else RowStatus.WAITING
        found.update((i, _unknown(status, 0, 0)) for i in which.tolist())
        return []

    def _firsts(self, log_position: int, hits: list[tuple[int, int]], rows: Rows) -> Iterable[tuple[int, First]]:
        segment, batch = self._segment(log_position)
        there = batch.take(pa.array([row for _, row in hits]))
        ids = id_words(there.column("client_msg_id"))
        payload = payload_fingerprints(there, self._seed)
        names = there.column("conv_id").cast(pa.string()).to_pylist()
        seq = there.column("conv_seq").to_numpy()
        for j, (i, row) in enumerate(hits):
            k = rows.conv[i]
            name = rows.names_data[rows.names_offsets[k] : rows.names_offsets[k + 1]].tobytes()
            if np.array_equal(ids[j], rows.ids[i]) and names[j].encode() == name:
                meta = segment.meta
                yield (
                    i,
                    First(
                        seq=int(seq[j]),
                        payload=int(payload[j]),
                        log_position=log_position,
                        row=row,
                        epoch=meta.epoch,
                        server_ts=meta.server_ts,
                    ),
                )

    def _segment(self, log_position: int) -> tuple[Segment, pa.RecordBatch]:
        if log_position in self._cache:
            self._cache.move_to_end(log_position)
            return self._cache[log_position]
        segment = read_segment(self._store, *offset_of(self._shard, log_position))
        table = segment.table(_CONFIRM_COLUMNS).combine_chunks()
        if not table.num_rows:
            raise CorruptError(segment.name, "rows", "a sealed file names a row in it, but it has none")
        self._cache[log_position] = segment, table.to_batches()[0]
        while len(self._cache) > 1 and (
            len(self._cache) > self.SEGMENTS_MAX or sum(b.num_rows for _, b in self._cache.values()) > self.ROWS_MAX
        ):
            self._cache.popitem(last=False)
        return self._cache[log_position]


def _unknown(status: RowStatus, log_position: int, row: int) -> First:
    return First(seq=0, payload=0, log_position=log_position, row=row, epoch=0, server_ts=0, status=status)
