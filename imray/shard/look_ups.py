"""Look-ups of old ids beside everything else, by a thread of their own, a few rows at a time.

Owns that thread, whose turn it is, and who waits for an ask's look-up. Does not own what is looked up
(`imray.shard.old_ids`), nor which requests share a look-up (`imray.shard.set_aside`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from imray.core.columns import LookedUp
from imray.shard.old_ids import LookUp
from imray.shard.runtime import Runtime


class LookUps:
    """Those of one event loop. How many there are at once is bounded by who starts them.

    Every second step is the oldest one's, so that however many come later it ends; the other is that of the one with
    the fewest steps left, so that a few rows never wait for many."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        # one thread: reads of one disk, and each step is Python for half of its time
        self._worker = runtime.worker(name)
        self._running: dict[LookUp, asyncio.Future[LookedUp]] = {}
        """Oldest first."""
        self._stepping: asyncio.Task[None] | None = None
        self._ended = False

    def start(self, look_up: LookUp) -> asyncio.Future[LookedUp]:
        """Look it up: what was found, or the error, comes here. Cancelled: it is dropped; who waits may do that."""
        looked: asyncio.Future[LookedUp] = asyncio.get_running_loop().create_future()
        if self._ended:
            looked.cancel()
            return looked
        self._running[look_up] = looked
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step_all())
        return looked

    async def _step_all(self) -> None:
        turn = 0
        while self._running:
            turn += 1
            oldest = next(iter(self._running))
            look_up = oldest if turn % 2 else min(self._running, key=lambda each: each.steps_left)
            looked = self._running[look_up]
            if not looked.done():
                await self._step(look_up, looked)
            if looked.done():
                self._running.pop(look_up, None)

    async def _step(self, look_up: LookUp, looked: asyncio.Future[LookedUp]) -> None:
        # never more than one waits for the thread: a read that hangs makes no pile behind it
        try:
            more = await self._worker.run(look_up.step)
        except Exception as e:  # noqa: BLE001 a bug of ours; who waits for it must hear of it
            if not looked.done():
                looked.set_exception(e)
            return
        if not more and not looked.done():
            looked.set_result(look_up.looked)

    def drop(self) -> None:
        """Nobody waits for any of them any more."""
        for looked in self._running.values():
            looked.cancel()
        self._running.clear()

    async def end(self) -> None:
        """Drop them, and wait until the thread is at rest."""
        self._ended = True
        self.drop()
        if self._stepping is not None:
            self._stepping.cancel()
            with suppress(asyncio.CancelledError):
                await self._stepping
        await self._worker.end(drop_waiting=True)


@dataclass(frozen=True)
class _AskLookUp:
    epoch: int
    ask: int
    looked: asyncio.Future[LookedUp]


class AskedLookUps:
    """Those of the asks of partitions: of each slot that of the newest ask, for as long as an ask may take."""

    def __init__(self, look_ups: LookUps) -> None:
        self._look_ups = look_ups
        self._of_slot: dict[int, _AskLookUp] = {}

    async def looked(self, slot: int, epoch: int, ask: int, look_up: LookUp, seconds: float) -> LookedUp | None:
        """What is found for an ask; the same one that comes again meanwhile waits for the same look-up. None: not
        within so many seconds, or it is dropped, as a newer ask of the slot's has come, or the shard is over."""
        asked = self._of_slot.get(slot)
        if asked is None or (asked.epoch, asked.ask) != (epoch, ask) or asked.looked.done():
            if asked is not None:
                asked.looked.cancel()
            asked = self._of_slot[slot] = _AskLookUp(epoch, ask, self._look_ups.start(look_up))
        await asyncio.wait([asked.looked], timeout=seconds)
        asked.looked.cancel()  # where it is not done: whoever else waits for it gets the same answer
        if self._of_slot.get(slot) is asked:
            del self._of_slot[slot]
        return None if asked.looked.cancelled() else asked.looked.result()

    async def end(self) -> None:
        """As `LookUps.end`."""
        await self._look_ups.end()
