"""Ids of intervals of version 1 confirmed: such an interval says in which segment an id may stand, and this reads it.

Safe for threads. Goes when no folder has such an interval any more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from imray.core.columns import First, Rows, RowStatus
from imray.core.errors import CorruptError, StorageError
from imray.core.routing import offset_of
from imray.kernels.arrays import I64
from imray.log.reader import read_segment
from imray.log.schema import id_words, payload_fingerprints
from imray.log.segment import Segment
from imray.log.store import Store

_CONFIRM_COLUMNS = ["conv_id", "client_msg_id", "conv_seq", "sender", "topic", "content_type", "body"]


class SegmentLookUp:
    """Confirms ids against the rows of segments. Keeps a few decoded ones, since retries of one time stand together."""

    SEGMENTS_MAX = 64
    ROWS_MAX = 500_000

    def __init__(self, store: Store, shard: int, seed: int, on_damage: Callable[[str], None]) -> None:
        """`on_damage` is told once of each segment that does not verify."""
        self._on_damage = on_damage
        self._told: set[str] = set()
        self._store = store
        self._shard = shard
        self._seed = seed
        self._lock = threading.Lock()
        """Of the cache; nothing is read under it."""
        self._cache: OrderedDict[int, tuple[Segment, pa.RecordBatch]] = OrderedDict()

    def look_up(
        self, rows: Rows, which: I64, candidates: Sequence[tuple[int, int, int]], known: dict[int, First]
    ) -> dict[int, First]:
        """The first sends of the rows `which` that are old ids; `candidates` are (index into `which`, log position,
        row). A row whose first send, if there is one, stands in a segment that does not verify is UNREADABLE, unless it
        is `known`; one for which it cannot be read now is WAITING."""
        found: dict[int, First] = {}
        by_log_position: dict[int, list[tuple[int, int]]] = {}
        for i, log_position, row in candidates:
            by_log_position.setdefault(log_position, []).append((int(which[i]), row))
        for log_position, hits in by_log_position.items():
            try:
                found.update(self._firsts(log_position, hits, rows))
            except (CorruptError, StorageError) as e:
                if isinstance(e, CorruptError) and e.file not in self._told:
                    self._told.add(e.file)
                    self._on_damage(f"the log is damaged, retries of what stands there are refused: {e}")
                status = RowStatus.UNREADABLE if isinstance(e, CorruptError) else RowStatus.WAITING
                unknown = ((i, First(0, 0, log_position, row, 0, 0, status)) for i, row in hits)
                found.update((i, first) for i, first in unknown if i not in found and i not in known)
        return found

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
        with self._lock:
            if log_position in self._cache:
                self._cache.move_to_end(log_position)
                return self._cache[log_position]
        segment = read_segment(self._store, *offset_of(self._shard, log_position))
        table = segment.table(_CONFIRM_COLUMNS).combine_chunks()
        if not table.num_rows:
            raise CorruptError(segment.name, "rows", "a sealed file names a row in it, but it has none")
        found = segment, table.to_batches()[0]
        with self._lock:
            self._cache[log_position] = found
            while len(self._cache) > 1 and (
                len(self._cache) > self.SEGMENTS_MAX or sum(b.num_rows for _, b in self._cache.values()) > self.ROWS_MAX
            ):
                self._cache.popitem(last=False)
        return found
