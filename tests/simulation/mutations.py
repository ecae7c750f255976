"""Rules broken one at a time: what the simulation must find. Each breaks the code under test while it is entered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from imray.core import blocks, fold, postings, sequencer, state
from imray.core.blocks import Block, Blocks
from imray.core.grants import DeclineReason, Report
from imray.log.store import Store
from imray.shard import committer as committers
from imray.shard import recovery
from imray.shard.grants import Grants
from imray.shard.hot_groups import HotGroups
from imray.shard.partition_incarnation import PartitionIncarnation

Break = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Rule:
    """A rule that can be broken, and a word that the complaint about it must contain."""

    broken: Break
    shows: str
    rare: bool
    """Found in hundreds of schedules: looked for by `make test-long` only."""

    @property
    def is_of_delivery(self) -> bool:
        """Whether listeners are needed to find it."""
        return self.broken.__module__.endswith("mutations_live")


ALL: dict[str, Rule] = {}


def rule(shows: str = "", rare: bool = False) -> Callable[[Break], Break]:
    """Register a broken rule under the name of its function."""

    def add(how: Break) -> Break:
        ALL[how.__name__] = Rule(how, shows, rare)
        return how

    return add


@contextmanager
def broken(name: str) -> Iterator[str]:
    """With one rule broken; what a complaint must contain."""
    found = ALL[name]
    with pytest.MonkeyPatch.context() as patch:
        found.broken(patch)
        yield found.shows


def _only_reads(store: Store, shard: int, slot: int, s: state.ShardState, *_: Any) -> None:
    recovery.replay(store, shard, s, slot)


@rule("FAIL I5")
def void_by_time_out(patch: pytest.MonkeyPatch) -> None:
    """A grant is void when it is old, without fencing its partition."""

    def fence(self: Grants, slot: int) -> list[Block]:
        return [b for b in self.blocks.outstanding.values() if b.slot == slot and not b.lost]

    patch.setattr(Grants, "fence", fence)


@rule("FAIL I6", rare=True)
def leased_ahead(patch: pytest.MonkeyPatch) -> None:
    """Numbers are leased to a partition before its messages arrive."""
    leases: dict[tuple[int, int, int], list[int]] = {}
    real = blocks.plan

    def plan(s: Any, rows: Any, located: Any, old: Any, slot: int = 0, *more: Any) -> Any:
        planned = real(s, rows, located, old, slot, *more)
        if planned.new_rows is not None or len(planned.touched) != 1:
            return planned
        conv = int(planned.touched[0])
        n = len(rows)
        lease = leases.setdefault((id(s), slot, conv), [1, 0])
        if lease[1] - lease[0] + 1 < n:
            lease[0] = int(s.conversations.heads[conv]) + 1
            lease[1] = s.conversations.heads[conv] = lease[0] + n
        planned.seq[:] = np.arange(lease[0], lease[0] + n)
        planned.touched_first[0] = lease[0]
        planned.touched_last[0] = lease[0] + n - 1
        lease[0] += n
        return planned

    patch.setattr(blocks, "plan", plan)


@rule(rare=True)
def old_home_shards_are_believed(patch: pytest.MonkeyPatch) -> None:
    """Neither a partition nor the logs look at the epoch of the home shard that granted; successors do not fence."""
    real = PartitionIncarnation._encode

    def encode(self: PartitionIncarnation, *args: Any) -> Any:
        self._sequencer = 0
        return real(self, *args)

    patch.setattr(PartitionIncarnation, "_encode", encode)
    patch.setattr(recovery, "fence_partition", _only_reads)
    patch.setattr("imray.log.rows.check_sequencer", lambda *_: None)


@rule(rare=True)
def successor_does_not_fence_partitions(patch: pytest.MonkeyPatch) -> None:
    """A new home shard reads its partitions' logs, but leaves their writers alone."""
    patch.setattr(recovery, "fence_partition", _only_reads)


@rule("no valid grant")
def grants_above_the_ceiling(patch: pytest.MonkeyPatch) -> None:
    """Numbers are granted beyond what was logged ahead of them."""
    real = Blocks.grant

    def grant(self: Blocks, *args: Any) -> Any:
        groups = list(self._state.hot.values())
        for group in groups:
            group.ceiling += 1000
        try:
            return real(self, *args)
        finally:
            for group in groups:
                group.ceiling -= 1000

    patch.setattr(Blocks, "grant", grant)
    patch.setattr(Grants, "_want_ceiling", lambda *_: None)


@rule()
def neither_ceiling_nor_fence(patch: pytest.MonkeyPatch) -> None:
    """A new home shard goes on just above what it finds in its own log."""

    def unexplained(s: Any) -> list[tuple[int, int, int]]:
        return [(c, a, b) for c, g in s.hot.items() for a, b in g.holes(int(s.conversations.heads[c]) - 1)]

    patch.setattr("imray.shard.grants.unexplained", unexplained)
    patch.setattr(recovery, "fence_partition", lambda *_: None)


@rule()
def void_ids_are_kept(patch: pytest.MonkeyPatch) -> None:
    """The ids of a void grant stay in flight."""
    patch.setattr("imray.core.dedup.IdTable.release", lambda *_: None)


@rule()
def ids_are_released_before_the_fence(patch: pytest.MonkeyPatch) -> None:
    """The ids of an old grant are free before its partition's log was fenced and read."""
    real = Grants.fence

    def fence(self: Grants, slot: int) -> list[Block]:
        for block in self.blocks.outstanding.values():
            if block.slot == slot:
                block.table.release(*block.entries)
        return real(self, slot)

    patch.setattr(Grants, "fence", fence)


@rule("FAIL I5")
def stable_is_the_head(patch: pytest.MonkeyPatch) -> None:
    """What was granted counts as final."""
    real = committers.located

    def located(s: state.ShardState, conv_id: str, low: int, high: int) -> Any:
        before = s.conversations.stable
        n = s.conversations.count
        s.conversations.stable = np.where(np.arange(len(before)) < n, s.conversations.heads, before)
        try:
            return real(s, conv_id, low, high)
        finally:
            s.conversations.stable = before

    patch.setattr(committers, "located", located)


@rule()
def stable_passes_holes(patch: pytest.MonkeyPatch) -> None:
    """`stable_seq` follows the highest settled number, not the lowest outstanding one."""
    real = state.HotGroup.mark_final

    def mark_final(self: state.HotGroup, first: int, last: int) -> None:
        real(self, first, last)
        if last > self.stable:
            self.stable = last
            self.done = []

    patch.setattr(state.HotGroup, "mark_final", mark_final)


@rule()
def reports_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """A report counts though an earlier segment's is missing."""

    def report(self: Grants, slot: int, epoch: int, reports: list[Report]) -> None:
        for one in reversed(reports):
            progress = self.committer.state.partitions[slot]
            if self.blocks.slot_epoch(slot) == epoch and one.segment > progress.segment:
                progress.following = one.segment
                self.blocks.committed(slot, epoch, one)

    patch.setattr(Grants, "report", report)


@rule("healthy")
def asks_are_not_remembered(patch: pytest.MonkeyPatch) -> None:
    """A repeated ask is looked at again."""
    real = Blocks.answered

    def answered(self: Blocks, slot: int, epoch: int, ask: int) -> Any:
        found = real(self, slot, epoch, ask)
        return found if found is not None and getattr(found, "why", None) is DeclineReason.FENCED else None

    patch.setattr(Blocks, "answered", answered)


@rule("FAIL I1")
def in_flight_is_a_duplicate(patch: pytest.MonkeyPatch) -> None:
    """A retry is told a number that may become void."""

    class Statuses:
        """As RowStatus, with one mixed up."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real_status, "DUPLICATE" if name == "IN_FLIGHT" else name)

    real_status = sequencer.RowStatus
    patch.setattr(sequencer, "RowStatus", Statuses())
    real = state.ShardState.epoch_of

    def epoch_of(self: state.ShardState, log_position: int) -> int:
        return 1 if log_position < 0 else real(self, log_position)

    patch.setattr(state.ShardState, "epoch_of", epoch_of)


@rule("written before", rare=True)
def lost_twice(patch: pytest.MonkeyPatch) -> None:
    """A lost grant is handed out to be logged as void again and again."""

    def lost(self: Blocks, slot: int, epoch: int) -> list[Block]:
        return [b for b in self.outstanding.values() if b.slot == slot and b.epoch < epoch]

    patch.setattr(Blocks, "lost", lost)


@rule(rare=True)
def records_of_an_ended_incarnation(patch: pytest.MonkeyPatch) -> None:
    """What an earlier incarnation in the same process wanted to log is logged by the next one."""

    async def record(self: HotGroups, records: Any) -> Any:
        return await self._record_in_log(records)

    patch.setattr(HotGroups, "_record", record)


@rule()
def fences_are_all_my_own(patch: pytest.MonkeyPatch) -> None:
    """A home shard takes every fence in a partition's log for one of its own time."""
    real = Blocks.follow

    def follow(self: Blocks, slot: int, epoch: int, sequencer_epoch: int, found: Report, fence: Any = None) -> None:
        real(self, slot, epoch, self.sequencer if not found.grant else sequencer_epoch, found, fence)

    patch.setattr(Blocks, "follow", follow)


@rule("FAIL I5")
def voids_ascend(patch: pytest.MonkeyPatch) -> None:
    """A reader stops at the first posting below what it wants, though void records come late."""
    patch.setattr(postings.Postings, "ascending", property(lambda _: True, lambda *_: None), raising=False)


@rule()
def seals_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint does not wait for the grants of its ids."""
    patch.setattr(Blocks, "frozen_in_flight", property(lambda _: False))


@rule()
def frozen_logs_do_not_move(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint names how far the partitions' logs were at the freeze, not at what it covers."""
    real = fold.advance_log

    def advance_log(s: Any, *args: Any, **more: Any) -> None:
        before = dict(s.frozen_partitions)
        real(s, *args, **more)
        s.frozen_partitions.update(before)

    patch.setattr(blocks, "advance_log", advance_log)
