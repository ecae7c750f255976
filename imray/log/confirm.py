"""Old ids looked up: a filter's "maybe" is confirmed against conversation and 128 bits, in the runs of ids.

What cannot be read takes out the rows that need it, and no others. Reads files, so it is never called by the thread
that numbers; safe for threads. Does not own when a request is looked up (`imray.shard.old_ids`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from imray.core.columns import First, KnownIds, Rows, RowStatus
from imray.core.dedup import SealedIds, WordBloom
from imray.core.errors import DerivedError, StorageError
from imray.kernels import packing
from imray.kernels.arrays import I64, U64
from imray.log.confirm_first import SegmentLookUp
from imray.log.sealed import SealedInterval, conversation_keys
from imray.log.store import Store

log = logging.getLogger("imray.confirm")


class Confirmer:
    """Looks a filter's "maybe" up in the runs of ids; of an interval of an earlier version, in the segments."""

    def __init__(self, store: Store, shard: int, seed: int, on_damage: Callable[[str], None] = lambda _: None) -> None:
        """`on_damage` is told once of each segment that does not verify."""
        self._seed = seed
        self._segments = SegmentLookUp(store, shard, seed, on_damage)
        self.damaged: set[SealedInterval] = set()
        """Intervals whose ids could not be read, until they are made anew: whoever looks here does that."""
        self.lost: set[SealedInterval] = set()
        """Those of them that cannot be made anew, as the log is damaged, too."""

    def forget(self, intervals: Sequence[SealedInterval]) -> None:
        """Others took their place: whoever looks here yet looks again there."""
        for each in intervals:
            each.is_retired = True
        self.damaged.difference_update(intervals)
        self.lost.difference_update(intervals)

    def is_sound(self, sealed: SealedInterval) -> None:
        """Its files were read, and all verify: what was met before is not there any more."""
        if isinstance(sealed.bloom, WordBloom):
            sealed.bloom.is_changed = False
        self.damaged.discard(sealed)
        self.lost.discard(sealed)

    def confirm(self, rows: Rows, located: KnownIds) -> dict[int, First]:
        """`look_up` of all rows of `located.maybe`."""
        return self.look_up(rows, located.maybe)

    def look_up(self, rows: Rows, maybe: Sequence[tuple[SealedIds, I64]]) -> dict[int, First]:
        """For each row of `maybe` (files, and the rows that may be there) that really is an old id: the first send's
        numbers.

        A row for which a file cannot be read now (the store's error, ids that are made anew) is WAITING, and says for
        which; where it can never be read, it is UNREADABLE."""
        found: dict[int, First] = {}
        keys: U64 | None = None
        for each, which in maybe:
            sealed = cast(SealedInterval, each)
            if not sealed.is_current:
                self._look_up_first(sealed, rows, which, found)
                continue
            if keys is None:
                keys = conversation_keys(rows.names_offsets, rows.names_data, self._seed)[rows.conv]
            self._look_up(sealed, rows, keys, which, found)
        return found

    def _look_up(self, sealed: SealedInterval, rows: Rows, keys: U64, which: I64, found: dict[int, First]) -> None:
        n = len(rows)
        hit = np.zeros(n, np.bool_)
        out = np.empty((n, packing.COLUMNS), np.uint64)
        if sealed.is_filter_changed and sealed not in self.damaged:
            self._failed(sealed, DerivedError(sealed.interval.name("bloom"), "a block does not verify"))
        for lost, error in sealed.find(rows.fps, rows.ids, keys, which, hit, out):
            self._failed(sealed, error)
            found.update(self._unknown(lost, sealed, found))
        for i in which[hit[which]].tolist():
            found[i] = _first(out[i].view(np.int64).tolist(), int(out[i, packing.PAYLOAD]))

    def _look_up_first(self, sealed: SealedInterval, rows: Rows, which: I64, found: dict[int, First]) -> None:
        if sealed not in self.damaged:
            try:
                candidates = sealed.candidates(rows.fps[which])
            except (DerivedError, StorageError) as e:
                self._failed(sealed, e)
            else:
                found.update(self._segments.look_up(rows, which, candidates, found))
                return
        found.update(self._unknown(which, sealed, found))

    def _unknown(self, which: I64, sealed: SealedInterval, found: dict[int, First]) -> dict[int, First]:
        """What is said of rows for which a file cannot be read; a row that is known from another one stays so."""
        status = RowStatus.UNREADABLE if sealed in self.lost else RowStatus.WAITING
        unknown = First(0, 0, 0, 0, 0, 0, status, sealed)
        return {i: unknown for i in which.tolist() if i not in found}

    def _failed(self, sealed: SealedInterval, error: Exception) -> None:
        if sealed.is_retired:
            return  # its rows are asked again where its ids are now
        log.warning("an interval of ids cannot be read as it should be: %s", error)
        if isinstance(error, DerivedError):
            self.damaged.add(sealed)


def _first(values: list[int], payload: int) -> First:
    return First(
        seq=values[packing.SEQ],
        payload=payload,
        log_position=values[packing.LOG_POSITION],
        row=values[packing.ROW],
        epoch=values[packing.EPOCH],
        server_ts=values[packing.SERVER_TS],
    )
