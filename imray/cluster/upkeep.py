"""What a shard does beside its commits: checkpoints, and merges of what they seal. Nothing here is needed for an ack.

Owns the threads and the order of both. Does not own the files (`imray.log.checkpoint`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from imray.cluster.committer import Committer
from imray.core.errors import CorruptError, StorageError
from imray.log import checkpoint
from imray.settings import Settings

log = logging.getLogger("imray.upkeep")


class Upkeep:
    """The checkpoints and merges of one incarnation of a shard."""

    def __init__(
        self,
        committer: Committer,
        on_state: Callable[..., Awaitable[Any]],
        settings: Settings,
        when_quiet: Callable[[Callable[[], Awaitable[None]]], None],
        until_settled: Callable[[Callable[[], bool]], Awaitable[None]],
        fail: Callable[[BaseException], None],
    ) -> None:
        """`on_state` calls what touches the state; `when_quiet` has something done while no commit is in flight;
        `until_settled` waits for grants to be settled until a condition of the state holds."""
        self._until_settled = until_settled
        self._committer, self._on_state, self._settings = committer, on_state, settings
        self._when_quiet, self._fail = when_quiet, fail
        name = f"{committer.shard}"
        self._sealing, self._merging = (
            ThreadPoolExecutor(1, f"checkpoint-{name}"),
            ThreadPoolExecutor(1, f"merge-{name}"),
        )
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._merge_task: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._ended = False

    def start(self) -> None:
        """Read what look-ups of old ids need, before a commit has to wait for it."""
        self._merge_task = asyncio.create_task(self._load())

    def start_checkpoint(self) -> None:
        """Begin one, if it is due and none is under way."""
        if self._ended or self._checkpoint_task is not None or time.monotonic() < self._retry_at:
            return
        if self._committer.checkpoint_due:
            self._checkpoint_task = asyncio.create_task(self._checkpoint())

    async def end(self) -> None:
        """Stop in good order: what is being written is written, nothing new begins."""
        self._ended = True
        tasks = [t for t in (self._checkpoint_task, self._merge_task) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sealing.shutdown(wait=True)
        self._merging.shutdown(wait=True)

    async def _checkpoint(self) -> None:
        loop, committer = asyncio.get_running_loop(), self._committer
        try:
            frozen: asyncio.Future[checkpoint.Snapshot] = loop.create_future()

            async def freeze() -> None:
                if not frozen.cancelled():
                    frozen.set_result(await self._on_state(committer.freeze))

            self._when_quiet(freeze)
            snap = await frozen
            # ids under an outstanding grant cannot be sealed; grants settle by themselves, or their writer is fenced
            await self._until_settled(committer.frozen_settled)
            files = await loop.run_in_executor(
                self._sealing, checkpoint.write, committer.store, snap, list(committer.intervals)
            )
            await self._on_state(committer.sealed, files)
            if self._merge_task is None or self._merge_task.done():
                self._merge_task = asyncio.create_task(self._merge())
        except StorageError as e:
            # the frozen ids stay in memory and the log holds everything: only the next recovery takes longer
            log.warning("shard %d: no checkpoint: %s", committer.shard, e)
            self._retry_at = time.monotonic() + self._settings.reopen_delay_s_max
        except CorruptError as e:
            self._fail(e)
        finally:
            self._checkpoint_task = None

    async def _load(self) -> None:
        try:
            for interval in list(self._committer.intervals):
                await asyncio.get_running_loop().run_in_executor(self._merging, interval.loaded)
        except StorageError as e:
            log.warning("shard %d: sealed ids are not read ahead: %s", self._committer.shard, e)
        except CorruptError as e:
            self._fail(e)

    async def _merge(self) -> None:
        loop, committer = asyncio.get_running_loop(), self._committer
        store = committer.store
        try:
            table = await loop.run_in_executor(self._merging, committer.clear_used)
            if table is not None:
                await self._on_state(committer.recycle, table)
            while not self._ended:
                step = await loop.run_in_executor(
                    self._merging, checkpoint.merge_step, store, list(committer.intervals)
                )
                if step is None:
                    break
                await self._on_state(committer.merged, *step)
            in_use = list(committer.intervals)
            await loop.run_in_executor(self._merging, checkpoint.collect, store, committer.shard, in_use)
        except StorageError as e:
            log.warning(
                "shard %d: no merge of sealed intervals: %s; the next checkpoint tries again", committer.shard, e
            )
        except CorruptError as e:
            self._fail(e)
