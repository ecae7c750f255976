"""Numbering: `plan` says what a batch will become, `apply` makes it so. Both pure: no Ray, no I/O, no clock.

The same `apply` serves the live path and recovery, so folding the log gives the live state.
Does not own bytes: bodies never come here, only ids, fingerprints and names as columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from imray.core.columns import Commit, First, Located, Plan, Rows
from imray.core.conversations import Conversations, assign_new
from imray.core.dedup import IdTable, SealedIds, first_in_batch, slots_for
from imray.core.errors import InvalidError
from imray.core.hashing import I32, I64, jit
from imray.core.postings import Postings

NEW = 0
DUPLICATE = 1
CONFLICT = 2

_THIS_SEGMENT = -1


@dataclass
class ShardState:
    """All that a shard's writer knows. Folding the log from nothing gives the same."""

    seed: int
    conversations: Conversations = field(default_factory=Conversations)
    recent: IdTable = field(default_factory=lambda: IdTable(0))
    frozen: IdTable | None = None
    """Recent ids that are being sealed into a file right now."""
    sealed: list[SealedIds] = field(default_factory=list)
    segment: int = 0
    epoch: int = 0
    digest: bytes = bytes(16)
    epoch_starts: list[tuple[int, int]] = field(default_factory=list)
    """(first segment, epoch), ascending."""
    segment_ts: dict[int, int] = field(default_factory=dict)
    """server_ts of the segments that `recent` and `frozen` speak of."""
    spare: IdTable | None = None
    """An empty table whose memory the next one takes over."""
    postings: Postings = field(default_factory=Postings)
    frozen_postings: Postings = field(default_factory=Postings)

    def epoch_of(self, segment: int) -> int:
        """The epoch that wrote a segment."""
        return next((e for first, e in reversed(self.epoch_starts) if first <= segment), 0)


@jit
def _number(conv: I32, status: np.ndarray, heads: I64, counts: I32, seq: I64, touched: I32) -> int:
    n = 0
    for i in range(len(conv)):
        if status[i] == 0:
            c = conv[i]
            if counts[c] == 0:
                touched[n] = c
                n += 1
            counts[c] += 1
            seq[i] = heads[c] + counts[c]
    return n


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


def plan(state: ShardState, rows: Rows, located: Located, old: dict[int, First]) -> Plan:
    """Number the new rows and find the duplicates and conflicts. No side effect.

    `old` holds what a look into sealed files confirmed for the rows of `located.maybe`."""
    n = len(rows)
    status = np.zeros(n, np.uint8)
    seq = np.empty(n, np.int64)
    row = np.empty(n, np.uint32)
    in_batch = np.empty(n, np.int32)
    repeated = first_in_batch(rows.fps, rows.ids, located.conv, slots_for(n), in_batch)
    segment = epoch = server_ts = None
    if repeated or old or located.recent is not None or located.frozen is not None:
        segment = np.full(n, _THIS_SEGMENT, np.int64)
        epoch = np.full(n, _THIS_SEGMENT, np.int64)
        server_ts = np.full(n, _THIS_SEGMENT, np.int64)
        for table, entry in ((state.recent, located.recent), (state.frozen, located.frozen)):
            if table is not None and entry is not None:
                _from_table(state, table, entry, rows, status, seq, row, segment, epoch, server_ts)
        for i, first in old.items():
            status[i] = DUPLICATE if first.payload == rows.payload[i] else CONFLICT
            seq[i], row[i], segment[i] = first.seq, first.row, first.segment
            epoch[i], server_ts[i] = first.epoch, first.server_ts
        again = np.flatnonzero((in_batch >= 0) & (status == NEW))
        first_rows = in_batch[again]
        status[again] = np.where(rows.payload[again] == rows.payload[first_rows], DUPLICATE, CONFLICT)
    conversations = state.conversations
    conversations.reserve(len(located.fresh))
    touched = np.empty(min(n, conversations.count + len(located.fresh)), np.int32)
    k = _number(located.conv, status, conversations.heads, conversations.scratch, seq, touched)
    touched = touched[:k]
    first_seq = conversations.heads[touched] + 1
    last_seq = conversations.heads[touched] + conversations.scratch[touched]
    conversations.scratch[touched] = 0
    if segment is None:
        new_rows = None
        row[:] = np.arange(n, dtype=np.uint32)
    else:
        new_rows = np.flatnonzero(status == NEW)
        row[new_rows] = np.arange(len(new_rows), dtype=np.uint32)
        seq[again], row[again] = seq[first_rows], row[first_rows]
    return Plan(
        status, seq, new_rows, row, segment, epoch, server_ts,
        located.conv, located.fresh, touched, first_seq, last_seq,
    )  # fmt: skip


def _from_table(
    state: ShardState,
    table: IdTable,
    entry: I32,
    rows: Rows,
    status: np.ndarray,
    seq: I64,
    row: np.ndarray,
    segment: I64,
    epoch: I64,
    server_ts: I64,
) -> None:
    """Fill in the rows that the table knows: the first send's numbers."""
    hit = np.flatnonzero(entry >= 0)
    e = entry[hit]
    status[hit] = np.where(table.payload[e] == rows.payload[hit], DUPLICATE, CONFLICT)
    seq[hit] = table.seq[e]
    row[hit] = table.row[e]
    segments = table.segment[e].astype(np.int64) + table.base_segment
    segment[hit] = segments
    for s in np.unique(segments):
        at = hit[segments == s]
        epoch[at] = state.epoch_of(int(s))
        server_ts[at] = state.segment_ts[int(s)]


def commit_of(plan: Plan, rows: Rows, segment: int, epoch: int, server_ts: int, digest: bytes) -> Commit:
    """What `apply` takes once the plan's new rows are durable in `segment`."""
    keep = plan.new_rows
    kept = rows if keep is None else _take(rows, keep)
    pick = slice(None) if keep is None else keep
    return Commit(
        segment, epoch, server_ts, digest, kept,
        plan.conv[pick], plan.fresh, plan.seq[pick], plan.row_in_segment[pick],
        plan.touched, plan.touched_first, plan.touched_last,
    )  # fmt: skip


def commit_read_back(
    state: ShardState,
    segment: int,
    epoch: int,
    server_ts: int,
    digest: bytes,
    rows: Rows,
    seq: I64,
    row: np.ndarray,
    voids: tuple[tuple[int, int, int], ...],
) -> Commit:
    """The commit that a segment read back stands for; InvalidError where its numbers do not follow the state's.

    `voids` name conversations by their index in `rows`' names."""
    known = state.conversations.find(rows.names_data, rows.names_offsets)
    order = rows.conv if not voids else np.concatenate([rows.conv, np.array([v[0] for v in voids], np.int32)])
    fresh = assign_new(order, known, state.conversations.count)
    conversations = state.conversations
    conversations.reserve(len(fresh))
    conv = known[rows.conv]
    touched, first, last = _check_numbers(state, conv, seq, row, bool(voids))
    if voids:
        touched = np.concatenate([touched, np.array([known[v[0]] for v in voids], np.int32)])
        first = np.concatenate([first, np.array([v[1] for v in voids])])
        last = np.concatenate([last, np.array([v[2] for v in voids])])
    return Commit(segment, epoch, server_ts, digest, rows, conv, fresh, seq, row, touched, first, last)


def _check_numbers(state: ShardState, conv: I32, seq: I64, row: np.ndarray, with_voids: bool) -> tuple[I32, I64, I64]:
    """Conversations, first and last numbers of rows read back, which must go on from the state's heads.

    Beside void records numbers may jump, but only up."""
    conversations = state.conversations
    expected = np.empty(len(conv), np.int64)
    touched = np.empty(len(conv), np.int32)
    k = _number(conv, np.zeros(len(conv), np.uint8), conversations.heads, conversations.scratch, expected, touched)
    touched = touched[:k]
    counts = conversations.scratch[touched].copy()
    conversations.scratch[touched] = 0
    wrong = np.flatnonzero(expected > seq if with_voids else expected != seq)
    if len(wrong):
        i = int(wrong[0])
        raise InvalidError(f"row {row[i]} has conv_seq {seq[i]}, but the log before it makes it {expected[i]}")
    first = conversations.heads[touched] + 1
    if not with_voids:
        return touched, first, first + counts - 1
    return touched, first, np.array([seq[conv == c].max() for c in touched], np.int64)


def apply(state: ShardState, commit: Commit) -> None:
    """Advance the state by one durable commit. The only function that changes what was numbered."""
    if commit.segment != state.segment + 1 or commit.epoch < state.epoch:
        raise InvalidError(
            f"segment {commit.segment} of epoch {commit.epoch} cannot follow "
            f"segment {state.segment} of epoch {state.epoch}"
        )
    conversations = state.conversations
    conversations.add(commit.rows.names_data, commit.rows.names_offsets, commit.fresh)
    if len(commit.seq):
        state.recent.add(
            commit.rows.fps,
            commit.rows.ids,
            commit.conv,
            commit.seq,
            commit.rows.payload,
            commit.segment,
            commit.row,
        )
        state.segment_ts[commit.segment] = commit.server_ts
    if len(commit.touched):
        np.maximum.at(conversations.heads, commit.touched, commit.touched_last)
        state.postings.add(commit.segment, commit.touched, commit.touched_first, commit.touched_last)
    if commit.epoch != state.epoch:
        state.epoch_starts.append((commit.segment, commit.epoch))
    state.segment, state.epoch, state.digest = commit.segment, commit.epoch, commit.digest


def freeze(state: ShardState) -> IdTable:
    """Set the recent ids aside to be sealed; new ones go into an empty table. One at a time."""
    if state.frozen is not None:
        raise InvalidError("the previous freeze is not sealed yet")
    state.frozen, state.frozen_postings = state.recent, state.postings
    table, state.spare = state.spare, None
    state.recent = IdTable(state.segment) if table is None else table
    state.recent.base_segment = state.segment
    state.postings = Postings()
    return state.frozen


def sealed(state: ShardState, files: list[SealedIds]) -> IdTable | None:
    """The frozen ids are in `files` now, which replace all earlier ones. Returned: their table, which nobody uses any
    more; cleared, it may become `state.spare`."""
    state.sealed = files
    table, state.frozen = state.frozen, None
    state.frozen_postings = Postings()
    keep_after = state.recent.base_segment
    state.segment_ts = {s: ts for s, ts in state.segment_ts.items() if s > keep_after}
    return table


def _take(rows: Rows, keep: I64) -> Rows:
    return Rows(
        rows.names_data,
        rows.names_offsets,
        rows.conv[keep],
        rows.ids[keep],
        rows.fps[keep],
        rows.payload[keep],
    )
