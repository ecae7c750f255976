"""Rules broken one at a time: what the simulation must find. Each breaks the code under test while it is entered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from imray.core import blocks, fold, postings, sequencer, state
from imray.core.blocks import Block, Blocks, Report
from imray.shard.grants import Grants
from tests.simulation import recovery
from tests.simulation.committer import SimCommitter, SimGrants
from tests.simulation.home import SimHome
from tests.simulation.kernel import MS
from tests.simulation.owner import Records
from tests.simulation.subtopic import PartitionWriter
from tests.simulation.world import Parts

Break = Callable[[pytest.MonkeyPatch], Parts]


@dataclass
class Broken:
    """Actors of a run with a rule broken, and a word that the complaint about it must contain."""

    parts: Parts
    shows: str


ALL: dict[str, tuple[Break, str]] = {}


def _rule(shows: str) -> Callable[[Break], Break]:
    def add(how: Break) -> Break:
        ALL[how.__name__] = how, shows
        return how

    return add


@contextmanager
def broken(name: str) -> Iterator[Broken]:
    """With one rule broken."""
    how, shows = ALL[name]
    with pytest.MonkeyPatch.context() as patch:
        yield Broken(how(patch), shows)


@_rule("FAIL I5")
def void_by_time_out(patch: pytest.MonkeyPatch) -> Parts:
    """A grant is void when it is old, without fencing its partition."""

    class Impatient(SimHome):
        async def fence(self, grants: SimGrants, slot: int) -> list[Block]:
            return [b for b in grants.blocks.outstanding.values() if b.slot == slot and not b.lost]

    return Parts(home=Impatient)


@_rule("FAIL I6")
def leased_ahead(patch: pytest.MonkeyPatch) -> Parts:
    """Numbers are leased to a partition before its messages arrive."""
    leases: dict[tuple[int, int, int], list[int]] = {}
    real = blocks.plan

    def plan(s: Any, rows: Any, located: Any, old: Any, slot: int = 0) -> Any:
        planned = real(s, rows, located, old, slot)
        if planned.new_rows is not None or len(planned.touched) != 1:
            return planned
        conv, n = int(planned.touched[0]), len(rows)
        lease = leases.setdefault((id(s), slot, conv), [1, 0])
        if lease[1] - lease[0] + 1 < n:
            lease[0] = int(s.conversations.heads[conv]) + 1
            lease[1] = s.conversations.heads[conv] = lease[0] + n
        planned.seq[:] = np.arange(lease[0], lease[0] + n)
        planned.touched_first[0], planned.touched_last[0] = lease[0], lease[0] + n - 1
        lease[0] += n
        return planned

    patch.setattr(blocks, "plan", plan)
    return Parts()


@_rule("")
def old_home_shards_are_believed(patch: pytest.MonkeyPatch) -> Parts:
    """Neither a partition nor the logs look at the epoch of the home shard that granted; successors do not fence."""

    class Gullible(PartitionWriter):
        def old_grant(self, granted: Any) -> bool:
            return False

    async def no_fence(disk: Any, process: Any, s: Any, slot: int) -> None:
        recovery.replay(disk, s, slot)

    patch.setattr(recovery, "fence_topic", no_fence)
    patch.setattr("tests.simulation.disk.check_sequencer", lambda *_: None)
    return Parts(topic=Gullible)


@_rule("")
def successor_does_not_fence_partitions(patch: pytest.MonkeyPatch) -> Parts:
    """A new home shard reads its partitions' logs, but leaves their writers alone."""

    async def no_fence(disk: Any, process: Any, s: Any, slot: int) -> None:
        recovery.replay(disk, s, slot)

    patch.setattr(recovery, "fence_topic", no_fence)
    return Parts()


@_rule("no valid grant")
def grants_above_the_ceiling(patch: pytest.MonkeyPatch) -> Parts:
    """Numbers are granted beyond what was logged ahead of them."""
    real = Blocks.grant

    def grant(self: Blocks, slot: int, ask: int, rows: Any, located: Any, *args: Any) -> Any:
        groups = list(self._state.hot.values())
        for group in groups:
            group.ceiling += 1000
        try:
            return real(self, slot, ask, rows, located, *args)
        finally:
            for group in groups:
                group.ceiling -= 1000

    patch.setattr(Blocks, "grant", grant)
    patch.setattr(Grants, "_want_ceiling", lambda *_: None)
    return Parts()


@_rule("")
def neither_ceiling_nor_fence(patch: pytest.MonkeyPatch) -> Parts:
    """A new home shard goes on just above what it finds in its own log."""

    def unexplained(s: Any) -> list[tuple[int, int, int]]:
        return [(c, a, b) for c, g in s.hot.items() for a, b in g.holes(int(s.conversations.heads[c]) - 1)]

    patch.setattr("tests.simulation.home.unexplained", unexplained)
    patch.setattr(recovery, "fence_topic", lambda disk, process, s, slot: process.sleep(0))
    return Parts()


@_rule("")
def void_ids_are_kept(patch: pytest.MonkeyPatch) -> Parts:
    """The ids of a void grant stay in flight."""
    patch.setattr("imray.core.dedup.IdTable.release", lambda *_: None)
    return Parts()


@_rule("")
def ids_are_released_before_the_fence(patch: pytest.MonkeyPatch) -> Parts:
    """The ids of an old grant are free before its partition's log was fenced and read."""

    class Hasty(SimHome):
        async def fence(self, grants: SimGrants, slot: int) -> list[Block]:
            for block in grants.blocks.outstanding.values():
                if block.slot == slot:
                    block.table.release(*block.entries)
            await self.process.sleep(3 * MS)
            return await super().fence(grants, slot)

    return Parts(home=Hasty)


@_rule("FAIL I5")
def stable_is_the_head(patch: pytest.MonkeyPatch) -> Parts:
    """What was granted counts as final."""

    def located(self: SimCommitter, conv_id: str, low: int, high: int) -> Any:
        n = self.state.conversations.count
        before = self.state.conversations.stable
        self.state.conversations.stable = np.where(np.arange(len(before)) < n, self.state.conversations.heads, before)
        try:
            return real(self, conv_id, low, high)
        finally:
            self.state.conversations.stable = before

    real = SimCommitter.located
    patch.setattr(SimCommitter, "located", located)
    return Parts()


@_rule("")
def stable_passes_holes(patch: pytest.MonkeyPatch) -> Parts:
    """`stable_seq` follows the highest settled number, not the lowest outstanding one."""
    real = state.HotGroup.mark_durable

    def mark_durable(self: state.HotGroup, first: int, last: int) -> None:
        real(self, first, last)
        if last > self.stable:
            self.stable, self.done = last, []

    patch.setattr(state.HotGroup, "settle", mark_durable)
    return Parts()


@_rule("")
def reports_out_of_order(patch: pytest.MonkeyPatch) -> Parts:
    """A report counts though an earlier segment's is missing."""

    def report(self: Grants, slot: int, epoch: int, reports: list[Report]) -> None:
        for one in reversed(reports):
            progress = self.committer.state.partitions[slot]
            if self.blocks.slot_epoch(slot) == epoch and one.segment > progress.segment:
                progress.segment = one.segment - 1
                self.blocks.committed(slot, epoch, one)

    patch.setattr(Grants, "report", report)
    return Parts()


@_rule("healthy")
def asks_are_not_remembered(patch: pytest.MonkeyPatch) -> Parts:
    """A repeated ask is looked at again."""
    real = Blocks.answered

    def answered(self: Blocks, slot: int, epoch: int, ask: int) -> Any:
        found = real(self, slot, epoch, ask)
        return found if found is not None and getattr(found, "why", "") == "fenced" else None

    patch.setattr(Blocks, "answered", answered)
    return Parts()


@_rule("FAIL I1")
def in_flight_is_a_duplicate(patch: pytest.MonkeyPatch) -> Parts:
    """A retry is told a number that may become void."""
    patch.setattr(sequencer, "IN_FLIGHT", sequencer.DUPLICATE)
    real = state.ShardState.epoch_of
    patch.setattr(
        state.ShardState, "epoch_of", lambda self, log_position: 1 if log_position < 0 else real(self, log_position)
    )
    return Parts()


@_rule("written before")
def lost_twice(patch: pytest.MonkeyPatch) -> Parts:
    """A lost grant is handed out to be logged as void again and again."""

    def lost(self: Blocks, slot: int, epoch: int) -> list[Block]:
        return [b for b in self.outstanding.values() if b.slot == slot and b.epoch < epoch]

    patch.setattr(Blocks, "lost", lost)
    return Parts()


@_rule("")
def records_of_an_ended_incarnation(patch: pytest.MonkeyPatch) -> Parts:
    """What an earlier incarnation in the same process wanted to log is logged by the next one."""

    class Mixed(SimHome):
        async def record_for(self, grants: SimGrants, records: Records) -> Any:
            while self.refusal is not None:
                await self.process.sleep(MS)
            return await self.record(records)

    return Parts(home=Mixed)


@_rule("")
def fences_are_all_my_own(patch: pytest.MonkeyPatch) -> Parts:
    """A home shard takes every fence in a partition's log for one of its own time."""
    real = Blocks.follow

    def follow(self: Blocks, slot: int, epoch: int, sequencer_epoch: int, found: Report) -> None:
        real(self, slot, epoch, self.sequencer if not found.grant else sequencer_epoch, found)

    patch.setattr(Blocks, "follow", follow)
    return Parts()


@_rule("FAIL I5")
def voids_ascend(patch: pytest.MonkeyPatch) -> Parts:
    """A reader stops at the first posting below what it wants, though void records come late."""
    patch.setattr(postings.Postings, "ascending", property(lambda _: True, lambda *_: None), raising=False)
    return Parts()


@_rule("sealed")
def seals_what_is_in_flight(patch: pytest.MonkeyPatch) -> Parts:
    """A checkpoint does not wait for the grants of its ids."""
    patch.setattr(Blocks, "frozen_in_flight", property(lambda _: False))
    return Parts()


@_rule("")
def frozen_logs_do_not_move(patch: pytest.MonkeyPatch) -> Parts:
    """A checkpoint names how far the partitions' logs were at the freeze, not at what it covers."""
    real = fold.mark_durable

    def mark_durable(s: Any, commit: Any, digest: bytes, frozen: bool = False) -> None:
        before = dict(s.frozen_partitions)
        real(s, commit, digest, frozen)
        s.frozen_partitions.update(before)

    patch.setattr(blocks, "settle", mark_durable)
    return Parts()
