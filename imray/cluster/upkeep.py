"""What a shard does beside its commits: checkpoints, and merges of what they seal. Nothing here is needed for an ack.

Owns the threads and the order of both. Does not own the files (`imray.log.checkpoint`), nor the list of intervals: that
is the committer's, in the thread of the state, and a result replaces there just what it was made of, or is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from imray.cluster.committer import Committer
from imray.core.errors import CorruptError, DerivedError, StorageError
from imray.log import checkpoint
from imray.log.remake import remake
from imray.log.sealed import SealedInterval, remove
from imray.settings import Settings

log = logging.getLogger("imray.upkeep")

_ADVANCE_AGAIN_S = 0.1


class Upkeep:
    """The checkpoints and merges of one incarnation of a shard."""

    def __init__(
        self,
        committer: Committer,
        on_state: Callable[..., Awaitable[Any]],
        settings: Settings,
        when_quiet: Callable[[Callable[[], Awaitable[None]]], None],
        until_settled: Callable[[Callable[[], bool]], Awaitable[None]],
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_state` calls what touches the state; `when_quiet` has something done while no commit is in flight;
        `until_settled` waits for grants to be settled until a condition of the state holds; `advance` has the shard's
        own log get a further segment."""
        self._until_settled = until_settled
        self._committer, self._on_state, self._settings = committer, on_state, settings
        self._when_quiet, self._advance = when_quiet, advance
        name = f"{committer.shard}"
        self._sealing = ThreadPoolExecutor(1, f"checkpoint-{name}")
        self._merging = ThreadPoolExecutor(1, f"merge-{name}")
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._merge_task: asyncio.Task[None] | None = None
        self._mending: set[asyncio.Task[None]] = set()
        self._retry_at = 0.0
        self._mend_at = 0.0
        self._advance_at = 0.0
        self._ended = False

    def start(self) -> None:
        """Read what look-ups of old ids need, before a commit has to wait for it."""
        self._merge_task = self._spawn(self._load())

    def start_checkpoint(self) -> None:
        """Begin one, if it is due and none is under way; and make anew what look-ups found damaged."""
        committer = self._committer
        idle = self._merge_task is None or self._merge_task.done()
        if committer.confirmer.damaged and idle and not self._ended and time.monotonic() >= self._mend_at:
            self._mend_at = time.monotonic() + self._settings.reopen_delay_s_max
            self._merge_task = self._spawn(self._mend_damaged())
        if self._ended or self._checkpoint_task is not None or time.monotonic() < self._retry_at:
            return
        if not committer.checkpoint_due:
            return
        if not committer.log_moved:
            if time.monotonic() >= self._advance_at:
                self._advance_at = time.monotonic() + _ADVANCE_AGAIN_S
                self._advance()  # it leads here again, when it is durable
            return
        self._checkpoint_task = self._spawn(self._checkpoint())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._ended:
            # a bug of ours, or no memory: nothing here is needed for an ack, and senders wait before it gets too much
            log.error("shard %d: upkeep failed", self._committer.shard, exc_info=error)
            self._committer.note(f"upkeep failed: {error!r}")
            self._retry_at = time.monotonic() + self._settings.reopen_delay_s_max

    async def end(self) -> None:
        """Begin nothing more. What a thread is writing is of no use to anybody then, and nobody waits for it."""
        self._ended = True
        tasks = [t for t in (self._checkpoint_task, self._merge_task, *self._mending) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for threads in (self._sealing, self._merging):
            threads.shutdown(wait=False, cancel_futures=True)

    async def wait(self) -> None:
        """After `end`: until the threads have ended. A merge takes seconds."""
        for threads in (self._sealing, self._merging):
            await asyncio.to_thread(threads.shutdown, wait=True)

    async def _in(self, threads: ThreadPoolExecutor, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, call, *args)

    async def _checkpoint(self) -> None:
        committer = self._committer
        try:
            frozen: asyncio.Future[checkpoint.Snapshot] = asyncio.get_running_loop().create_future()

            async def freeze() -> None:
                if not frozen.cancelled():
                    frozen.set_result(await self._on_state(committer.freeze))

            self._when_quiet(freeze)
            snap = await frozen
            # ids under an outstanding grant cannot be sealed; grants settle by themselves, or their writer is fenced
            await self._until_settled(committer.frozen_settled)
            files = await self._in(self._sealing, checkpoint.write, committer.store, snap, committer.intervals)
            await self._on_state(committer.sealed, files)
            # in this thread, after this checkpoint and before the next: what a checkpoint is about to name stays
            replaced, in_use = await self._on_state(committer.take_replaced)
            await self._in(self._sealing, committer.collect, replaced, in_use)
            if self._merge_task is None or self._merge_task.done():
                self._merge_task = self._spawn(self._merge())
        except StorageError as e:
            # the frozen ids stay in memory and the log holds everything: only the next recovery takes longer
            log.warning("shard %d: no checkpoint: %s", committer.shard, e)
            self._retry_at = time.monotonic() + self._settings.reopen_delay_s_max
        finally:
            self._checkpoint_task = None

    async def _load(self) -> None:
        try:
            removed = await self._in(self._merging, self._committer.store.sweep)
            if removed:
                log.info("removed %d files that were never published", removed)
        except StorageError as e:
            log.warning("%s", e)
        for sealed in self._committer.intervals:
            try:
                await self._in(self._merging, sealed.loaded)
            except StorageError as e:
                log.warning("shard %d: sealed ids are not read ahead: %s", self._committer.shard, e)
            except DerivedError as e:
                await self._remake(sealed, e)

    async def _merge(self) -> None:
        committer = self._committer
        try:
            table = await self._in(self._merging, committer.clear_used)
            if table is not None:
                await self._on_state(committer.recycle, table)
            while True:
                intervals = committer.intervals
                try:
                    step = await self._in(self._merging, checkpoint.merge_step, committer.store, intervals)
                except DerivedError as e:
                    damaged = next(sealed for sealed in intervals if e.file in sealed.interval.names)
                    if not await self._remake(damaged, e):
                        return
                    continue
                if step is None:
                    return
                await self._replace(*step)
        except StorageError as e:
            log.warning(
                "shard %d: no merge of sealed intervals: %s; the next checkpoint tries again", committer.shard, e
            )

    async def _replace(self, parts: list[SealedInterval], whole: SealedInterval) -> None:
        if not await self._on_state(self._committer.merged, parts, whole):
            await self._in(self._merging, remove, self._committer.store, whole.interval)

    async def mend(self, file: str) -> None:
        """Make the interval of a derived file anew, where the file is missing or does not verify."""
        for sealed in self._committer.intervals:
            if file in sealed.interval.names:
                task = self._spawn(self._mend(sealed))
                self._mending.add(task)
                task.add_done_callback(self._mending.discard)
                await asyncio.wait([task])

    async def _mend(self, sealed: SealedInterval) -> None:
        try:
            await self._in(self._merging, sealed.check)
        except DerivedError as e:
            await self._remake(sealed, e)
        except StorageError as e:
            log.warning("shard %d: %s", self._committer.shard, e)

    async def _mend_damaged(self) -> None:
        for sealed in list(self._committer.confirmer.damaged):
            await self._mend(sealed)
            self._committer.confirmer.damaged.discard(sealed)

    async def _remake(self, sealed: SealedInterval, error: DerivedError) -> bool:
        """Put an interval made anew from the log in the place of one whose files are damaged. False: it cannot be."""
        committer = self._committer
        if not any(sealed is other for other in committer.intervals):
            return True  # another took its place meanwhile
        args = (committer.store, committer.state.seed, sealed.interval, dict(committer.state.covered))
        try:
            made = await self._in(self._merging, remake, *args)
        except (CorruptError, DerivedError, StorageError) as e:
            committer.note(f"{error}; it cannot be made anew: {e}")
            return False
        await self._replace([sealed], made)
        committer.note(f"{error}; made anew from the log")
        return True
