"""One incarnation of a shard's writer: what it recovered, and who plans, writes and applies its commits.

Owns nothing but the life of its parts: the state and its one writer (`imray.shard.committer`), hot groups, upkeep.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from imray.core.errors import FencedError, StaleError, StorageError
from imray.core.replies import Refusal
from imray.log.rows import Prepared
from imray.log.store import Store
from imray.rpc.publications import Mark, MembersTold
from imray.settings import Settings
from imray.shard.committer import Committer
from imray.shard.grants import Grants
from imray.shard.hot_groups import HotGroups, StartPartitions
from imray.shard.jobs import Job, Records
from imray.shard.publisher import Publisher, marks_of, names_in
from imray.shard.recovery import Readable
from imray.shard.runtime import Runtime, StateThread
from imray.shard.upkeep import Upkeep, UpkeepWorkers

_MARK_S = 0.002
"""Marks of hot groups wait so long for one another: reports come from each partition on its own."""


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
    publisher: Publisher


class ShardIncarnation:
    """As `imray.shard.jobs.Incarnation`."""

    def __init__(
        self, around: Surroundings, committer: Committer, grants: Grants, fail: Callable[[BaseException], None]
    ):
        self.committer = committer
        self._state = around.state
        self._rows_at_once_max = around.settings.rows_at_once_max
        self._fail = fail
        self._publisher = around.publisher
        self._marked: dict[int, int] = {}
        """`stable_seq` of hot conversations, as it was told last."""
        self._marking: asyncio.TimerHandle | None = None
        self._ended = False
        self.hot = HotGroups(
            grants=grants,
            state=around.state,
            settings=around.settings,
            runtime=around.runtime,
            record=around.record,
            start_partitions=around.start_partitions,
            fail=self._hot_failed,
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
        self.hot.on_stable = self._tell_stable_soon

    def _hot_failed(self, error: BaseException) -> None:
        """As `fail`. Of a partition's log nothing was merged that this shard has not read, unless by a successor, which
        made the checkpoint: this one must not take the log back."""
        self._fail(FencedError(str(error)) if isinstance(error, StaleError) else error)

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
        # who listens finds out that what it heard of the predecessor may not be all
        around.publisher.epoch = committer.state.log.epoch
        around.publisher.beat()
        return made

    async def plan(self, what: list[Prepared] | Records) -> Job:
        """As `Incarnation.plan`. A small commit is planned and encoded at once (`Settings.rows_at_once_max`)."""
        if not isinstance(what, list):
            return await self._state.run(self.committer.record, what)
        if sum(map(len, what)) <= self._rows_at_once_max:
            _, job = self._state.run_in_turn(self.committer.plan, what)
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
                done, marks = self._state.run_in_turn(self._mark_durable, job)
                if done:
                    self._publish(job, marks or [])
                    self.upkeep.start_checkpoint()
                    return
            except Exception as e:  # noqa: BLE001 it ends the incarnation, and takes no ack back
                self._fail(e)
                return
        self._state.run(self._mark_durable, job).add_done_callback(partial(self._applied, job))

    def _applied(self, job: Job, applied: asyncio.Future[list[Mark]]) -> None:
        if applied.cancelled():
            return
        if (error := applied.exception()) is not None:
            self._fail(error)
        else:
            self._publish(job, applied.result())
            self.upkeep.start_checkpoint()

    # What listeners are told

    def _mark_durable(self, job: Job) -> list[Mark]:
        """In the thread of the state. Where the conversations stand afterwards that somebody listens to."""
        self.committer.mark_durable(job)
        if not self._publisher or job.table is None or (job.commit is not None and job.commit.cursors):
            return []  # cursors are a matter between a user and its devices
        wanted = [name for name in names_in(job.table) if self._publisher.wants(name)]
        return marks_of(self.committer.state, wanted) if wanted else []

    def _publish(self, job: Job, marks: list[Mark]) -> None:
        if marks and not self._ended:
            changes = [MembersTold(m.conv_id, m.after, m.version, list(m.removed)) for m in job.members]
            self._publisher.publish(job.table if job.answers else None, marks, changes)

    def _tell_stable_soon(self) -> None:
        """Grants were settled: `stable_seq` of hot groups may have moved."""
        if self._publisher and self._marking is None and not self._ended:
            self._marking = asyncio.get_running_loop().call_later(_MARK_S, self._tell_stable)

    def _tell_stable(self) -> None:
        self._marking = None
        # in its turn: what a commit before it says of members must be told before numbers above it are final
        done, marks = self._state.run_in_turn(self._moved)
        if done:
            self._publisher.publish(None, marks or [])
        else:
            self._state.run(self._moved).add_done_callback(self._told_stable)

    def _told_stable(self, moved: asyncio.Future[list[Mark]]) -> None:
        if not self._ended and not moved.cancelled() and moved.exception() is None:
            self._publisher.publish(None, moved.result())

    def _moved(self) -> list[Mark]:
        state = self.committer.state
        names = []
        for conv, group in state.hot.items():
            if self._marked.get(conv) != group.stable:
                self._marked[conv] = group.stable
                name = state.conversations.name(conv)
                if self._publisher.wants(name):
                    names.append(name)
        return marks_of(state, names) if names else []

    @property
    def busy(self) -> bool:
        """As `Incarnation.busy`: memory is protected where checkpoints do not come about."""
        if not self.committer.checkpoint_overdue:
            return False
        self.upkeep.start_checkpoint()  # no commit will start it any more
        return True

    async def end(self) -> None:
        """As `Incarnation.end`."""
        self._ended = True
        if self._marking is not None:
            self._marking.cancel()
        await self.upkeep.end()
        await self.hot.end()
        self.committer.writer.close()
