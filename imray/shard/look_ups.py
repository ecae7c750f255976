"""Look-ups of old ids beside everything else, by a thread of their own, a few rows of each in turn.

Owns that thread and who waits for it. Does not own what is looked up (`imray.shard.old_ids`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from imray.core.columns import LookedUp
from imray.core.errors import UnavailableError
from imray.shard.old_ids import LookUp
from imray.shard.runtime import Runtime

AskId = tuple[int, int, int]
"""Slot, epoch of its writer, number of its ask."""


class LookUps:
    """Those of one event loop. How many there are at once is bounded by who starts them."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        # one thread: reads of one disk, and each step is Python for half of its time
        self._worker = runtime.worker(name)
        self._running: set[asyncio.Task[LookedUp]] = set()
        self._by_ask: dict[AskId, asyncio.Task[LookedUp]] = {}

    def start(self, look_up: LookUp, tell: Callable[[LookedUp | BaseException], None]) -> None:
        """Look it up; `tell` is called with what was found, or the error, unless it is dropped."""

        def done(task: asyncio.Task[LookedUp]) -> None:
            if not task.cancelled():
                tell(task.exception() or task.result())

        self._task(look_up).add_done_callback(done)

    async def looked(self, ask: AskId, look_up: LookUp) -> LookedUp:
        """What is found for an ask: one that comes again meanwhile waits for the same look-up. UnavailableError where
        it is dropped."""
        task = self._by_ask.get(ask)
        if task is None:
            task = self._by_ask[ask] = self._task(look_up)
            task.add_done_callback(lambda _: self._by_ask.pop(ask))
        await asyncio.wait([task])
        if task.cancelled():
            raise UnavailableError("the shard is not the writer any more")
        return task.result()

    def _task(self, look_up: LookUp) -> asyncio.Task[LookedUp]:
        task = asyncio.create_task(self._run(look_up))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _run(self, look_up: LookUp) -> LookedUp:
        # each step goes to the end of the thread's queue, so others' come between
        while await self._worker.run(look_up.step):
            pass
        return look_up.looked

    def drop(self) -> None:
        """Nobody waits for any of them any more."""
        for task in list(self._running):
            task.cancel()

    async def end(self) -> None:
        """Drop them, and wait until the thread is at rest."""
        self.drop()
        await self._worker.end(drop_waiting=True)
