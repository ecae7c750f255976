"""What a shard's writer knows, as values: where each of its logs stands, conversations, ids, hot groups.

Owns the state and the arithmetic of a hot group's `stable_seq`. Does not change it on its own: `imray.core.fold` does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from imray.core.checkpoint_chain import CheckpointChain
from imray.core.conversations import Conversations
from imray.core.dedup import FilterBank, IdTable, SealedFilter, SealedIds
from imray.core.errors import InvalidError
from imray.core.log_progress import LogProgress
from imray.core.member_state import MemberState
from imray.core.members import CursorsChange, MembersChange
from imray.core.postings import Postings
from imray.core.routing import segment_of, slot_of
from imray.kernels.arrays import U64, Bools


@dataclass
class HotGroup:
    """A conversation that many logs write: which of its numbers are settled (durable or void).

    `stable` is just below the lowest one that is not: it only goes up."""

    partitions: int
    ceiling: int
    """No number above it was granted; logged ahead of the grants."""
    stable: int
    by_rate: bool = False
    """What an operator turned hot, only an operator turns cold."""
    held: list[int] = field(default_factory=list)
    """Ascending: `stable` does not pass these, as after each a change of members stands that is not durable yet."""
    done: list[tuple[int, int]] = field(default_factory=list)
    """Settled ranges above `stable`, ascending; as many as grants are outstanding."""
    floor: int = field(init=False)
    """Where this began: what lies below was settled before, by a checkpoint or when it was hot the last time."""

    def __post_init__(self) -> None:
        self.floor = self.stable

    def mark_final(self, first: int, last: int) -> None:
        """Numbers first..last are durable or void. InvalidError where some of them are settled already."""
        if last <= self.floor:
            return
        at = bisect_left(self.done, (first, last))
        if (
            first <= self.stable
            or (at and self.done[at - 1][1] >= first)
            or (at < len(self.done) and self.done[at][0] <= last)
        ):
            raise InvalidError(f"some of the numbers {first} to {last} were written before")
        self.done.insert(at, (first, last))
        self.advance()

    def advance(self) -> None:
        """Raise `stable` as far as it may go."""
        while self.done and self.done[0][0] == self.stable + 1:
            last = self.done[0][1]
            if self.held and last > self.held[0]:
                if self.held[0] > self.stable:
                    self.stable = self.held[0]
                    self.done[0] = self.stable + 1, last
                return
            self.stable = last
            del self.done[0]

    def holes(self, to: int) -> list[tuple[int, int]]:
        """Ranges up to `to` that are not settled."""
        found: list[tuple[int, int]] = []
        at = self.stable + 1
        for first, last in self.done:
            if first > at:
                found.append((at, first - 1))
            at = last + 1
        if to >= at:
            found.append((at, to))
        return found


@dataclass
class ShardState:
    """All that a shard's writer knows. Folding its log and those of its partitions from nothing gives the same."""

    seed: int
    conversations: Conversations = field(default_factory=Conversations)
    recent: IdTable = field(default_factory=lambda: IdTable(0))
    frozen: IdTable | None = None
    """Recent ids that are being sealed into a file right now."""
    sealed: list[SealedIds] = field(default_factory=list)
    """Replaced whole, never changed in place."""
    sealed_filter: SealedFilter | None = None
    """In front of `sealed`, where it stands for all of it."""
    _filters: FilterBank = field(default_factory=lambda: FilterBank(()))
    """Those of `sealed`, as it was when they were last asked."""
    log: LogProgress = field(default_factory=LogProgress)
    """The shard's own log."""
    partitions: dict[int, LogProgress] = field(default_factory=dict)
    """The logs of its partitions, by slot."""
    hot: dict[int, HotGroup] = field(default_factory=dict)
    """By the conversation's index."""
    segment_ts: dict[int, int] = field(default_factory=dict)
    """server_ts of the places that `recent` and `frozen` speak of."""
    spare: IdTable | None = None
    """An empty table whose memory the next one takes over."""
    postings: Postings = field(default_factory=Postings)
    frozen_postings: Postings = field(default_factory=Postings)
    covered: dict[int, int] = field(default_factory=dict)
    """The last segment of each log, by slot, that `sealed` covers."""
    members: MemberState = field(default_factory=MemberState)
    member_segments: int = 0
    """Segments of members and cursors since the last freeze: no id and no number counts them."""
    checkpoints: CheckpointChain = field(default_factory=CheckpointChain)
    """What the next checkpoint may build on."""
    frozen_partitions: dict[int, LogProgress] = field(default_factory=dict)
    """How far the partitions' logs are covered by what is being sealed."""

    def reserve_members(self, changes: Sequence[MembersChange], cursors: Sequence[CursorsChange]) -> None:
        """A commit's changes of members, and cursors, are planned."""
        self.members.reserve(changes, cursors)
        for change in changes:
            if (group := self.hot.get(change.conv)) is not None:
                group.held.append(change.after)

    def mark_members_durable(self, changes: Sequence[MembersChange], cursors: Sequence[CursorsChange]) -> None:
        """They are durable."""
        self.members.mark_durable(changes, cursors)
        self.member_segments += bool(changes or cursors)
        for change in changes:
            if (group := self.hot.get(change.conv)) is not None:
                group.held.remove(change.after)
                group.advance()
                self.conversations.stable[change.conv] = group.stable

    def progress(self, slot: int) -> LogProgress:
        """Where one of its logs stands; slot 0 is its own."""
        return self.log if slot == 0 else self.partitions[slot]

    def maybe_sealed(self, fps: U64) -> list[tuple[SealedIds, Bools]]:
        """For each sealed file that may have some of these ids: True for each row that may be there."""
        if self._filters.files is not self.sealed:
            self._filters = FilterBank(self.sealed)
        if self.sealed_filter is None or not self.sealed_filter.stands_for(self.sealed):
            return self._filters.maybe(fps)
        some = self.sealed_filter.maybe(fps)
        if some is None:
            return []
        found: list[tuple[SealedIds, Bools]] = []
        for ids, hit in self._filters.maybe(fps[some]):
            whole = np.zeros(len(fps), np.bool_)
            whole[some] = hit
            found.append((ids, whole))
        return found

    def may_know(self, fps: U64, ids: U64, conv: int) -> bool:
        """Whether one of some ids of a conversation may have been sent before `recent` began."""
        if self.frozen is not None and self.frozen.has_any(fps, ids, conv):
            return True
        return any(hit.any() for _, hit in self.maybe_sealed(fps))

    def epoch_of(self, log_position: int) -> int:
        """The epoch that wrote the segment at a log position."""
        return self.progress(slot_of(log_position)).epoch_of(segment_of(log_position))
