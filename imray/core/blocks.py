"""Blocks of numbers: what a home shard grants to the writers of a hot group, and what becomes of it.

A grant is outstanding until its segment is known to be durable, or until its partition's log was fenced and read and
does not have it. Nothing here ends a grant by time. Pure: no Ray, no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from imray.core.columns import First, KnownIds, Plan, Rows
from imray.core.dedup import IdTable
from imray.core.errors import FencedError, InvalidError
from imray.core.fold import advance_log, mark_numbers_durable, reserve
from imray.core.grants import Declined, DeclineReason, Granted, Report
from imray.core.log_progress import Fence
from imray.core.routing import log_position_of
from imray.core.sequencer import commit_of, plan
from imray.core.state import ShardState
from imray.kernels.arrays import I32, I64, Bools

OUTSTANDING_MAX = 4
"""Grants of one partition that are not known to be settled: one being written, one asked beside it, and reports on
their way. Past it the partition waits."""
_ANSWERS_KEPT = 4
_INDICES_MAX = 10_000


@dataclass
class Block:
    """One grant."""

    number: int
    slot: int
    epoch: int
    """Of the partition's writer."""
    touched: I32
    """State indices of the conversations that it has numbers of, from `touched_first` to `touched_last`."""
    touched_first: I64
    touched_last: I64
    table: IdTable
    entries: tuple[int, int]
    asked_at: float
    """By the caller's clock: for operators, and to choose whom to fence."""
    lost: bool = False
    """It will never be written: a record that says so is on its way."""


@dataclass
class Slot:
    """A partition as its home shard knows it."""

    epoch: int = 0
    """Of the writer that registered last; another one gets no grant."""
    answers: dict[int, Granted | Declined] = field(default_factory=dict)
    """Of its last asks: a repeated ask gets the same answer."""
    last_ask: int = 0


class Blocks:
    """The grants of one incarnation of a home shard."""

    def __init__(self, state: ShardState, sequencer: int, open_to_all: bool = True) -> None:
        """`sequencer`: the home shard's epoch. `open_to_all`: anybody may send to what nobody created."""
        self._state = state
        self._open_to_all = open_to_all
        self.sequencer = sequencer
        self.outstanding: dict[int, Block] = {}
        self._slots: dict[int, Slot] = {}
        self._grants = 0
        self._indices: dict[bytes, int] = {}
        """Of hot conversations, by name."""
        self.cooling: set[int] = set()
        """Conversations that turn cold: no more grants for them."""
        self.closed = False
        """No more grants at all: the shard stops in good order."""

    def slot_epoch(self, slot: int) -> int:
        """The epoch of the writer that is registered for a slot, 0 for none."""
        return self._slots.get(slot, Slot()).epoch

    def register(self, slot: int, epoch: int) -> bool:
        """A writer has fenced its log and been read: from now on it is the one. False where a newer one is."""
        known = self._slots.get(slot, Slot())
        if epoch < known.epoch:
            return False
        if epoch > known.epoch:
            self._slots[slot] = Slot(epoch)
        return True

    def answered(self, slot: int, epoch: int, ask: int) -> Granted | Declined | None:
        """What an ask gets without being looked at: the answer it had, or a refusal. None: look at it."""
        known = self._slots.get(slot)
        if known is None or known.epoch != epoch:
            return Declined(DeclineReason.FENCED)
        if ask in known.answers:
            return known.answers[ask]
        if ask <= known.last_ask:
            return Declined(DeclineReason.WAIT)  # an old call that was overtaken: nobody waits for it
        return None

    def decline(self, slot: int, ask: int, why: DeclineReason, rows: I64 | None = None) -> Declined:
        """End an ask without a grant. `answered` must have said None."""
        answer = Declined(why, rows)
        self._remember(slot, ask, answer)
        return answer

    def grant_at_once(self, slot: int, ask: int, rows: Rows, now: float) -> Granted | None:
        """The same as `grant` in one pass over the rows, for the plain case: one conversation, and every id is new.

        None where it is not, or there is another reason to look closer: nothing has changed then."""
        state = self._state
        n = len(rows)
        if not n or len(rows.names_offsets) != 2 or self.closed or self._is_full(slot):
            return None
        conv = self._hot_index(rows)
        group = state.hot.get(conv)
        if group is None or conv in self.cooling or self._is_judged(conv):
            return None
        first = int(state.conversations.heads[conv]) + 1
        last = first + n - 1
        number = self._grants + 1
        if last > group.ceiling or state.may_know(rows.fps, rows.ids, conv):
            return None
        table = state.recent
        entry = table.count
        if not table.add_new(rows.fps, rows.ids, conv, first, rows.payload, -number):
            return None
        state.conversations.heads[conv] = last
        state.conversations.head_changed(conv)
        touched = np.array([conv], np.int32), np.array([first]), np.array([last])
        self._granted(slot, touched, (table, entry, entry + n), now)
        answer = Granted(
            sequencer=self.sequencer,
            grant=number,
            rows=n,
            first=first,
            plan=None,
            stable=int(state.conversations.stable[conv]),
            partitions={state.conversations.name(conv): group.partitions},
        )
        self._remember(slot, ask, answer)
        return answer

    def _hot_index(self, rows: Rows) -> int:
        """The index of the rows' one conversation, -1 where it is not known. That of a name never changes."""
        name = rows.names_data[rows.names_offsets[0] : rows.names_offsets[1]].tobytes()
        found = self._indices.get(name)
        if found is None:
            found = int(self._state.conversations.find(rows.names_data, rows.names_offsets)[0])
            if found in self._state.hot and len(self._indices) < _INDICES_MAX:
                self._indices[name] = found
        return found

    def _is_judged(self, conv: int) -> bool:
        """Whether not everybody may send to a conversation."""
        return not self._open_to_all or self._state.members.is_created(conv)

    def _is_full(self, slot: int) -> bool:
        return sum(b.slot == slot for b in self.outstanding.values()) >= OUTSTANDING_MAX

    def _granted(
        self, slot: int, touched: tuple[I32, I64, I64], reserved: tuple[IdTable, int, int], now: float
    ) -> None:
        self._grants += 1
        table, first, end = reserved
        self.outstanding[self._grants] = Block(
            number=self._grants,
            slot=slot,
            epoch=self._slots[slot].epoch,
            touched=touched[0],
            touched_first=touched[1],
            touched_last=touched[2],
            table=table,
            entries=(first, end),
            asked_at=now,
        )

    def grant(
        self, slot: int, ask: int, rows: Rows, located: KnownIds, old: dict[int, First], now: float
    ) -> Granted | Declined:
        """Number a partition's batch. `answered` must have said None."""
        state = self._state
        if self.closed:
            return Declined(DeclineReason.WAIT)
        convs = conversations_of(rows, located.conv)
        if len(located.fresh) or any(c not in state.hot or c in self.cooling for c in convs):
            return self._remember(slot, ask, Declined(DeclineReason.MOVED))
        if self._is_full(slot):
            return Declined(DeclineReason.WAIT)
        forbidden: Bools | None = None
        if any(map(self._is_judged, convs)):
            senders = rows.senders
            if senders is None:
                return self._remember(slot, ask, Declined(DeclineReason.SENDERS))
            forbidden = state.members.forbidden(located.conv, lambda: senders, self._open_to_all)
        planned = plan(state, rows, located, old, slot, forbidden)
        ceilings = [state.hot[c].ceiling for c in planned.touched.tolist()]
        if (planned.touched_last > np.array(ceilings, np.int64)).any():
            return Declined(DeclineReason.WAIT)
        number = 0
        if len(planned.touched):
            number = self._grants + 1
            commit = commit_of(planned, rows, -number, self._slots[slot].epoch, 0)
            touched = commit.touched, commit.touched_first, commit.touched_last
            self._granted(slot, touched, reserve(state, commit), now)
        return self._remember(slot, ask, self._answer(number, rows, planned, convs))

    def _remember(self, slot: int, ask: int, answer: Granted | Declined) -> Granted | Declined:
        """What ends an ask: whether its call comes again, or late, it has this answer and nobody waits for another."""
        known = self._slots[slot]
        known.last_ask = ask
        known.answers[ask] = answer
        while len(known.answers) > _ANSWERS_KEPT:
            del known.answers[next(iter(known.answers))]
        return answer

    def _answer(self, number: int, rows: Rows, planned: Plan, convs: list[int]) -> Granted:
        state = self._state
        partitions = {state.conversations.name(c): state.hot[c].partitions for c in convs}
        if planned.new_rows is None and len(planned.touched) == 1:
            stable = int(state.conversations.stable[planned.touched[0]])
            return Granted(
                sequencer=self.sequencer,
                grant=number,
                rows=len(rows),
                first=int(planned.seq[0]),
                plan=None,
                stable=stable,
                partitions=partitions,
            )
        return Granted(
            sequencer=self.sequencer,
            grant=number,
            rows=len(rows),
            first=0,
            plan=planned,
            stable=state.conversations.stable[planned.conv],
            partitions=partitions,
        )

    def committed(self, slot: int, epoch: int, report: Report) -> None:
        """A grant's segment is durable: its numbers are messages. Repeated and late reports change nothing."""
        block = self.outstanding.get(report.grant)
        if block is None or (block.slot, block.epoch) != (slot, epoch):
            return
        del self.outstanding[report.grant]
        state = self._state
        log_position = log_position_of(slot, report.segment)
        frozen = block.table is state.frozen
        block.table.mark_durable(*block.entries, log_position)
        state.segment_ts[log_position] = report.server_ts
        advance_log(state, log_position, epoch, report.digest, self.sequencer, frozen=frozen)
        mark_numbers_durable(state, log_position, (block.touched, block.touched_first, block.touched_last), frozen)

    def follow(self, slot: int, epoch: int, sequencer: int, found: Report, fence: Fence | None = None) -> None:
        """One more segment of a partition's log, read: it uses a grant, or is a fence where `found.grant` is 0.

        FencedError: a newer incarnation of the home shard has been there, this one is over. InvalidError: it uses a
        grant that is not outstanding."""
        if sequencer > self.sequencer:
            raise FencedError(
                f"epoch {sequencer} of the home shard has fenced partition {slot}: {self.sequencer} stops"
            )
        progress = self._state.partitions[slot]
        if not found.grant:
            progress.advance(found.segment, epoch, found.digest, fence)
            progress.sequencer = max(progress.sequencer, sequencer)
            return
        if sequencer == self.sequencer:
            self.committed(slot, epoch, found)
        if progress.segment != found.segment:
            raise InvalidError(f"grant {found.grant} of epoch {sequencer} is not outstanding")

    def lost(self, slot: int, epoch: int) -> list[Block]:
        """The grants that writers before `epoch` will never use: its log was fenced and read, and does not have
        them.

        They stay outstanding until `voided`. Each is returned once: a second void record of the same numbers would
        make the log unreadable."""
        found = [b for b in self.outstanding.values() if b.slot == slot and b.epoch < epoch and not b.lost]
        for block in found:
            block.lost = True
        return found

    def voided(self, blocks: Sequence[Block]) -> None:
        """That they are void is durable: their ids are free again. Their numbers are settled by the record itself."""
        for block in blocks:
            if self.outstanding.pop(block.number, None) is not None:
                block.table.release(*block.entries)

    def in_flight(self, conv: int) -> bool:
        """Whether a grant of a conversation is outstanding."""
        return any((b.touched == conv).any() for b in self.outstanding.values())

    @property
    def frozen_in_flight(self) -> bool:
        """Whether ids that are to be sealed are not settled yet."""
        frozen = self._state.frozen
        return frozen is not None and any(b.table is frozen for b in self.outstanding.values())

    def oldest(self) -> Block | None:
        """The grant that waits longest for its writer."""
        waiting = (b for b in self.outstanding.values() if not b.lost)
        return min(waiting, key=lambda b: b.asked_at, default=None)


def conversations_of(rows: Rows, conv: I32) -> list[int]:
    """The conversations (state indices `conv`) of some rows; almost always one."""
    found = conv[:1] if len(rows.names_offsets) == 2 else np.unique(conv)
    convs: list[int] = found.tolist()
    return convs


def ranges_of(blocks: Sequence[Block]) -> list[tuple[int, int, int]]:
    """Conversation, first and last number of each range of some grants."""
    return [
        (int(c), int(a), int(b))
        for block in blocks
        for c, a, b in zip(block.touched, block.touched_first, block.touched_last, strict=True)
    ]
