"""Changing the state: `reserve` what was planned, `mark_durable` what is written; `apply` does both to a segment.

The live path and recovery go through the same functions, so folding the logs gives the live state. Live, numbers and
ids are reserved before the write, so that the next batch can be planned meanwhile; if the write fails the state is
thrown away and read from the log. Pure: no Ray, no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from imray.core.columns import Commit, Control, Rows
from imray.core.dedup import IdTable, SealedIds
from imray.core.errors import FencedError, InvalidError
from imray.core.log_progress import Fence, LogProgress
from imray.core.members import CursorsChange, MembersChange
from imray.core.postings import Postings
from imray.core.routing import segment_of, slot_of
from imray.core.state import HotGroup, ShardState
from imray.kernels.arrays import I32, I64, U32, Bools
from imray.kernels.numbering import assign_new, number

_FEW = 16
"""Up to so many a loop is faster than numpy's set functions (60 us a call, and a block has one conversation)."""


@dataclass(frozen=True)
class ReadBack:
    """What stands in a segment; conversations are indices into the names of `rows`."""

    rows: Rows
    seq: I64
    row: U32
    voids: tuple[tuple[int, int, int], ...] = ()
    """Conversation, first and last number."""
    controls: tuple[Control, ...] = ()
    members: tuple[MembersChange, ...] = ()
    cursors: tuple[CursorsChange, ...] = ()
    grants: tuple[tuple[int, int, int], ...] | None = None
    """A partition's segment: conversation, first number and count of each block that it was granted."""
    sequencer: int = 0
    """The epoch of the home shard that granted them."""


def commit_read_back(state: ShardState, log_position: int, epoch: int, server_ts: int, found: ReadBack) -> Commit:
    """The commit that a segment read back stands for; InvalidError where its numbers do not follow the state's."""
    rows = found.rows
    voids = found.voids
    known = state.conversations.find(rows.names_data, rows.names_offsets)
    # a batch that was split by log keeps the names of the other parts' conversations
    if found.grants is not None and (known[rows.conv] < 0).any():
        raise InvalidError("it has rows of a conversation that was never hot")
    others = [v[0] for v in voids]
    others += [c.conv for each in (found.controls, found.members, found.cursors) for c in each]
    order = np.concatenate([rows.conv, np.array(others, np.int32)]) if others else rows.conv
    fresh = assign_new(order, known, state.conversations.count)
    state.conversations.reserve(len(fresh))
    conv = known[rows.conv]
    if found.grants is not None:
        touched, first, last = _check_blocks(state, found, known)
    else:
        touched, first, last = _check_numbers(state, conv, found.seq, found.row, bool(voids))
    if voids:
        touched = np.concatenate([touched, np.array([known[v[0]] for v in voids], np.int32)])
        first = np.concatenate([first, np.array([v[1] for v in voids])])
        last = np.concatenate([last, np.array([v[2] for v in voids])])
    controls = tuple(replace(c, conv=int(known[c.conv])) for c in found.controls)
    members = tuple(replace(m, conv=int(known[m.conv])) for m in found.members)
    for change in members:
        # of a hot group, numbers before it may stand in logs that are read later
        state.members.check(change, None if change.conv in state.hot else int(state.conversations.heads[change.conv]))
    return Commit(
        log_position=log_position,
        epoch=epoch,
        server_ts=server_ts,
        rows=rows,
        conv=conv,
        fresh=fresh,
        seq=found.seq,
        row=found.row,
        touched=touched,
        touched_first=first,
        touched_last=last,
        controls=controls,
        members=members,
        cursors=tuple(replace(c, conv=int(known[c.conv])) for c in found.cursors),
        sequencer=found.sequencer,
    )


def check_sequencer(state: ShardState, slot: int, sequencer: int) -> None:
    """Whether a segment of a partition's log may name this epoch of its home shard, whose own log was read before.

    InvalidError: it may not, wherever it was read. FencedError: the epoch is newer than the home shard's log as it was
    read, so that another writer took over meanwhile."""
    if sequencer < state.partitions[slot].sequencer:
        raise InvalidError(
            f"its grants are of epoch {sequencer} of the home shard, but the log before it names "
            f"epoch {state.partitions[slot].sequencer}"
        )
    if sequencer > state.log.epoch:
        raise FencedError(f"epoch {sequencer} of the home shard took over from epoch {state.log.epoch}")
    if sequencer and not any(epoch == sequencer for _, epoch in state.log.epoch_starts):
        raise InvalidError(f"its home shard has no epoch {sequencer}: no valid grant")


def _check_numbers(state: ShardState, conv: I32, seq: I64, row: U32, with_voids: bool) -> tuple[I32, I64, I64]:
    """Conversations, first and last numbers of rows read back, which must go on from the state's heads.

    Beside void records, and where others number, too (hot groups), they may jump, but only up."""
    conversations = state.conversations
    expected = np.empty(len(conv), np.int64)
    touched = np.empty(len(conv), np.int32)
    k = number(conv, np.zeros(len(conv), np.uint8), conversations.heads, conversations.scratch, expected, touched)
    touched = touched[:k]
    counts = conversations.scratch[touched].copy()
    conversations.scratch[touched] = 0
    may_jump = np.isin(conv, list(state.hot)) if state.hot else np.zeros(len(conv), np.bool_)
    wrong = np.flatnonzero(np.where(may_jump | with_voids, expected > seq, expected != seq))
    if len(wrong):
        i = int(wrong[0])
        raise InvalidError(f"row {row[i]} has conv_seq {seq[i]}, but the log before it makes it {expected[i]}")
    first = conversations.heads[touched] + 1
    last = first + counts - 1
    for i in np.flatnonzero(np.isin(touched, conv[may_jump]) | with_voids).tolist():
        its = seq[conv == touched[i]]
        last[i] = its.max()
        if not with_voids:
            first[i] = int(its.min())
            if last[i] - first[i] + 1 != len(its) or (np.diff(its) != 1).any():
                raise InvalidError(f"the numbers {first[i]} to {last[i]} are not {len(its)} in a row")
    return touched, first, last


def _check_blocks(state: ShardState, found: ReadBack, known: I32) -> tuple[I32, I64, I64]:
    """The same for a partition's segment: every row has the next number of a block, and every block is used up and
    was within what its home shard may have granted."""
    assert found.grants is not None
    starts = np.zeros(len(known), np.int64)
    counts = np.zeros(len(known), np.int64)
    for conv, begin, count in found.grants:
        index: int = int(known[conv])
        group = state.hot.get(index)
        limit = group.ceiling if group is not None else int(state.conversations.heads[index])
        if counts[conv] or count < 1 or begin < 1 or begin + count - 1 > limit:
            raise InvalidError(f"no valid grant: {count} numbers from {begin}, where up to {limit} may be granted")
        starts[conv] = begin - 1
        counts[conv] = count
    expected = np.empty(len(found.seq), np.int64)
    touched = np.empty(len(found.seq), np.int32)
    used = np.zeros(len(known), np.int32)
    local = found.rows.conv
    touched = touched[: number(local, np.zeros(len(local), np.uint8), starts, used, expected, touched)]
    wrong = np.flatnonzero(expected != found.seq)
    if len(wrong):
        i = int(wrong[0])
        raise InvalidError(f"row {found.row[i]} has conv_seq {found.seq[i]}, its grant makes it {expected[i]}")
    if (used != counts).any():
        raise InvalidError("its rows are not as many as the numbers that it was granted")
    return known[touched], starts[touched] + 1, starts[touched] + counts[touched]


def reserve(state: ShardState, commit: Commit) -> tuple[IdTable, int, int]:
    """Give out the commit's numbers and remember its ids: the table that has them, first and end entry."""
    conversations = state.conversations
    table = state.recent
    conversations.add(commit.rows.names_data, commit.rows.names_offsets, commit.fresh)
    first = table.count
    if len(commit.seq):
        table.add(
            fps=commit.rows.fps,
            ids=commit.rows.ids,
            conv=commit.conv,
            seq=commit.seq,
            payload=commit.rows.payload,
            log_position=commit.log_position,
            row=commit.row,
        )
        if commit.log_position > 0:
            state.segment_ts[commit.log_position] = commit.server_ts
    state.reserve_members(commit.members, commit.cursors)
    if len(commit.touched):
        np.maximum.at(conversations.heads, commit.touched, commit.touched_last)
        conversations.head_changed(commit.touched)
    return table, first, table.count


def mark_durable(state: ShardState, commit: Commit, digest: bytes) -> None:
    """The commit is durable: readers may see it."""
    advance_log(state, commit.log_position, commit.epoch, digest, commit.sequencer, commit.fence)
    for control in commit.controls:
        apply_control(state, control)
    state.mark_members_durable(commit.members, commit.cursors)
    mark_numbers_durable(state, commit.log_position, (commit.touched, commit.touched_first, commit.touched_last))


def advance_log(
    state: ShardState,
    log_position: int,
    epoch: int,
    digest: bytes,
    sequencer: int,
    fence: Fence | None = None,
    frozen: bool = False,
) -> None:
    """One more segment of a log is durable. `frozen`: its ids are in the frozen table."""
    slot = slot_of(log_position)
    progress = state.progress(slot)
    progress.advance(segment_of(log_position), epoch, digest, fence)
    progress.sequencer = max(progress.sequencer, sequencer)
    if frozen:
        state.frozen_partitions[slot] = progress.copy()


def mark_numbers_durable(
    state: ShardState, log_position: int, touched: tuple[I32, I64, I64], frozen: bool = False
) -> None:
    """A segment's numbers are messages, or void: conversations, first and last number of each."""
    conv, first, last = touched
    if not len(conv):
        return
    mark_final_numbers(state, conv, first, last)
    postings = state.frozen_postings if frozen else state.postings
    postings.add(log_position, conv, first, last)
    if state.hot and are_hot(state, conv).any():
        postings.ascending = False  # a void record comes after higher numbers


def mark_final_numbers(state: ShardState, conv: I32, first: I64, last: I64) -> None:
    """Ranges of numbers are durable or void. InvalidError where some of them were before."""
    stable = state.conversations.stable
    if len(conv) == 1 and (group := state.hot.get(int(conv[0]))) is not None:
        # a block, almost always: a tenth of what the columns' way takes
        group.mark_final(int(first[0]), int(last[0]))
        stable[conv[0]] = group.stable
        return
    if state.hot:
        is_hot = are_hot(state, conv)
        for i in np.flatnonzero(is_hot).tolist():
            group = state.hot[int(conv[i])]
            group.mark_final(int(first[i]), int(last[i]))
            stable[conv[i]] = group.stable
        conv = conv[~is_hot]
        last = last[~is_hot]
    np.maximum.at(stable, conv, last)


def are_hot(state: ShardState, conv: I32) -> Bools:
    """True for each conversation that is hot."""
    if len(conv) <= _FEW:
        return np.array([c in state.hot for c in conv.tolist()], np.bool_)
    return np.isin(conv, list(state.hot))


def apply_control(state: ShardState, control: Control) -> None:
    """A conversation turned hot or cold, or more is known of a hot one."""
    conversations = state.conversations
    group = state.hot.get(control.conv)
    if not control.partitions:
        state.hot.pop(control.conv, None)
        conversations.raise_head(control.conv, control.number)
        return
    if group is None:
        held = state.members.afters_in_flight(control.conv)
        state.hot[control.conv] = HotGroup(control.partitions, control.ceiling, control.number, control.by_rate, held)
        conversations.stable[control.conv] = control.number
    else:
        group.partitions = control.partitions
        group.by_rate = control.by_rate
        group.ceiling = control.ceiling if control.exact else max(group.ceiling, control.ceiling)
    for slot in range(1, control.partitions + 1):
        state.partitions.setdefault(slot, LogProgress())


def apply(state: ShardState, commit: Commit, digest: bytes) -> None:
    """Advance the state by one segment that is durable: recovery. InvalidError where it does not follow."""
    progress = state.progress(slot_of(commit.log_position))
    progress.check(segment_of(commit.log_position), commit.epoch)
    reserve(state, commit)
    mark_durable(state, commit, digest)


def freeze(state: ShardState) -> IdTable:
    """Set the recent ids aside to be sealed; new ones go into an empty table. One at a time."""
    if state.frozen is not None:
        raise InvalidError("the previous freeze is not sealed yet")
    state.frozen = state.recent
    state.frozen_postings = state.postings
    state.frozen_partitions = {slot: progress.copy() for slot, progress in state.partitions.items()}
    table = state.spare
    state.spare = None
    state.recent = IdTable(state.log.segment) if table is None else table
    state.recent.base_segment = state.log.segment
    state.postings = Postings()
    state.member_segments = 0
    return state.frozen


def thaw(state: ShardState) -> None:
    """Take the last `freeze` back, before anything else was done: its ids could not be sealed. A checkpoint made of
    what was frozen before, and of where the log stands later, would leave out all that lies between."""
    assert state.frozen is not None
    if state.recent.count or state.postings.entries:
        raise InvalidError("ids were added since the freeze")
    state.spare = state.recent
    state.recent = state.frozen
    state.frozen = None
    state.postings = state.frozen_postings
    state.frozen_postings = Postings()
    state.frozen_partitions = {}


def sealed(state: ShardState, files: list[SealedIds]) -> IdTable | None:
    """The frozen ids are in the last of `files` now, which are all there are. Returned: their table, which nobody uses
    any more; cleared, it may become `state.spare`."""
    state.sealed = files
    table = state.frozen
    state.frozen = None
    state.frozen_postings = Postings()
    covered = {slot: progress.segment for slot, progress in state.frozen_partitions.items()}
    covered[0] = state.recent.base_segment
    state.covered = covered
    state.segment_ts = {
        log_position: ts
        for log_position, ts in state.segment_ts.items()
        if segment_of(log_position) > covered.get(slot_of(log_position), 0)
    }
    return table
