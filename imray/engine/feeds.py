"""All that a gateway tells its listeners: feeds of conversations over the subscriptions to their logs.

Owns which conversations are subscribed to, who may listen, heads for passive listeners, and signals. Does not own one
conversation's listeners (`imray.engine.live_feed`), subscriptions to a log (`imray.engine.feed_links`), or connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from imray.core.errors import InvalidError
from imray.core.pages import SEQ_MAX
from imray.core.replies import Refusal, Refused
from imray.core.routing import check_conv_id, home_of, log_of
from imray.engine.batches import messages_of
from imray.engine.catch_up import CatchUp, PageSource
from imray.engine.feed_links import FeedLink, LogSource
from imray.engine.heads import Heads
from imray.engine.listening import Listener, Signal, Subscribed
from imray.engine.live_feed import LiveFeed
from imray.engine.rights import Gate, RightsSource
from imray.engine.subscriptions import Stage, Subscription
from imray.rpc.methods import Method
from imray.rpc.packing import decode_struct
from imray.rpc.publications import Mark, MembersTold, Publication, SignalArgs, decode_publication
from imray.settings import Settings

log = logging.getLogger("imray.feeds")

_WATCH_S = 0.5
_NONE: Mapping[str, MembersTold] = MappingProxyType({})


class Shards(LogSource, PageSource, RightsSource, Protocol):
    """The engine, as feeds need it."""

    async def signal(self, args: SignalArgs) -> Refusal | None:
        """Have every gateway with listeners of a conversation told."""


class Feeds:
    """The feeds of one gateway. Belongs to one event loop."""

    def __init__(self, shards: Shards, settings: Settings) -> None:
        self._shards = shards
        self._settings = settings
        self.catch_up = CatchUp(shards, settings.catch_up_bytes_max)
        self.feeds: dict[str, LiveFeed] = {}
        self._links: dict[int, FeedLink] = {}
        self._of: dict[Listener, dict[str, None]] = {}
        """The conversations of each listener."""
        self.bytes = 0
        """Of batches in memory."""
        self._idle: dict[LiveFeed, None] = {}
        """Feeds that nobody listened to at some time since, that for the longest first."""
        self._watching: asyncio.Task[None] | None = None
        self._heads = Heads()
        self._gate = Gate(shards, settings.conversations_open)
        self._closed = False

    # Of listeners

    async def subscribe(
        self, listener: Listener, conv_id: str, after: int | None, passive: bool
    ) -> Subscribed | Refusal:
        """Everything above `after` (None: from now on) will be told, once `start` was called; heads only where
        `passive`. Takes the place of what the listener had of this conversation. The listener must `leave` once."""
        try:
            check_conv_id(conv_id)
            if after is not None and not 0 <= after <= SEQ_MAX:
                raise InvalidError(f"after={after}: a number from 0 to {SEQ_MAX}")
        except InvalidError as e:
            return Refusal(Refused.INVALID, str(e))
        feed = self._feed(conv_id)
        if feed is None:
            return Refusal(Refused.BUSY, "this gateway tells of as many conversations as it can: try another")
        # before it is asked what it may: a removal that comes meanwhile finds it
        subscription = Subscription(listener, after or 0, passive, after or 0)
        feed.add(subscription)
        self._of.setdefault(listener, {})[conv_id] = None
        refusal = await self._ready(feed, subscription)
        if refusal is not None:
            if feed.subscriptions.get(listener) is subscription:
                self.unsubscribe(listener, conv_id)
            return refusal
        if after is None:
            subscription.at = subscription.read = feed.position
        live = max(feed.position, subscription.at) + 1
        return Subscribed(conv_id, subscription.at, live, feed.stable, feed.epoch)

    async def _ready(self, feed: LiveFeed, subscription: Subscription) -> Refusal | None:
        try:
            async with asyncio.timeout(self._settings.send_deadline_s):
                await asyncio.shield(feed.ready)
        except TimeoutError:
            return Refusal(Refused.UNAVAILABLE, f"shard {self._shards.shard_of(feed.conv_id)} does not answer")
        refusal = await self._gate.admit(feed, subscription)
        if refusal is not None:
            return refusal
        if feed.subscriptions.get(subscription.listener) is not subscription:
            return Refusal(Refused.UNAVAILABLE, "the subscription ended while it was made")
        return None

    def _find(self, listener: Listener, conv_id: str) -> tuple[LiveFeed, Subscription] | None:
        feed = self.feeds.get(conv_id)
        subscription = None if feed is None else feed.subscriptions.get(listener)
        return None if feed is None or subscription is None else (feed, subscription)

    def start(self, listener: Listener, conv_id: str) -> None:
        """Let a subscription flow; where it has ended meanwhile nothing happens."""
        found = self._find(listener, conv_id)
        if found is not None:
            feed, subscription = found
            feed.start(subscription)

    def unsubscribe(self, listener: Listener, conv_id: str) -> None:
        """Tell no more of a conversation."""
        self._of.get(listener, {}).pop(conv_id, None)
        found = self._find(listener, conv_id)
        if found is not None:
            feed, subscription = found
            feed.end(subscription)

    def resume(self, listener: Listener) -> None:
        """A listener that refused what it was offered has room again."""
        for conv_id in list(self._of.get(listener, ())):
            found = self._find(listener, conv_id)
            if found is not None:
                feed, subscription = found
                feed.has_room(subscription)

    def leave(self, listener: Listener) -> None:
        """Its connection is over."""
        for conv_id in list(self._of.get(listener, ())):
            self.unsubscribe(listener, conv_id)
        self._of.pop(listener, None)

    def read(self, listener: Listener, conv_id: str, seq: int) -> None:
        """A listener has read up to a number: what it is told as unread begins there."""
        found = self._find(listener, conv_id)
        if found is not None:
            found[1].read = max(found[1].read, seq)

    async def signal(self, listener: Listener, conv_id: str, kind: str, data: bytes) -> Refusal | None:
        """Tell who listens to a conversation now; the caller must do so itself."""
        found = self._find(listener, conv_id)
        if found is None:
            return Refusal(Refused.INVALID, "subscribe to the conversation before signalling to it")
        if not found[1].may_signal:
            return Refusal(Refused.FORBIDDEN, "only members may signal in this conversation, readers may not")
        return await self._shards.signal(SignalArgs(conv_id, listener.sender, kind, data))

    # Of the shards

    def on_push(self, log_number: int, method: Method, content: memoryview) -> None:
        """A log's writer sent something unasked."""
        link = self._links.get(log_number)
        if link is None:
            return  # what was wanted of it is not wanted any more
        try:
            if method is Method.SIGNALLED:
                self._on_signal(decode_struct(content, SignalArgs))
                return
            publication = decode_publication(content)
        except InvalidError as e:
            # what it said is lost, and may have been the last that it will say for long
            log.error("log %d: %s", log_number, e)
            link.lost()
            return
        if link.take(publication):
            self._on_publication(publication)

    def on_lost(self, log_number: int) -> None:
        """The connection to a log's writer is gone, or another one."""
        link = self._links.get(log_number)
        if link is not None and not self._closed:
            link.lost()

    def _on_publication(self, publication: Publication) -> None:
        head = publication.head
        for conv_id, rows in messages_of(publication):
            feed = self.feeds.get(conv_id)
            if feed is not None:
                feed.published(rows)
        self._on_marks(head.epoch, head.marks, {change.conv_id: change for change in head.members})

    def _on_marks(self, epoch: int, marks: list[Mark], changes: Mapping[str, MembersTold] = _NONE) -> None:
        for mark in marks:
            feed = self.feeds.get(mark.conv_id)
            if feed is None:
                continue
            self._spread(feed, mark.partitions)
            self._on_members(feed, epoch, mark.members, changes.get(mark.conv_id))
            feed.marked(mark, epoch)

    def _on_members(self, feed: LiveFeed, epoch: int, version: int, change: MembersTold | None) -> None:
        """What a mark says of the members. Before its messages: they may be above a removal."""
        if change is not None:
            _remove(feed, change)
        before = feed.members
        if version == before or (epoch == feed.epoch and version < before):
            return
        feed.members = version
        if feed.ready.done():  # else whoever waits for it is asked about then
            # who listens since before it was created was never asked about
            told = change is not None and change.version == version and before == version - 1 and before > 0
            self._gate.check_soon(feed, hold=not told)

    def _on_signal(self, signal: SignalArgs) -> None:
        feed = self.feeds.get(signal.conv_id)
        if feed is None:
            return
        notice = Signal(signal.conv_id, signal.sender, signal.kind, signal.data)
        for subscription in list(feed.subscriptions.values()):
            listener = subscription.listener
            admitted = subscription.stage is not Stage.SILENT and (listener.service or not feed.checking)
            if admitted and listener.sender != signal.sender:
                subscription.notify(notice)

    # Feeds and links

    def _feed(self, conv_id: str) -> LiveFeed | None:
        found = self.feeds.get(conv_id)
        if found is None:
            if self._closed or (len(self.feeds) >= self._settings.feeds_max and not self._let_one_go()):
                return None
            found = LiveFeed(conv_id, self.catch_up, self._settings.feed_bytes_max, self)
            self.feeds[conv_id] = found
            self._link(self._shards.shard_of(conv_id)).want(conv_id)
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch())
        return found

    def _link(self, log_number: int) -> FeedLink:
        found = self._links.get(log_number)
        if found is None:
            found = FeedLink(log_number, self._shards, self._on_marks)
            self._links[log_number] = found
        return found

    def _spread(self, feed: LiveFeed, partitions: int) -> None:
        """A conversation is written by so many partitions now: listen to them."""
        home = self._shards.shard_of(feed.conv_id)
        for slot in range(feed.partitions + 1, partitions + 1):
            self._link(log_of(home, slot)).want(feed.conv_id)
        for slot in range(partitions + 1, feed.partitions + 1):
            self._link(log_of(home, slot)).leave(feed.conv_id)

    def on_head(self, feed: LiveFeed) -> None:
        """As `imray.engine.live_feed.Owner.on_head`."""
        self._heads.moved(feed)

    def on_idle(self, feed: LiveFeed) -> None:
        """As `imray.engine.live_feed.Owner.on_idle`."""
        if self.feeds.get(feed.conv_id) is feed:
            self._idle.pop(feed, None)
            self._idle[feed] = None

    def _let_one_go(self) -> bool:
        """Make room: let the feed go that nobody listens to for the longest time. False: there is none."""
        for feed in list(self._idle):
            del self._idle[feed]
            if not feed.subscriptions:
                self._let_go(feed)
                return True
        return False

    def _let_go(self, feed: LiveFeed) -> None:
        self._spread(feed, 0)
        self._link(self._shards.shard_of(feed.conv_id)).leave(feed.conv_id)
        del self.feeds[feed.conv_id]
        feed.close()

    def on_bytes(self, more: int) -> None:
        """As `imray.engine.live_feed.Owner.on_bytes`."""
        self.bytes += more
        if more > 0 and self.bytes > self._settings.feeds_bytes_max:
            # all alike: a feed that has more than its share gives it back
            share = self._settings.feeds_bytes_max // (2 * max(1, len(self.feeds)))
            for feed in list(self.feeds.values()):
                feed.trim(share)

    async def _watch(self) -> None:
        """Look after silent writers, and let feeds go that nobody listens to any more."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_WATCH_S)
            now_s = loop.time()
            for number, link in list(self._links.items()):
                link.watch(now_s)
                if link.idle and home_of(number)[1]:
                    link.close()
                    del self._links[number]
            for feed in list(self._idle):
                if feed.subscriptions:
                    del self._idle[feed]
                elif now_s - feed.idle_since_s > self._settings.feed_idle_s:
                    del self._idle[feed]
                    self._let_go(feed)

    def close(self) -> None:
        """Tell nobody anything more."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        self._gate.close()
        for feed in self.feeds.values():
            feed.close()
        for link in self._links.values():
            link.close()
        self.catch_up.close()
        self._heads.close()


def _remove(feed: LiveFeed, change: MembersTold) -> None:
    users = set(change.removed)
    for subscription in list(feed.subscriptions.values()):
        if subscription.listener.sender in users and not subscription.listener.service:
            feed.removed(subscription, change.after)
