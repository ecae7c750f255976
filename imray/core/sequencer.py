"""Numbering: `plan` says what a batch will become. Pure: no Ray, no I/O, no clock, and nothing changes.

Does not own bytes: bodies never come here, only ids, fingerprints and names as columns. Does not change the state:
`imray.core.fold` does, when what was planned is reserved, and when it is durable.
"""

from __future__ import annotations

import numpy as np

from imray.core.columns import Commit, First, KnownIds, Plan, Rows, RowStatus
from imray.core.dedup import IdTable, SealedIds
from imray.core.routing import slot_of
from imray.core.state import ShardState
from imray.kernels.arrays import I32, I64, Bools
from imray.kernels.id_table import first_in_batch, slots_for
from imray.kernels.numbering import assign_new, number

_THIS_SEGMENT = -1


def locate(state: ShardState, rows: Rows) -> KnownIds:
    """Find the rows' conversations and ids in memory."""
    known = state.conversations.find(rows.names_data, rows.names_offsets)
    fresh = assign_new(rows.conv, known, state.conversations.count)
    conv = known[rows.conv]
    recent = state.recent.find(rows.fps, rows.ids, conv)
    frozen = state.frozen.find(rows.fps, rows.ids, conv) if state.frozen is not None else None
    maybe: list[tuple[SealedIds, I64]] = []
    for ids, hit in state.maybe_sealed(rows.fps):
        for table in (recent, frozen):
            if table is not None:
                hit &= table < 0
        if hit.any():
            maybe.append((ids, np.flatnonzero(hit)))
    return KnownIds(conv, fresh, recent, frozen, maybe)


def plan(
    state: ShardState,
    rows: Rows,
    located: KnownIds,
    old: dict[int, First],
    slot: int = 0,
    forbidden: Bools | None = None,
) -> Plan:
    """Number the new rows for the writer of `slot` and find the duplicates and conflicts. No side effect.

    `old` holds what a look into sealed files confirmed for the rows of `located.maybe`. A row whose id is in flight
    elsewhere is IN_FLIGHT; one that the shard itself is writing is a duplicate to the shard, whose commits become
    durable in their order, and in flight to everybody else.

    `forbidden` (None: nowhere) holds where a row's sender may not send: it is FORBIDDEN, unless it repeats one that was
    sent. A conversation that is not known has such rows only, or none: then it is not made."""
    n = len(rows)
    in_batch, repeated = _find_repeated(rows, located, forbidden)
    firsts: _Firsts | None = None
    if repeated or old or forbidden is not None or located.recent is not None or located.frozen is not None:
        firsts = _find_firsts(state, rows, located, old, slot, in_batch, forbidden)
    status = np.zeros(n, np.uint8) if firsts is None else firsts.status
    seq = np.empty(n, np.int64) if firsts is None else firsts.seq
    conversations = state.conversations
    conversations.reserve(len(located.fresh))
    touched = np.empty(min(n, conversations.count + len(located.fresh)), np.int32)
    k = number(located.conv, status, conversations.heads, conversations.scratch, seq, touched)
    touched = touched[:k]
    touched_first = conversations.heads[touched] + 1
    touched_last = conversations.heads[touched] + conversations.scratch[touched]
    conversations.scratch[touched] = 0
    return Plan(
        status=status,
        seq=seq,
        new_rows=None if firsts is None else firsts.complete(),
        row_in_segment=np.arange(n, dtype=np.uint32) if firsts is None else firsts.row,
        log_position=None if firsts is None else firsts.log_position,
        epoch=None if firsts is None else firsts.epoch,
        server_ts=None if firsts is None else firsts.server_ts,
        conv=located.conv,
        fresh=_made(located, forbidden),
        touched=touched,
        touched_first=touched_first,
        touched_last=touched_last,
    )


def _find_repeated(rows: Rows, located: KnownIds, forbidden: Bools | None) -> tuple[I32, int]:
    """For each row an earlier one with the same id, or -1; how many have one. What is forbidden repeats nothing, and
    nothing repeats it."""
    n = len(rows)
    in_batch = np.empty(n, np.int32)
    if forbidden is None:
        return in_batch, first_in_batch(rows.fps, rows.ids, located.conv, slots_for(n), in_batch)
    in_batch[:] = -1
    rest = np.flatnonzero(~forbidden)
    found = np.empty(len(rest), np.int32)
    k = first_in_batch(rows.fps[rest], rows.ids[rest], located.conv[rest], slots_for(len(rest)), found)
    again = found >= 0
    in_batch[rest[again]] = rest[found[again]]
    return in_batch, k


def _made(located: KnownIds, forbidden: Bools | None) -> I32:
    """The new conversations of a batch, but where nobody may send to one: none is made then, nor its name kept."""
    fresh = located.fresh
    if forbidden is not None and len(fresh) and forbidden[int(np.argmax(located.conv))]:
        return fresh[:0]  # the highest index is a new one's, and what holds for one holds for all
    return fresh


class _Firsts:
    """The columns of a plan in which some rows may have been sent before: what the first sends became."""

    def __init__(self, n: int) -> None:
        self.status = np.zeros(n, np.uint8)
        self.seq = np.empty(n, np.int64)
        self.row = np.empty(n, np.uint32)
        self.log_position = np.full(n, _THIS_SEGMENT, np.int64)
        self.epoch = np.full(n, _THIS_SEGMENT, np.int64)
        self.server_ts = np.full(n, _THIS_SEGMENT, np.int64)
        self._again: I64 = np.empty(0, np.int64)
        """Rows whose first send is in the same batch, and new."""
        self._first_rows: I32 = np.empty(0, np.int32)
        """The rows of those first sends."""

    def from_table(self, state: ShardState, table: IdTable, entry: I32, rows: Rows, slot: int) -> None:
        """Fill in the rows that the table knows: the first send's numbers."""
        hit = np.flatnonzero(entry >= 0)
        e = entry[hit]
        same = table.payload[e] == rows.payload[hit]
        self.status[hit] = np.where(same, RowStatus.DUPLICATE, RowStatus.CONFLICT)
        self.seq[hit] = table.seq[e]
        self.row[hit] = table.row[e]
        log_positions = table.log_position[e]
        self.log_position[hit] = log_positions
        for p in np.unique(log_positions).tolist():
            at = hit[log_positions == p]
            if p < 0 or (slot and slot_of(p) == 0 and p > state.log.segment):
                self.status[at] = RowStatus.IN_FLIGHT
                continue
            self.epoch[at] = state.epoch_of(p)
            self.server_ts[at] = state.segment_ts[p]

    def from_files(self, old: dict[int, First], rows: Rows) -> None:
        """Fill in the rows that a look into files found; there may be thousands."""
        at = np.fromiter(old, np.int64, len(old))
        firsts = list(old.values())
        same = np.array([f.payload for f in firsts], np.uint64) == rows.payload[at]
        known = np.where(same, RowStatus.DUPLICATE, RowStatus.CONFLICT)
        said = np.array([RowStatus.NEW if f.status is None else f.status for f in firsts], np.uint8)
        self.status[at] = np.where(said == RowStatus.NEW, known, said)
        self.seq[at] = [f.seq for f in firsts]
        self.row[at] = [f.row for f in firsts]
        self.log_position[at] = [f.log_position for f in firsts]
        self.epoch[at] = [f.epoch for f in firsts]
        self.server_ts[at] = [f.server_ts for f in firsts]

    def forbid(self, forbidden: Bools) -> None:
        """Nothing of these rows is written, nor told. But a retry of what was, or may have been, is what it was."""
        at = np.flatnonzero(forbidden & ((self.status == RowStatus.NEW) | (self.status == RowStatus.CONFLICT)))
        self.status[at] = RowStatus.FORBIDDEN
        self.seq[at] = 0
        self.row[at] = 0

    def from_batch(self, in_batch: I32, rows: Rows) -> None:
        """Mark the rows that repeat a new one of the same batch; their numbers come with `complete`."""
        self._again = np.flatnonzero((in_batch >= 0) & (self.status == RowStatus.NEW))
        self._first_rows = in_batch[self._again]
        same = rows.payload[self._again] == rows.payload[self._first_rows]
        self.status[self._again] = np.where(same, RowStatus.DUPLICATE, RowStatus.CONFLICT)

    def complete(self) -> I64:
        """The rows that are new, whose numbers are there now; those that repeat them get the same."""
        new_rows = np.flatnonzero(self.status == RowStatus.NEW)
        self.row[new_rows] = np.arange(len(new_rows), dtype=np.uint32)
        self.seq[self._again] = self.seq[self._first_rows]
        self.row[self._again] = self.row[self._first_rows]
        return new_rows


def _find_firsts(
    state: ShardState,
    rows: Rows,
    located: KnownIds,
    old: dict[int, First],
    slot: int,
    in_batch: I32,
    forbidden: Bools | None,
) -> _Firsts:
    firsts = _Firsts(len(rows))
    for table, entry in ((state.recent, located.recent), (state.frozen, located.frozen)):
        if table is not None and entry is not None:
            firsts.from_table(state, table, entry, rows, slot)
    if old:
        firsts.from_files(old, rows)
    if forbidden is not None:
        firsts.forbid(forbidden)
    firsts.from_batch(in_batch, rows)
    return firsts


def commit_of(plan: Plan, rows: Rows, log_position: int, epoch: int, server_ts: int) -> Commit:
    """The plan's new rows as they will stand at `log_position`."""
    keep = plan.new_rows
    kept = rows if keep is None else _take(rows, keep)
    pick = slice(None) if keep is None else keep
    return Commit(
        log_position=log_position,
        epoch=epoch,
        server_ts=server_ts,
        rows=kept,
        conv=plan.conv[pick],
        fresh=plan.fresh,
        seq=plan.seq[pick],
        row=plan.row_in_segment[pick],
        touched=plan.touched,
        touched_first=plan.touched_first,
        touched_last=plan.touched_last,
    )


def _take(rows: Rows, keep: I64) -> Rows:
    return Rows(
        names_data=rows.names_data,
        names_offsets=rows.names_offsets,
        conv=rows.conv[keep],
        ids=rows.ids[keep],
        fps=rows.fps[keep],
        payload=rows.payload[keep],
    )
