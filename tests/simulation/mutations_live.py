"""Rules of delivery broken one at a time: what the simulation must find by its listeners.

Those that are rare take a minute to be found, or need a moment that seldom comes: `tests/live` has a schedule for each.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imray.core.feed import Feed
from imray.core.replies import Refusal
from imray.engine.feed_links import FeedLink
from imray.engine.live_feed import LiveFeed
from imray.engine.order import Order
from imray.engine.rights import Gate
from imray.shard.publisher import Publisher
from imray.shard.shard_writer import ShardWriter
from tests.simulation.mutations import rule


@rule("was told up to")
def a_subscription_is_not_renewed_after_a_takeover(patch: pytest.MonkeyPatch) -> None:
    """A gateway believes that who subscribed once is told for ever."""
    patch.setattr(FeedLink, "lost", lambda self: None)


@rule("was told up to")
def a_catch_up_starts_before_live_messages_are_held(patch: pytest.MonkeyPatch) -> None:
    """A shard says where a conversation stands, and a moment later begins to publish."""

    async def subscribe(self: ShardWriter, caller: Any, args: Any) -> Any:
        found = await self._state.run(self._subscribed, args.add)
        await asyncio.sleep(0.02)
        self.publisher.subscribe(caller, args)
        return found or self._not_ready()

    patch.setattr(ShardWriter, "subscribe", subscribe)


@rule("I7", rare=True)
def a_lower_epoch_is_believed(patch: pytest.MonkeyPatch) -> None:
    """Subscriptions are confirmed, and publications taken, by whoever answers."""
    take = FeedLink.take
    asked = FeedLink._asked

    def believing_take(self: FeedLink, publication: Any) -> bool:
        self.epoch = min(self.epoch, publication.head.epoch)
        return take(self, publication)

    async def believing_asked(self: FeedLink, add: Any, drop: Any) -> bool:
        real = self._source.subscribe

        async def subscribe(log: int, args: Any) -> Any:
            answer = await real(log, args)
            if not isinstance(answer, Refusal):
                self.epoch = min(self.epoch, answer.epoch)
            return answer

        source = self._source
        self._source = type("Believing", (), {"subscribe": staticmethod(subscribe), "look_anew": source.look_anew})()
        try:
            return await asked(self, add, drop)
        finally:
            self._source = source

    patch.setattr(FeedLink, "take", believing_take)
    patch.setattr(FeedLink, "_asked", believing_asked)


@rule("was told up to", rare=True)
def silence_is_believed(patch: pytest.MonkeyPatch) -> None:
    """A writer that is not heard any more is not asked for anew."""
    patch.setattr(FeedLink, "watch", lambda self, now_s: None)


@rule("was told up to")
def holes_are_not_pulled(patch: pytest.MonkeyPatch) -> None:
    """A hole below `stable_seq` waits for a publication that may have been lost."""

    def tick(self: Any, now_ms: int) -> list[Any]:
        self.timer_at_ms = None
        return []

    patch.setattr(Feed, "tick", tick)


@rule("I7", rare=True)
def what_is_above_stable_is_told(patch: pytest.MonkeyPatch) -> None:
    """A gateway tells whatever comes, although numbers before it may still become messages."""
    real = Order.published

    def published(self: Order, rows: Any) -> None:
        feed = self._feed
        if feed is not None and rows and rows[0].conv_seq > feed.position:
            recent = self._tell.__self__._recent  # type: ignore[attr-defined]
            feed.position = rows[0].conv_seq - 1
            recent.upto = recent.after = feed.position
            feed.stable = max(feed.stable, rows[-1].conv_seq)
        real(self, rows)

    patch.setattr(Order, "published", published)


@rule("was told up to", rare=True)
def what_was_not_sent_is_not_owed(patch: pytest.MonkeyPatch) -> None:
    """A shard forgets what a gateway did not take."""
    real = Publisher._push

    def push(self: Publisher, caller: Any, *args: Any) -> None:
        real(self, caller, *args)
        self._owed.clear()

    patch.setattr(Publisher, "_push", push)


@rule("was told up to")
def stable_seq_of_hot_groups_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """A home shard does not say that what its partitions wrote is final."""
    patch.setattr("imray.shard.shard_incarnation.ShardIncarnation._tell_stable_soon", lambda self: None)


@rule("I7", rare=True)
def members_are_told_while_it_is_asked_who_they_are(patch: pytest.MonkeyPatch) -> None:
    """A gateway that missed how the members changed goes on telling until it knows."""
    patch.setattr(LiveFeed, "hold", lambda self: None)


@rule("still listens")
def who_is_removed_is_not_told(patch: pytest.MonkeyPatch) -> None:
    """A gateway leaves its listeners alone when members change."""
    patch.setattr("imray.engine.feeds._remove", lambda feed, change: None)
    patch.setattr(Gate, "check_soon", lambda self, feed, hold: None)


@rule("I7")
def removed_listeners_go_on_to_the_end(patch: pytest.MonkeyPatch) -> None:
    """A removal ends a stream where it is, whatever the removal's number."""
    real = LiveFeed.removed

    def removed(self: LiveFeed, subscription: Any, after: int) -> None:
        real(self, subscription, max(after, self.position) + 2)

    patch.setattr(LiveFeed, "removed", removed)
