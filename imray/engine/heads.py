"""Heads for passive listeners: where a conversation stands, at a bounded rate.

In a group of 100,000 most people are not looking: each of them is told a number now and then, not every message.
"""

from __future__ import annotations

import asyncio

from imray.engine.listening import HeadMoved
from imray.engine.live_feed import LiveFeed
from imray.engine.subscriptions import Subscription

_AT_ONCE_MAX = 100
_PAUSE_S = 0.02
"""All passive listeners of a gateway together are told 5,000 heads a second at most."""
_HEAD_S_MIN = 1.0
"""Between two heads of a conversation to one listener."""


class Heads:
    """Of one gateway. Belongs to one event loop."""

    def __init__(self) -> None:
        self._telling: dict[LiveFeed, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._told = 0
        """Heads since the last pause."""

    def moved(self, feed: LiveFeed) -> None:
        """A conversation with passive listeners stands elsewhere, or has another one of them."""
        if feed not in self._telling:
            self._telling[feed] = asyncio.create_task(self._tell(feed))

    async def _tell(self, feed: LiveFeed) -> None:
        """For as long as somebody does not know."""
        try:
            await self._tell_all(feed)
        finally:
            # in the same step as the last look: what moves after it begins anew
            del self._telling[feed]

    async def _tell_all(self, feed: LiveFeed) -> None:
        while behind := [s for s in feed.passive if s.told_head != feed.position]:
            for subscription in behind:
                async with self._turn:
                    self._told += 1
                    if self._told >= _AT_ONCE_MAX:
                        self._told = 0
                        await asyncio.sleep(_PAUSE_S)
                _tell(feed, subscription)
            await asyncio.sleep(_HEAD_S_MIN)

    def close(self) -> None:
        """Tell nobody anything more."""
        for task in list(self._telling.values()):
            task.cancel()


def _tell(feed: LiveFeed, subscription: Subscription) -> None:
    if subscription in feed.passive and (subscription.listener.service or not feed.checking):
        subscription.told_head = feed.position
        unread = max(0, feed.position - subscription.read)
        subscription.notify(HeadMoved(feed.conv_id, feed.position, unread))
