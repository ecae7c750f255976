"""Requests that cannot be planned before files were asked: they wait beside the queue, and come back to its head.

Owns their way there and back, and what is shared: equal requests (a gateway's retries) have one look-up, and what it
found is remembered for a while. Their room is the queue's (`imray.shard.commit_queue`), so it is bounded with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from imray.core.columns import LookedUp
from imray.core.replies import Refusal, Refused
from imray.log.rows import Prepared
from imray.shard.commit_queue import CommitQueue, Waiting
from imray.shard.jobs import Job
from imray.shard.look_ups import LookUps
from imray.shard.old_ids import Aside

_FEW = 128
"""Up to so many rows to be looked up take milliseconds: such a request takes room as one that waits for its commit
does. A filter is wrong about a few rows of a large request now and then, and that is nobody's fault."""
_REMEMBERED_S = 60.0
"""Longer than a gateway tries, so that its retries, and a sender's own next one, find what was found."""
_REMEMBERED_ROWS_MAX = 131_072
"""Old ids in what is remembered: about 250 bytes each. Two requests of the largest kind."""
_NO_ROOM = Refusal(Refused.BUSY, "too many requests with ids that were sent long ago are looked up: retry later")


@dataclass(eq=False)
class _Shared:
    """One look-up, and who waits for it."""

    incarnation: int
    last: int
    """As `LookedUp.last`."""
    waiting: list[Waiting]


@dataclass(frozen=True)
class _Remembered:
    looked: LookedUp
    end: asyncio.TimerHandle


class SetAside:
    """Those of one write loop."""

    def __init__(
        self,
        look_ups: LookUps,
        queue: CommitQueue,
        wake: asyncio.Event,
        fail: Callable[[BaseException, int], None],
    ) -> None:
        """`wake` is set when one comes back; `fail` ends an incarnation, by its number."""
        self._look_ups = look_ups
        self._queue = queue
        self._wake = wake
        self._fail = fail
        self._running: dict[bytes, _Shared] = {}
        """By `Aside.key`, the newest of each."""
        self._remembered: dict[bytes, _Remembered] = {}
        """By `Aside.key`, oldest first."""
        self._remembered_rows = 0

    def planned(self, incarnation: int, taken: list[Waiting], job: Job) -> list[Waiting]:
        """Those of the requests that a job is of. The others are looked up."""
        if not job.aside:
            return taken
        for aside in reversed(job.aside):  # so that those that come back at once are in their order again
            waiting = taken[aside.request]
            if not waiting.answer.done():  # else it was refused meanwhile
                self._set_aside(incarnation, waiting, aside)
        left_out = {aside.request for aside in job.aside}
        return [one for at, one in enumerate(taken) if at not in left_out]

    def _set_aside(self, incarnation: int, waiting: Waiting, aside: Aside) -> None:
        assert isinstance(waiting.what, Prepared)
        # what it comes back with must be news, or it would go round for ever
        last = -1 if waiting.what.looked is None else waiting.what.looked.last
        known = self._remembered.get(aside.key)
        if known is not None and known.looked.last > last:
            waiting.what = replace(waiting.what, looked=known.looked)
            self._queue.put_first(waiting)
            return
        if not self._queue.set_aside(waiting, few=len(aside.look_up.asked) <= _FEW):
            waiting.tell(_NO_ROOM)
            return
        shared = self._running.get(aside.key)
        if shared is not None and (shared.last > last or shared.last == aside.look_up.last):
            shared.waiting.append(waiting)
            return
        shared = self._running[aside.key] = _Shared(incarnation, aside.look_up.last, [waiting])
        self._look_ups.start(aside.look_up).add_done_callback(partial(self._looked, aside.key, shared))

    def _looked(self, key: bytes, shared: _Shared, looked: asyncio.Future[LookedUp]) -> None:
        is_newest = self._running.get(key) is shared
        if is_newest:
            del self._running[key]
        if looked.cancelled():
            return
        if (error := looked.exception()) is not None:
            # a bug of ours: the outcome is unknown, and its senders must not wait for ever
            self._fail(error, shared.incarnation)
            return
        found = looked.result()
        if is_newest:
            self._remember(key, found)
        for waiting in reversed(shared.waiting):
            if self._queue.is_aside(waiting):
                assert isinstance(waiting.what, Prepared)
                waiting.what = replace(waiting.what, looked=found)
                self._queue.put_back(waiting)
        self._wake.set()

    def _remember(self, key: bytes, looked: LookedUp) -> None:
        """Unless there is nothing in it, or it says of a row that a file could not be read: the next look may."""
        firsts = looked.firsts
        if not firsts or any(first.status is not None for first in firsts.values()):
            return
        self._forget(key)
        end = asyncio.get_running_loop().call_later(_REMEMBERED_S, self._forget, key)
        self._remembered[key] = _Remembered(looked, end)
        self._remembered_rows += len(firsts)
        while self._remembered_rows > _REMEMBERED_ROWS_MAX:
            self._forget(next(iter(self._remembered)))

    def _forget(self, key: bytes) -> None:
        known = self._remembered.pop(key, None)
        if known is not None:
            known.end.cancel()
            self._remembered_rows -= len(known.looked.firsts)

    def drop(self) -> None:
        """What waits was refused: nobody needs the look-ups any more."""
        self._running.clear()
        self._look_ups.drop()
        for key in list(self._remembered):
            self._forget(key)

    async def end(self) -> None:
        """Wait until nothing is read any more."""
        self.drop()
        await self._look_ups.end()
