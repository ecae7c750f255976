"""One log's subscriptions as a gateway holds them: asked for, renewed whenever they may have been lost.

Owns when a log's writer is asked, and which of its answers and publications are believed. Does not own connections
(`imray.rpc.channel`), nor what is told to listeners (`imray.engine.feeds`).

A subscription is believed to be there only while its writer's beats are heard. An epoch never goes back: a writer with
a lower one has a successor, and what is told by it may be all that it will ever tell.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from imray.core.replies import Refusal, Refused
from imray.rpc.publications import NAMES_MAX, Mark, Publication, SubscribeArgs, SubscribedMarks

log = logging.getLogger("imray.feeds")

SILENCE_S_MAX = 3.0
"""Three beats of a writer."""
_RETRY_S_MIN = 0.05
_RETRY_S_MAX = 1.0

OnMarks = Callable[[int, list[Mark]], None]
"""Told the epoch and marks of a log."""


class LogSource(Protocol):
    """The logs' writers, as subscriptions need them."""

    async def subscribe(self, log: int, args: SubscribeArgs) -> SubscribedMarks | Refusal:
        """Ask whoever writes a log now. A Refusal: it may have been executed or not."""

    def look_anew(self, log: int) -> None:
        """Leave whoever was asked last: it is not the log's writer any more, or says nothing."""

    def doubt(self, log: int) -> None:
        """Whoever was asked last may not be the log's writer any more: find out before the next ask."""


class FeedLink:
    """The subscriptions to one log. Belongs to one event loop."""

    def __init__(self, log: int, source: LogSource, on_marks: OnMarks) -> None:
        self._log = log
        self._source = source
        self._on_marks = on_marks
        self.epoch = 0
        """The highest that was heard of."""
        self._wanted: dict[str, None] = {}
        self._told: dict[str, None] = {}
        """What the writer was asked for and has confirmed, over a connection that is there."""
        self._sent: dict[str, None] = {}
        """What it was asked for over that connection, confirmed or not, and was not taken back: it may tell of it."""
        self._generation = 0
        """Counts losses: an answer from before one says nothing."""
        self._heard_s = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._waked = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Nothing is wanted, and nothing is to be taken back."""
        return not self._wanted and not self._sent

    def want(self, conv_id: str) -> None:
        """Subscribe to a conversation, until `leave`. It is asked for even where it was before: whoever wants it anew
        needs to hear where it stands."""
        self._wanted[conv_id] = None
        self._told.pop(conv_id, None)
        self._ask_soon()

    def leave(self, conv_id: str) -> None:
        """Want it no more."""
        if conv_id in self._wanted:
            del self._wanted[conv_id]
            self._ask_soon()

    def lost(self) -> None:
        """The connection is gone, and with it all that was asked for over it: ask again."""
        self._sent.clear()
        self._renew()

    def _renew(self) -> None:
        """What was told until now may not be all: ask again."""
        self._generation += 1
        self._told.clear()
        if self._wanted:
            self._ask_soon()

    def take(self, publication: Publication) -> bool:
        """Something was published. False: by an incarnation that has a successor."""
        epoch = publication.head.epoch
        if epoch < self.epoch:
            return False
        self._heard_s = asyncio.get_running_loop().time()
        if epoch > self.epoch:
            known = self.epoch
            self.epoch = epoch
            if known:
                self._renew()  # what its predecessor made durable last, nobody may have told
        return True

    def watch(self, now_s: float) -> None:
        """Look anew for a writer that was not heard for too long."""
        if self._told and now_s - self._heard_s > SILENCE_S_MAX:
            log.warning("log %d: nothing was heard for %.1f s: asking anew", self._log, now_s - self._heard_s)
            self._source.look_anew(self._log)
            self.lost()

    def _ask_soon(self) -> None:
        self._waked.set()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        """Until the writer has confirmed what is wanted."""
        loop = asyncio.get_running_loop()
        delay_s = _RETRY_S_MIN
        answered_s = loop.time()
        while True:
            self._waked.clear()
            await asyncio.sleep(0)  # who wants something in the same turn is asked for together
            add = [name for name in self._wanted if name not in self._told][:NAMES_MAX]
            drop = [name for name in self._sent if name not in self._wanted][:NAMES_MAX]
            if not add and not drop:
                return
            if await self._asked(add, drop):
                delay_s = _RETRY_S_MIN
                answered_s = loop.time()
                continue
            if loop.time() - answered_s > SILENCE_S_MAX:
                answered_s = loop.time()
                self._source.doubt(self._log)  # who refuses for so long may have a successor
            try:
                async with asyncio.timeout(delay_s):
                    await self._waked.wait()
            except TimeoutError:
                delay_s = min(2 * delay_s, _RETRY_S_MAX)
            else:
                await asyncio.sleep(_RETRY_S_MIN)

    async def _asked(self, add: list[str], drop: list[str]) -> bool:
        generation = self._generation
        self._sent |= dict.fromkeys(add)
        answer: SubscribedMarks | Refusal
        try:
            answer = await self._source.subscribe(self._log, SubscribeArgs(add, drop))
        except Exception as e:
            log.exception("log %d: it could not be asked", self._log)
            answer = Refusal(Refused.UNAVAILABLE, repr(e))
        if isinstance(answer, Refusal):
            log.info("log %d: no subscription yet: %s", self._log, answer.detail)
            return False
        if answer.epoch < self.epoch:
            self._source.look_anew(self._log)
            return False
        if generation != self._generation:
            return True  # it was lost since: asked again at once
        self.epoch = answer.epoch
        self._heard_s = asyncio.get_running_loop().time()
        for name in drop:
            if name not in self._wanted:
                self._told.pop(name, None)
                self._sent.pop(name, None)
        self._told |= dict.fromkeys(name for name in add if name in self._wanted)
        self._on_marks(answer.epoch, answer.marks)
        return True

    def close(self) -> None:
        """Ask nobody any more."""
        if self._asking is not None:
            self._asking.cancel()
