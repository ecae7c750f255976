"""Requests that cannot be planned before files were asked: they wait beside the queue, and come back to its head.

Owns their way there and back. Their room is the queue's (`imray.shard.commit_queue`), so it is bounded with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from imray.core.columns import LookedUp
from imray.log.rows import Prepared
from imray.shard.commit_queue import CommitQueue, Waiting
from imray.shard.jobs import Job
from imray.shard.look_ups import LookUps


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

    def planned(self, incarnation: int, taken: list[Waiting], job: Job) -> list[Waiting]:
        """Those of the requests that a job is of. The others are looked up."""
        if not job.aside:
            return taken
        look_ups = {each.request: each.look_up for each in job.aside}
        for at, look_up in look_ups.items():
            if not taken[at].answer.done():  # else it was refused meanwhile
                self._queue.set_aside(taken[at])
                self._look_ups.start(look_up, partial(self._looked, incarnation, taken[at]))
        return [one for at, one in enumerate(taken) if at not in look_ups]

    def _looked(self, incarnation: int, waiting: Waiting, looked: LookedUp | BaseException) -> None:
        if isinstance(looked, BaseException):
            # a bug of ours: the outcome is unknown, and its sender must not wait for ever
            self._fail(looked, incarnation)
        elif self._queue.is_aside(waiting):
            assert isinstance(waiting.what, Prepared)
            waiting.what = replace(waiting.what, looked=looked)
            self._queue.put_back(waiting)
            self._wake.set()

    def drop(self) -> None:
        """What waits was refused: nobody needs the look-ups any more."""
        self._look_ups.drop()

    async def end(self) -> None:
        """Wait until nothing is read any more."""
        await self._look_ups.end()
