"""One incarnation of a shard's writer: what it recovered, and who plans, writes and applies its commits.

Owns nothing but the life of its parts: the state and its one writer (`imray.shard.committer`), hot groups, upkeep.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from imray.core.errors import StorageError
from imray.core.replies import Refusal
from imray.log.recovery import Readable
from imray.log.rows import Prepared
from imray.log.store import Store
from imray.settings import Settings
from imray.shard.committer import Committer
from imray.shard.grants import Grants
from imray.shard.hot_groups import HotGroups, StartPartitions
from imray.shard.jobs import Job, Records
from imray.shard.runtime import Runtime, StateThread
from imray.shard.upkeep import Upkeep, UpkeepWorkers


@dataclass(frozen=True)
class Surroundings:
    """What outlives an incarnation of a shard, and what it may ask of the write loop."""

    store: Store
    shard: int
    seed: int
    settings: Settings
    runtime: Runtime
    state: StateThread
    upkeep_workers: UpkeepWorkers
    notes: deque[str]
    start_partitions: StartPartitions | None
    record: Callable[[Records], Awaitable[Refusal | None]]
    """Make records durable, in the log's order."""
    when_idle: Callable[[Callable[[], Awaitable[None]]], None]
    """Have something done while no commit is on its way."""
    on_recovered: Callable[[Readable], None]
    """The state was recovered, and the store takes no fence: it can be read all the same."""


class ShardIncarnation:
    """As `imray.shard.jobs.Incarnation`."""

    def __init__(
        self, around: Surroundings, committer: Committer, grants: Grants, fail: Callable[[BaseException], None]
    ):
        self.committer = committer
        self._state = around.state
        self._rows_at_once_max = around.settings.rows_at_once_max
        self._fail = fail
        self.hot = HotGroups(
            grants=grants,
            state=around.state,
            settings=around.settings,
            runtime=around.runtime,
            record=around.record,
            start_partitions=around.start_partitions,
            fail=fail,
        )
        self.upkeep = Upkeep(
            committer=committer,
            workers=around.upkeep_workers,
            state=around.state,
            settings=around.settings,
            runtime=around.runtime,
            when_idle=around.when_idle,
            until_settled=self.hot.until_settled,
            advance=self.hot.log_ceilings_soon,
        )
        self.hot.on_progress = self.upkeep.start_checkpoint

    @classmethod
    async def open(cls, around: Surroundings, fail: Callable[[BaseException], None]) -> ShardIncarnation:
        """Recover and fence; every error leads to another try. `fail` ends this incarnation."""
        committer = await around.state.run(
            Committer.open,
            around.store,
            around.shard,
            around.seed,
            around.settings,
            around.runtime.wall_ms,
            around.on_recovered,
            around.notes,
        )
        try:
            grants = await around.state.run(Grants.open, committer)
            made = cls(around, committer, grants, fail)
        except BaseException as e:
            committer.writer.close()
            if isinstance(e, StorageError):
                # the fence fitted, and the record after it did not
                around.on_recovered(Readable(committer.state, True))
            raise
        made.hot.start()
        made.upkeep.start()
        return made

    async def plan(self, what: list[Prepared] | Records) -> Job:
        """As `Incarnation.plan`. A small commit is planned and encoded at once (`Settings.rows_at_once_max`)."""
        if not isinstance(what, list):
            return await self._state.run(self.committer.record, what)
        if sum(map(len, what)) <= self._rows_at_once_max:
            _, job = self._state.run_in_turn(self.committer.plan_from_memory, what)
            if job is not None:
                return job
        return await self._state.run(self.committer.plan, what)

    def write(self, job: Job) -> None:
        """As `Incarnation.write`."""
        self.committer.put(job)

    def apply(self, job: Job) -> None:
        """As `Incarnation.apply`."""
        if job.commit is None or len(job.commit.touched) <= self._rows_at_once_max:
            try:
                done, _ = self._state.run_in_turn(self.committer.mark_durable, job)
                if done:
                    self.upkeep.start_checkpoint()
                    return
            except Exception as e:  # noqa: BLE001 it ends the incarnation, and takes no ack back
                self._fail(e)
                return
        self._state.run(self.committer.mark_durable, job).add_done_callback(self._applied)

    def _applied(self, applied: asyncio.Future[None]) -> None:
        if not applied.cancelled() and (error := applied.exception()) is not None:
            self._fail(error)
        else:
            self.upkeep.start_checkpoint()

    @property
    def busy(self) -> bool:
        """As `Incarnation.busy`: memory is protected where checkpoints do not come about."""
        if not self.committer.checkpoint_overdue:
            return False
        self.upkeep.start_checkpoint()  # no commit will start it any more
        return True

    async def end(self) -> None:
        """As `Incarnation.end`."""
        await self.upkeep.end()
        await self.hot.end()
        self.committer.writer.close()
