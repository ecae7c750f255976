"""Numbering: `plan` says what a batch will become. Pure: no Ray, no I/O, no clock, and nothing changes.

Does not own bytes: bodies never come here, only ids, fingerprints and names as columns. Does not change the state:
`imray.core.fold` does, when what was planned is reserved, and when it is durable.
"""

from __future__ import annotations

import numpy as np

from imray.core.columns import Commit, First, Located, Plan, Rows
from imray.core.dedup import IdTable, SealedIds
from imray.core.routing import slot_of
from imray.core.state import ShardState
from imray.kernels.arrays import I32, I64, U8, U32
from imray.kernels.id_table import first_in_batch, slots_for
from imray.kernels.numbering import assign_new, number

NEW = 0
DUPLICATE = 1
CONFLICT = 2
IN_FLIGHT = 3
"""The same id was sent before and is not settled yet: whether it will be a message is unknown."""
UNREADABLE = 4
"""The id may have been sent before, in a segment that does not verify: it can be neither numbered nor answered."""
WAITING = 5
"""The id may have been sent before, and a file that says so is being made anew: to be sent again."""

_THIS_SEGMENT = -1


def locate(state: ShardState, rows: Rows) -> Located:
    """Find the rows' conversations and ids in memory."""
    known = state.conversations.find(rows.names_data, rows.names_offsets)
    fresh = assign_new(rows.conv, known, state.conversations.count)
    conv = known[rows.conv]
    recent = state.recent.find(rows.fps, rows.ids, conv)
    frozen = state.frozen.find(rows.fps, rows.ids, conv) if state.frozen is not None else None
    maybe: list[tuple[SealedIds, I64]] = []
    for ids in state.sealed:
        hit = ids.maybe(rows.fps)
        if hit is None:
            continue
        for table in (recent, frozen):
            if table is not None:
                hit &= table < 0
        if hit.any():
            maybe.append((ids, np.flatnonzero(hit)))
    return Located(conv, fresh, recent, frozen, maybe)


def plan(state: ShardState, rows: Rows, located: Located, old: dict[int, First], slot: int = 0) -> Plan:
    """Number the new rows for the writer of `slot` and find the duplicates and conflicts. No side effect.

    `old` holds what a look into sealed files confirmed for the rows of `located.maybe`. A row whose id is in flight
    elsewhere is IN_FLIGHT; one that the shard itself is writing is a duplicate to the shard, whose commits become
    durable in their order, and in flight to everybody else."""
    n = len(rows)
    status = np.zeros(n, np.uint8)
    seq = np.empty(n, np.int64)
    row = np.empty(n, np.uint32)
    in_batch = np.empty(n, np.int32)
    repeated = first_in_batch(rows.fps, rows.ids, located.conv, slots_for(n), in_batch)
    log_position = epoch = server_ts = None
    if repeated or old or located.recent is not None or located.frozen is not None:
        log_position = np.full(n, _THIS_SEGMENT, np.int64)
        epoch = np.full(n, _THIS_SEGMENT, np.int64)
        server_ts = np.full(n, _THIS_SEGMENT, np.int64)
        for table, entry in ((state.recent, located.recent), (state.frozen, located.frozen)):
            if table is not None and entry is not None:
                _from_table(state, table, entry, rows, slot, status, seq, row, log_position, epoch, server_ts)
        for i, first in old.items():
            if first.status is not None:
                status[i] = first.status
            else:
                status[i] = DUPLICATE if first.payload == rows.payload[i] else CONFLICT
            seq[i], row[i], log_position[i] = first.seq, first.row, first.log_position
            epoch[i], server_ts[i] = first.epoch, first.server_ts
        again = np.flatnonzero((in_batch >= 0) & (status == NEW))
        first_rows = in_batch[again]
        status[again] = np.where(rows.payload[again] == rows.payload[first_rows], DUPLICATE, CONFLICT)
    conversations = state.conversations
    conversations.reserve(len(located.fresh))
    touched = np.empty(min(n, conversations.count + len(located.fresh)), np.int32)
    k = number(located.conv, status, conversations.heads, conversations.scratch, seq, touched)
    touched = touched[:k]
    first_seq = conversations.heads[touched] + 1
    last_seq = conversations.heads[touched] + conversations.scratch[touched]
    conversations.scratch[touched] = 0
    if log_position is None:
        new_rows = None
        row[:] = np.arange(n, dtype=np.uint32)
    else:
        new_rows = np.flatnonzero(status == NEW)
        row[new_rows] = np.arange(len(new_rows), dtype=np.uint32)
        seq[again], row[again] = seq[first_rows], row[first_rows]
    return Plan(
        status, seq, new_rows, row, log_position, epoch, server_ts,
        located.conv, located.fresh, touched, first_seq, last_seq,
    )  # fmt: skip


def _from_table(
    state: ShardState,
    table: IdTable,
    entry: I32,
    rows: Rows,
    slot: int,
    status: U8,
    seq: I64,
    row: U32,
    log_position: I64,
    epoch: I64,
    server_ts: I64,
) -> None:
    """Fill in the rows that the table knows: the first send's numbers."""
    hit = np.flatnonzero(entry >= 0)
    e = entry[hit]
    status[hit] = np.where(table.payload[e] == rows.payload[hit], DUPLICATE, CONFLICT)
    seq[hit] = table.seq[e]
    row[hit] = table.row[e]
    log_positions = table.log_position[e]
    log_position[hit] = log_positions
    for p in np.unique(log_positions).tolist():
        at = hit[log_positions == p]
        if p < 0 or (slot and slot_of(p) == 0 and p > state.log.segment):
            status[at] = IN_FLIGHT
            continue
        epoch[at] = state.epoch_of(p)
        server_ts[at] = state.segment_ts[p]


def commit_of(plan: Plan, rows: Rows, log_position: int, epoch: int, server_ts: int) -> Commit:
    """The plan's new rows as they will stand at `place`."""
    keep = plan.new_rows
    kept = rows if keep is None else _take(rows, keep)
    pick = slice(None) if keep is None else keep
    return Commit(
        log_position, epoch, server_ts, kept,
        plan.conv[pick], plan.fresh, plan.seq[pick], plan.row_in_segment[pick],
        plan.touched, plan.touched_first, plan.touched_last,
    )  # fmt: skip


def _take(rows: Rows, keep: I64) -> Rows:
    return Rows(
        rows.names_data,
        rows.names_offsets,
        rows.conv[keep],
        rows.ids[keep],
        rows.fps[keep],
        rows.payload[keep],
    )
