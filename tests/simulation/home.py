"""The home shard: the real Grants and Blocks, driven as `imray.cluster.{home,committer,hot,upkeep}` drive them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from imray.core.blocks import Block, Blocks, Declined, Granted, Report, unexplained
from imray.core.columns import Rows
from imray.core.errors import FencedError
from imray.core.replies import Refusal
from imray.core.state import ShardState
from imray.log.schema import Record
from imray.shard.committer import Committer
from imray.shard.grants import _void
from tests.simulation.committer import SimCommitter, SimGrants
from tests.simulation.disk import Disk
from tests.simulation.kernel import MS, Future, Process, Task
from tests.simulation.owner import Job, Records, Request, WriteLoop, unavailable
from tests.simulation.recovery import become_writer, write_checkpoint

GRANT_TIMEOUT_US = 60 * MS


class SimHome(WriteLoop):
    """One home shard, for as long as this process has it."""

    def __init__(
        self, disk: Disk, process: Process, ahead: int, ids_max: int, on_fenced: Callable[[], None],
        start_partitions: Callable[[int], None],
    ) -> None:  # fmt: skip
        super().__init__("home", disk, process, ahead, on_fenced)
        self._ids_max, self._start_partitions = ids_max, start_partitions
        self.committer: SimCommitter | None = None
        self.grants: SimGrants | None = None
        self._tasks: set[Task] = set()
        self._waiting: list[Future] = []
        self._locked: Future | None = None
        self._checkpointing = False
        self.stuck = 0

    async def _become_writer(self) -> None:
        self.committer, self.grants = await self.thread.submit(self._opened)
        if self.committer.state.hot:
            self._start_partitions(max(g.partitions for g in self.committer.state.hot.values()))
        self._waiting, self._locked, self._checkpointing = [], None, False
        self.watch(self._watch(), self._tasks)

    async def _opened(self) -> tuple[SimCommitter, SimGrants]:
        """As `Committer.open`, then `Grants.open`."""
        state, writer = await become_writer(self.disk, self.process)
        committer = SimCommitter(self.disk, state, writer, self._ids_max)
        blocks = committer.blocks = Blocks(state, state.log.epoch)
        grants = SimGrants(cast("Committer", committer), blocks)
        if state.hot:

            def records(state: ShardState) -> list[Record]:
                voids = [_void(state, *lost, "never written") for lost in unexplained(state)]
                return voids + [grants._hot_record(state, conv, voids) for conv in sorted(state.hot)]

            job = committer.record(records)
            await committer.put(job)
            committer.mark_durable(job)
        return committer, grants

    async def _plan(self, requests: list[Request]) -> Job:
        assert self.committer is not None
        return await self.thread.submit(self.committer.plan, requests)

    async def _record(self, records: Records) -> Job:
        assert self.committer is not None
        return await self.thread.submit(self.committer.record, records)

    async def _put(self, job: Job) -> None:
        assert self.committer is not None
        await self.committer.put(job)

    def _mark_durable(self, job: Job) -> None:
        assert self.committer is not None
        settled = self.thread.submit(self.committer.mark_durable, job)

        def done() -> None:
            if settled.error is not None:
                self.fail(settled.error)
            else:
                self.start_checkpoint()

        settled.then(done)

    async def _end_incarnation(self) -> None:
        self._when_idle.clear()
        for task in list(self._tasks):
            task.cancel()
        if self.committer is not None:
            self.committer.writer.close()

    # what partitions ask: `imray.shard.hot_groups.HotGroups`

    def _current(self) -> SimGrants | None:
        return self.grants  # as `Shard.ask`: an owner that was ready once answers, whatever its state

    async def ask(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal | str:
        """As `HotGroups.ask`."""
        grants = self._current()
        if grants is None:
            return "lost"
        answer = await self.thread.submit_elsewhere(grants.ask, slot, epoch, ask, rows, reports, self.sim.now / 1e6)
        self._settled()
        if grants.ceilings_wanted:
            self.watch(self._log_ceilings(grants), self._tasks)
        return answer

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | str | None:
        """As `HotGroups.report`."""
        grants = self._current()
        if grants is None:
            return "lost"
        await self.thread.submit(grants.report, slot, epoch, reports)
        self._settled()
        return None

    async def register(self, slot: int, epoch: int, segment: int) -> bool | str:
        """As `HotGroups.register`."""
        grants = self._current()
        if grants is None:
            return "lost"
        try:
            lost = await self.thread.submit(grants.register, slot, epoch, segment)
        except FencedError as e:
            if grants is self.grants:
                self.fail(e)
            raise
        self._settled()
        if lost:
            self.watch(self._void(grants, lost), self._tasks)
        return lost is not None

    def _settled(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.set()

    async def _log_ceilings(self, grants: SimGrants) -> None:
        convs, records = grants.ceilings()
        await self.record_for(grants, records)
        grants.ceilings_logged(convs)

    async def record_for(self, grants: SimGrants, records: Records) -> Refusal | None:
        """Records of one incarnation: a later one of this process must not write them."""
        if grants is not self.grants:
            return unavailable("that incarnation is over")
        return await self.record(records)

    async def _lock(self) -> None:
        while self._locked is not None:
            await self._locked
        self._locked = Future()

    def _unlock(self) -> None:
        locked, self._locked = self._locked, None
        if locked is not None:
            locked.set()

    async def make_hot(self, conv_id: str, partitions: int) -> Any:
        """As `HotGroups.heat`."""
        grants = self._current()
        if grants is None:
            return "lost"
        await self._lock()
        try:
            self._start_partitions(partitions)
            return await self.record_for(grants, grants.make_hot(conv_id, partitions))
        finally:
            self._unlock()

    async def make_cold(self, conv_id: str) -> Any:
        """As `HotGroups.cool`."""
        grants = self._current()
        if grants is None:
            return "lost"
        blocks, state = grants.blocks, grants.committer.state
        await self._lock()
        try:
            conv = await self.thread.submit(state.conversations.index, conv_id)
            if conv not in state.hot:
                return None
            blocks.cooling.add(conv)
            if not await self.until_settled(lambda: not blocks.in_flight(conv), 2 * GRANT_TIMEOUT_US):
                blocks.cooling.discard(conv)
                return "lost"
            refusal = await self.record_for(grants, grants.make_cold(conv_id))
            if refusal is None:
                await self.thread.submit(blocks.cooling.discard, conv)
            return refusal
        finally:
            self._unlock()

    async def until_settled(self, condition: Callable[[], bool], timeout_us: int = 1 << 60) -> bool:
        """As `HotGroups.until_settled`, with its time-out."""
        deadline = self.sim.now + timeout_us
        while True:
            waiting = Future()
            self._waiting.append(waiting)
            if await self.thread.submit(condition):
                return True
            if self.sim.now > deadline:
                return False
            if timeout_us < 1 << 60:
                self.sim.after(timeout_us, waiting.set)
            await waiting

    async def _watch(self) -> None:
        grants = self.grants
        assert grants is not None
        while True:
            await self.process.sleep(15 * MS)
            oldest = await self.thread.submit(grants.blocks.oldest)
            if oldest is not None and self.sim.now / 1e6 - oldest.asked_at > GRANT_TIMEOUT_US / 1e6:
                self.stuck += 1
                self.sim.trace("stuck", self.process.name, f"slot {oldest.slot} grant {oldest.number}")
                lost = await self.thread.submit(self.fence, grants, oldest.slot)
                self._settled()  # what was found in its log
                await self._void(grants, lost)

    async def fence(self, grants: SimGrants, slot: int) -> list[Block]:
        """As `Grants.fence`."""
        return await grants.fenced(self.process, slot)

    async def _void(self, grants: SimGrants, lost: list[Block]) -> None:
        if lost and await self.record_for(grants, grants.void(lost)) is None:
            await self.thread.submit(grants.voided, lost)
            self._settled()

    # reading and checkpoints

    async def locate(self, conv_id: str, low: int, high: int) -> Any:
        """As `ShardWriter.locate`."""
        if self.committer is None:
            return "lost"
        return await self.thread.submit(self.committer.located, conv_id, low, high)

    def start_checkpoint(self) -> None:
        """As `Upkeep.start_checkpoint`."""
        if not self._checkpointing and self.committer is not None and self.committer.checkpoint_due:
            self._checkpointing = True
            self.watch(self._checkpoint(self.committer), self._tasks)

    async def _checkpoint(self, committer: SimCommitter) -> None:
        frozen = Future()

        async def at_rest() -> None:
            frozen.set(await self.thread.submit(committer.freeze))

        self._when_quiet(at_rest)
        snap = await frozen
        blocks = committer.blocks
        assert blocks is not None
        await self.until_settled(lambda: not blocks.frozen_in_flight)
        await self.process.sleep(self.sim.delay())
        files = write_checkpoint(self.disk, snap, list(committer.intervals))
        await self.thread.submit(committer.sealed, files)
        self._checkpointing = False

    def _when_quiet(self, do: Callable[[], Awaitable[None]]) -> None:
        self._when_idle.append(do)
        self._woken()
