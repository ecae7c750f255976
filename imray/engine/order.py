"""One conversation's messages at a gateway, put in order: publications come in, what follows goes out.

Owns the timer and the pulls of `imray.core.feed`, which decides. Does not own who is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from imray.core.feed import Feed, PullHole, Tell
from imray.core.replies import Refusal
from imray.engine.batches import Rows, runs_of
from imray.engine.listening import Batch

log = logging.getLogger("imray.feeds")


class Order:
    """Belongs to one event loop."""

    def __init__(
        self,
        conv_id: str,
        read: Callable[[int, int, bool], Awaitable[list[Batch] | Refusal]],
        tell: Callable[[Tell[Rows]], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        """`read`: what follows a number up to another, in pieces; must not raise. `on_bytes` is told of more or less
        that is held back."""
        self._conv_id = conv_id
        self._read = read
        self._tell = tell
        self._on_bytes = on_bytes
        self._feed: Feed[Rows] | None = None
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._pulling: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def begun(self) -> bool:
        """Whether it is known where the conversation stands."""
        return self._feed is not None

    @property
    def stable(self) -> int:
        """The highest `stable_seq` that was heard."""
        return self._feed.stable if self._feed is not None else 0

    def begin(self, stable: int) -> None:
        """What is above `stable` is put in order from now on."""
        self._feed = Feed(stable)

    def marked(self, stable: int) -> None:
        """The home shard said that all up to here is final."""
        assert self._feed is not None
        self._act(self._feed.published((), stable, self._now_ms()))

    def published(self, rows: Rows) -> None:
        """Messages are durable."""
        # before the first mark nobody needs them: they are at or below it, since whoever publishes first has marks
        if self._feed is not None:
            self._act(self._feed.published(runs_of(rows), 0, self._now_ms()))

    def _act(self, actions: Iterable[Tell[Rows] | PullHole]) -> None:
        for action in actions:
            if isinstance(action, PullHole):
                self._pulling = self._loop.create_task(self._pull(action))
            else:
                self._tell(action)
        assert self._feed is not None
        if self._feed.timer_at_ms != self._timer_ms:
            self._arm(self._feed.timer_at_ms)
        if self._feed.held_bytes != self._held_bytes:
            more = self._feed.held_bytes - self._held_bytes
            self._held_bytes = self._feed.held_bytes
            self._on_bytes(more)

    def _arm(self, at_ms: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ms = at_ms
        if at_ms is not None:
            self._timer = self._loop.call_later(max(0, at_ms - self._now_ms()) / 1000, self._tick)

    def _tick(self) -> None:
        assert self._feed is not None
        self._timer = None
        self._timer_ms = None
        self._act(self._feed.tick(self._now_ms()))

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    async def _pull(self, pull: PullHole) -> None:
        feed = self._feed
        assert feed is not None
        found = await self._read(pull.after, pull.upto, True)
        if isinstance(found, Refusal):
            log.info("%r: a hole above %d is not explained yet: %s", self._conv_id, pull.after, found.detail)
            self._act(feed.pull_failed(self._now_ms()))
            return
        runs = [run for piece in found for run in runs_of(piece.messages)]
        holes = [hole for piece in found for hole in piece.holes]
        self._act(feed.pulled(runs, holes, found[-1].upto, self._now_ms()))

    def close(self) -> None:
        """Put nothing in order any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pulling is not None:
            self._pulling.cancel()
        self._on_bytes(-self._held_bytes)
        self._held_bytes = 0
