"""What a shard does beside its commits: checkpoints, and merges of what they seal. Nothing here is needed for an ack.

Owns the order of both. Does not own the files (`imray.log.checkpoint`), what is made anew of them
(`imray.shard.mending`), nor the list of intervals: that is the committer's, in the thread of the state, and a result
replaces there just what it was made of, or is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from imray.core.errors import DerivedError, StorageError
from imray.log import checkpoint
from imray.log.checkpoint_snapshot import Snapshot
from imray.log.sealed import SealedInterval, remove
from imray.log.sealed_filter import grown
from imray.settings import Settings
from imray.shard.checkpoint_timing import CheckpointTiming
from imray.shard.committer import Committer
from imray.shard.interval_merging import IntervalMerger
from imray.shard.mending import Mender
from imray.shard.runtime import Runtime, StateThread, Worker

log = logging.getLogger("imray.upkeep")

_ADVANCE_AGAIN_S = 0.1


class UpkeepWorkers:
    """One thread for checkpoints and one for merges, for as long as a process has a shard: what an incarnation that is
    over left running is one piece of work at most, and the next one's waits for it."""

    def __init__(self, runtime: Runtime, shard: int) -> None:
        self.sealing = runtime.worker(f"checkpoint-{shard}", background=True)
        self.merging = runtime.worker(f"merge-{shard}", background=True)
        self.merger = IntervalMerger()

    async def end(self) -> None:
        """Wait until both are at rest."""
        self.merger.stop()
        for worker in (self.sealing, self.merging):
            await worker.end(drop_waiting=True)


class Upkeep:
    """The checkpoints and merges of one incarnation of a shard."""

    def __init__(
        self,
        committer: Committer,
        workers: UpkeepWorkers,
        state: StateThread,
        settings: Settings,
        runtime: Runtime,
        when_idle: Callable[[Callable[[], Awaitable[None]]], None],
        until_settled: Callable[[Callable[[], bool]], Awaitable[None]],
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """`when_idle` has something done while no commit is on its way;
        `until_settled` waits for grants to be settled until a condition of the state holds; `advance` has the shard's
        own log get a further segment."""
        self._committer = committer
        self._workers = workers
        self._on_state = state.run
        self._settings = settings
        self._now_s = runtime.monotonic_s
        self._when_idle = when_idle
        self._until_settled = until_settled
        self._advance = advance
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._merge_task: asyncio.Task[None] | None = None
        self._mender = Mender(committer, workers.merging, state, settings, runtime, self._spawn, self.start_checkpoint)
        self.mend = self._mender.mend
        self._retry_at = 0.0
        self._advance_at = 0.0
        self._again: asyncio.TimerHandle | None = None
        self._timing = CheckpointTiming(committer, settings, runtime.monotonic_s)
        self._look: asyncio.TimerHandle | None = None
        self._ended = False

    def start(self) -> None:
        """Read what look-ups of old ids need, before a commit has to wait for it."""
        self._merge_task = self._spawn(self._load())
        self._look_later()
        self.start_checkpoint()

    def _look_later(self) -> None:
        self._look = asyncio.get_running_loop().call_later(self._timing.look_s, self._look_now)

    def _look_now(self) -> None:
        """What is due by time alone: nothing else may come that would start it."""
        self._look_later()
        self._timing.look()
        self._mender.look_again()
        self.start_checkpoint()
        if self._checkpoint_task is None and self._timing.twin_due and self._now_s() >= self._retry_at:
            self._checkpoint_task = self._spawn(self._twin())

    def start_checkpoint(self) -> None:
        """Begin one, if it is due and none is under way; and make anew what look-ups found damaged."""
        committer = self._committer
        if self._ended:
            return
        self._mender.look()
        if self._checkpoint_task is not None or not (committer.checkpoint_due or self._timing.due):
            return
        if self._now_s() < self._retry_at:
            self._start_again_in(self._retry_at - self._now_s())
            return
        if not committer.log_moved:
            if self._now_s() >= self._advance_at:
                self._advance_at = self._now_s() + _ADVANCE_AGAIN_S
                self._advance()  # it leads here again, when it is durable
            else:
                self._start_again_in(_ADVANCE_AGAIN_S)
            return
        self._checkpoint_task = self._spawn(self._checkpoint())

    def _start_again_in(self, delay_s: float) -> None:
        """Who came too early may have been the last to come. Not sooner than `_ADVANCE_AGAIN_S`: what is left of a
        delay may be less than a clock shows, and would be waited for again and again."""
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(max(delay_s, _ADVANCE_AGAIN_S), self._start_again)

    def _start_again(self) -> None:
        self._again = None
        self.start_checkpoint()

    @property
    def at_work(self) -> bool:
        """Whether a checkpoint or a merge is under way."""
        merging = self._merge_task is not None and not self._merge_task.done()
        return self._checkpoint_task is not None or merging or bool(self._mender.tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._ended:
            # a bug of ours, or no memory: nothing here is needed for an ack, and senders wait before it gets too much
            log.error("shard %d: upkeep failed", self._committer.shard, exc_info=error)
            self._committer.note(f"upkeep failed: {error!r}")
            self._retry_at = self._now_s() + self._settings.reopen_delay_s_max

    async def end(self) -> None:
        """Begin nothing more. What a thread is making is of no use to anybody then, and nobody waits for it."""
        self._ended = True
        self._mender.end()
        for timer in (self._again, self._look):
            if timer is not None:
                timer.cancel()
        tasks = [t for t in (self._checkpoint_task, self._merge_task, *self._mender.tasks.values()) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _in(self, worker: Worker, call: Callable[..., Any], *args: Any) -> Any:
        return await worker.run(call, *args)

    async def _checkpoint(self) -> None:
        committer = self._committer
        sealing = self._workers.sealing
        try:
            frozen: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()

            async def freeze() -> None:
                if not frozen.cancelled():
                    frozen.set_result(await self._on_state(committer.freeze))

            self._when_idle(freeze)
            snap = await frozen
            # ids under an outstanding grant cannot be sealed; grants settle by themselves, or their writer is fenced
            await self._until_settled(committer.frozen_settled)
            files = await self._in(sealing, checkpoint.write, committer.store, snap, committer.intervals)
            sealed_filter = await self._in(sealing, grown, committer.state.sealed_filter, files)
            await self._on_state(committer.sealed, files, sealed_filter)
            self._timing.made()
            if not committer.state.checkpoints.links:
                committer.note("a file that the newest checkpoint builds on was lost: the next one has all again")
                committer.rewrite = True
            await self._collect()
            if self._merge_task is None or self._merge_task.done():
                self._merge_task = self._spawn(self._merge())
        except (StorageError, DerivedError) as e:
            # the frozen ids stay in memory and the log holds everything: only the next recovery takes longer
            log.warning("shard %d: no checkpoint: %s", committer.shard, e)
            self._retry_at = self._now_s() + self._settings.reopen_delay_s_max
        finally:
            self._checkpoint_task = None
        self.start_checkpoint()  # what came meanwhile may be enough for another, and nothing may come after it

    async def _collect(self) -> None:
        # in this thread, after a checkpoint and before the next: what a checkpoint is about to name stays
        replaced, in_use = await self._on_state(self._committer.take_replaced)
        await self._in(self._workers.sealing, self._committer.collect, replaced, in_use)

    async def _twin(self) -> None:
        committer = self._committer
        try:
            if await self._in(self._workers.sealing, self._write_twin):
                await self._collect()
            self._timing.twin_made()
        except (StorageError, DerivedError) as e:
            log.warning("shard %d: the newest checkpoint stays the only one: %s", committer.shard, e)
            self._retry_at = self._now_s() + self._settings.reopen_delay_s_max
        finally:
            self._checkpoint_task = None
        self.start_checkpoint()

    def _write_twin(self) -> bool:
        committer = self._committer
        return committer.writer.is_last() and checkpoint.write_twin(committer.store, committer.shard)

    async def _load(self) -> None:
        committer = self._committer
        try:
            removed = await self._in(self._workers.merging, committer.store.sweep)
            if removed:
                log.info("removed %d files that were never published", removed)
        except StorageError as e:
            log.warning("%s", e)
        for sealed in committer.intervals:
            blind = sealed.bloom is None
            try:
                await self._in(self._workers.merging, sealed.loaded)
                if blind:
                    await self.mend(sealed.interval.name("bloom"))
            except StorageError as e:
                log.warning("shard %d: sealed ids are not read ahead: %s", self._committer.shard, e)
            except DerivedError as e:
                await self.mend(e.file)
        # in the thread of the checkpoints: two that put ids into one filter would undo each other's bits
        sealed_filter = await self._in(self._workers.sealing, grown, committer.state.sealed_filter, committer.intervals)
        await self._on_state(committer.use_filter, sealed_filter)

    async def _merge(self) -> None:
        committer = self._committer
        try:
            table = await self._in(self._workers.merging, committer.clear_used)
            if table is not None:
                await self._on_state(committer.recycle, table)
            while True:
                try:
                    step = await self._in(self._workers.merging, self._merge_step, committer.intervals)
                except DerivedError as e:
                    if not await self.mend(e.file):
                        log.warning("shard %d: no merge of sealed intervals: %s", committer.shard, e)
                        return
                    continue
                if step is None:
                    return
                await self._mender.replace(*step)
        except StorageError as e:
            log.warning(
                "shard %d: no merge of sealed intervals: %s; the next checkpoint tries again", committer.shard, e
            )

    def _merge_step(self, intervals: Sequence[SealedInterval]) -> tuple[list[SealedInterval], SealedInterval] | None:
        step = self._workers.merger.step(self._committer.store, intervals)
        if step is not None and self._ended:
            remove(self._committer.store, step[1].interval)
        return step
