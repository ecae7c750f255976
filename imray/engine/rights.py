"""Who of those who listen may: asked of the shards, many in one call.

Owns the gathering of questions, and what becomes of listeners when the members of a conversation change. Does not own
the rules (`imray.core.members`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from imray.core.replies import Refusal, Refused
from imray.engine.listening import Ended, EndReason
from imray.engine.live_feed import LiveFeed
from imray.engine.subscriptions import Subscription

log = logging.getLogger("imray.feeds")

_GATHER_S = 0.002
"""Who comes back after a cut comes with many others."""
_USERS_MAX = 1000
"""In one call."""
_FORBIDDEN = Refusal(Refused.FORBIDDEN, "only members may listen to this conversation")
"""One text for all: a stranger does not learn whether there is such a conversation."""


class Rights(Protocol):
    """What some users may do in a conversation."""

    def may_listen(self, user: str, service: bool) -> bool:
        """Pull and listen."""

    def may_send(self, user: str, service: bool) -> bool:
        """Send and signal."""


class RightsSource(Protocol):
    """Who knows."""

    async def rights(self, conv_id: str, users: list[str]) -> Rights | Refusal:
        """What some users may do in a conversation."""


class Gate:
    """Of one gateway. Belongs to one event loop."""

    def __init__(self, source: RightsSource, open_to_all: bool) -> None:
        """`open_to_all`: so are conversations that nobody created."""
        self._source = source
        self._open_to_all = open_to_all
        self._gathering: dict[str, tuple[dict[str, None], asyncio.Task[Rights | Refusal]]] = {}
        self._checks: dict[LiveFeed, asyncio.Task[None]] = {}
        self._again: set[LiveFeed] = set()
        """To be checked once more when the check that runs has ended."""

    async def admit(self, feed: LiveFeed, subscription: Subscription) -> Refusal | None:
        """None: the listener may listen. The feed must be ready."""
        listener = subscription.listener
        if feed.members < 0:
            if self._open_to_all or listener.service:
                subscription.may_signal = True
                return None
            return _FORBIDDEN
        if listener.service:
            subscription.may_signal = True
            return None
        rights = await self._ask(feed.conv_id, listener.sender)
        if isinstance(rights, Refusal):
            return rights
        if not rights.may_listen(listener.sender, False):
            return _FORBIDDEN
        subscription.may_signal = rights.may_send(listener.sender, False)
        return None

    async def _ask(self, conv_id: str, user: str) -> Rights | Refusal:
        """About one user, together with those who are asked about in the same moment."""
        found = self._gathering.get(conv_id)
        if found is None or len(found[0]) >= _USERS_MAX:
            users: dict[str, None] = {}
            found = (users, asyncio.create_task(self._gathered(conv_id, users)))
            self._gathering[conv_id] = found
        found[0][user] = None
        return await asyncio.shield(found[1])

    async def _gathered(self, conv_id: str, users: dict[str, None]) -> Rights | Refusal:
        await asyncio.sleep(_GATHER_S)
        if self._gathering.get(conv_id, ({}, None))[0] is users:
            del self._gathering[conv_id]
        return await self._source.rights(conv_id, list(users))

    def check_soon(self, feed: LiveFeed, hold: bool) -> None:
        """The members changed: ask about all who listen. `hold`: what became of whom was not told, so nobody is told
        anything before the answer."""
        if hold:
            feed.hold()
        if feed in self._checks:
            self._again.add(feed)  # what it is told may be older than the change
        else:
            self._checks[feed] = asyncio.create_task(self._check(feed))

    async def _check(self, feed: LiveFeed) -> None:
        try:
            await asyncio.sleep(_GATHER_S)  # changes come in series
            while True:
                self._again.discard(feed)
                await self._ask_all(feed)
                if feed not in self._again:
                    break
            feed.release()
        finally:
            self._again.discard(feed)
            del self._checks[feed]

    async def _ask_all(self, feed: LiveFeed) -> None:
        users = list(dict.fromkeys(s.listener.sender for s in feed.subscriptions.values() if not s.listener.service))
        for begin in range(0, len(users), _USERS_MAX):
            asked = users[begin : begin + _USERS_MAX]
            rights: Rights | Refusal
            try:
                rights = await self._source.rights(feed.conv_id, asked)
            except Exception as e:
                log.exception("%r: who may listen is not known", feed.conv_id)
                rights = Refusal(Refused.UNAVAILABLE, repr(e))
            _apply(feed, set(asked), rights)

    def close(self) -> None:
        """Ask nobody any more."""
        for _, gathering in self._gathering.values():
            gathering.cancel()
        for task in list(self._checks.values()):
            task.cancel()


def _apply(feed: LiveFeed, asked: set[str], rights: Rights | Refusal) -> None:
    for subscription in list(feed.subscriptions.values()):
        listener = subscription.listener
        if listener.service or listener.sender not in asked or subscription.until is not None:
            continue
        if isinstance(rights, Refusal):
            feed.end(subscription, Ended(feed.conv_id, subscription.at, EndReason.UNAVAILABLE))
        elif rights.may_listen(listener.sender, False):
            subscription.may_signal = rights.may_send(listener.sender, False)
        else:
            feed.removed(subscription, subscription.at)
