"""One conversation and those who listen to it at this gateway: each at its place, all in one order.

Owns who is where, and what is written to whom. A listener has a place, not a queue: who keeps up is written each batch
as it comes, who does not is let alone until it has room, and then goes on from the batches that are still in memory, or
is told that it is behind. Does not own the order (`imray.core.feed`) or reads (`imray.engine.catch_up`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from imray.core.feed import Tell
from imray.core.replies import Refusal, Refused
from imray.engine.batches import Rows, cut, joined, pieces, size_of
from imray.engine.catch_up import CatchUp
from imray.engine.listening import Batch, Behind, Ended, EndReason, Listener, Notice
from imray.engine.order import Order
from imray.engine.recent import Recent
from imray.engine.subscriptions import Stage, Subscription
from imray.rpc.publications import Mark

log = logging.getLogger("imray.feeds")

_READ_TRIES_MAX = 10
_READ_AGAIN_S = 0.2
"""A read of history has retried for as long as a sender waits already."""


class Owner(Protocol):
    """Who has the feeds of a gateway."""

    def on_bytes(self, more: int) -> None:
        """More, or less, is in memory."""

    def on_head(self, feed: LiveFeed) -> None:
        """A conversation stands elsewhere, or passive listeners of it are new."""

    def on_idle(self, feed: LiveFeed) -> None:
        """Nobody listens to a conversation any more."""


class LiveFeed:
    """One conversation at one gateway."""

    def __init__(self, conv_id: str, catch_up: CatchUp, bytes_max: int, owner: Owner) -> None:
        """`bytes_max`: of batches in memory."""
        self.conv_id = conv_id
        self._catch_up = catch_up
        self._bytes_max = bytes_max
        self._owner = owner
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the home shard has said where the conversation stands."""
        self.partitions = 0
        self.members = -1
        """Version of its members, as was heard last."""
        self.epoch = 0
        self.idle_since_s = 0.0
        self.subscriptions: dict[Listener, Subscription] = {}
        self._live: dict[Subscription, None] = {}
        self.passive: dict[Subscription, None] = {}
        self._ending: dict[Subscription, None] = {}
        self._order = Order(conv_id, self._read, self._tell, owner.on_bytes)
        self._recent = Recent(0)
        self._checking = False
        self._checked = asyncio.Event()
        self._failed: list[Subscription] = []
        """Their connections raised what they should not."""
        self._loop = asyncio.get_running_loop()

    @property
    def position(self) -> int:
        """Everything up to it was told."""
        return self._recent.upto

    @property
    def stable(self) -> int:
        """The highest `stable_seq` that was heard."""
        return self._order.stable

    # What comes from the shards

    def marked(self, mark: Mark, epoch: int) -> None:
        """The home shard said where the conversation stands."""
        self.epoch = epoch
        self.partitions = mark.partitions
        if not self._order.begun:
            self._order.begin(mark.stable)
            self._recent = Recent(mark.stable)
            if not self.ready.done():
                self.ready.set_result(None)
        self._order.marked(mark.stable)

    def published(self, rows: Rows) -> None:
        """Messages are durable."""
        self._order.published(rows)

    # What goes to listeners

    def _tell(self, told: Tell[Rows]) -> None:
        whole = Batch(self.conv_id, told.after, told.upto, self.stable, joined(told.runs), list(told.holes))
        for batch in pieces(whole):
            self._tell_batch(batch)
        self._end_failed()
        for subscription in list(self._ending):
            self._go_on(subscription)
        if self.passive:
            self._owner.on_head(self)

    def _tell_batch(self, batch: Batch) -> None:
        full: list[Subscription] = []
        for subscription in self._live:
            if subscription.at != batch.after:
                full.append(subscription)  # it began in the middle of this one, or above
            elif not self._offer_now(subscription, batch):
                subscription.stage = Stage.FULL
                full.append(subscription)
        size = size_of(batch.messages) + batch.encoded_bytes
        self._recent.add(batch, size)
        self._owner.on_bytes(size)
        if self._recent.bytes > self._bytes_max:
            self.trim(self._bytes_max)
        for subscription in full:
            self._live.pop(subscription, None)
            if subscription.stage is Stage.LIVE:
                self._go_on(subscription)

    def _offer_now(self, subscription: Subscription, batch: Batch) -> bool:
        """Whether a listener took a batch. One that fails must not cost the others theirs."""
        listener = subscription.listener
        if self._checking and not listener.service:
            return False
        try:
            taken = listener.offer(batch.encoded(listener.encoder))
        except Exception:
            log.exception("%r: a listener failed", self.conv_id)
            self._failed.append(subscription)
            return False
        if taken:
            subscription.at = batch.upto
        return taken

    def _end_failed(self) -> None:
        failed = self._failed
        self._failed = []
        for subscription in failed:
            self.end(subscription, Ended(self.conv_id, subscription.at, EndReason.UNAVAILABLE))

    def hold(self) -> None:
        """The members changed, and it is not known how: nobody is told anything until `release`."""
        self._checking = True
        self._checked.clear()

    def release(self) -> None:
        """Who may not listen any more has ended: go on."""
        self._checking = False
        self._checked.set()
        for subscription in list(self.subscriptions.values()):
            if subscription.stage is Stage.FULL:
                self._go_on(subscription)
        if self.passive:
            self._owner.on_head(self)

    @property
    def checking(self) -> bool:
        """Between `hold` and `release`."""
        return self._checking

    def trim(self, bytes_max: int) -> None:
        """Keep no more than that in memory."""
        self._owner.on_bytes(-self._recent.trim(bytes_max))

    def _go_on(self, subscription: Subscription) -> None:
        """Write what is in memory and was not told to a listener yet, as far as it has room."""
        if self._end_if_over(subscription) or subscription.stage in (Stage.SILENT, Stage.PASSIVE, Stage.CATCHING_UP):
            return
        recent = self._recent
        if subscription.at < recent.after:
            if subscription.until is not None:
                self._catch_up_from(subscription)  # it cannot ask for it later
                return
            subscription.notify(Behind(self.conv_id, subscription.at, recent.upto))
            subscription.at = recent.upto
        for following in recent.following(subscription.at):
            batch = following if subscription.until is None else cut(following, subscription.at, subscription.until)
            if batch.upto <= subscription.at:
                break
            if not self._offer_now(subscription, batch):
                subscription.stage = Stage.FULL
                self._end_failed()
                return
        if self._end_if_over(subscription):
            return
        subscription.stage = Stage.LIVE
        if subscription.until is None:
            self._live[subscription] = None

    def _end_if_over(self, subscription: Subscription) -> bool:
        """End a subscription that goes no further."""
        until = subscription.until
        if until is None or (subscription.at < until and subscription.stage is not Stage.PASSIVE):
            return False
        self.end(subscription, Ended(self.conv_id, until, EndReason.REMOVED))
        return True

    def end(self, subscription: Subscription, notice: Notice | None = None) -> None:
        """Tell a listener nothing more but this."""
        if self.subscriptions.get(subscription.listener) is subscription:
            del self.subscriptions[subscription.listener]
            if not self.subscriptions:
                self.idle_since_s = self._loop.time()
                self._owner.on_idle(self)
        for those in (self._live, self.passive, self._ending):
            those.pop(subscription, None)
        subscription.stage = Stage.SILENT
        if subscription.task is not None:
            subscription.task.cancel()
        if notice is not None:
            subscription.notify(notice)

    def add(self, subscription: Subscription) -> None:
        """One more, silent until `start`. Takes the place of the listener's former one."""
        before = self.subscriptions.get(subscription.listener)
        if before is not None:
            self.end(before)
        self.subscriptions[subscription.listener] = subscription

    def start(self, subscription: Subscription) -> None:
        """Let it flow."""
        if subscription.passive:
            subscription.stage = Stage.PASSIVE
            self.passive[subscription] = None
            if not self._end_if_over(subscription):
                self._owner.on_head(self)
        elif subscription.at < self._recent.after:
            self._catch_up_from(subscription)
        else:
            subscription.stage = Stage.LIVE
            self._go_on(subscription)

    def has_room(self, subscription: Subscription) -> None:
        """A listener that was full has room again."""
        subscription.room.set()
        if subscription.stage is Stage.FULL:
            self._go_on(subscription)

    def removed(self, subscription: Subscription, after: int) -> None:
        """It ends with this number."""
        subscription.until = after
        self._live.pop(subscription, None)
        self._ending[subscription] = None
        self._go_on(subscription)

    def _catch_up_from(self, subscription: Subscription) -> None:
        subscription.stage = Stage.CATCHING_UP
        subscription.task = self._loop.create_task(self._catch(subscription))

    async def _read(self, after: int, upto: int, hole: bool) -> list[Batch] | Refusal:
        """As `CatchUp.read`. An error that nobody foresaw is one more reason to try again."""
        try:
            return await self._catch_up.read(self.conv_id, after, upto, hole)
        except Exception as e:
            log.exception("%r: a read failed", self.conv_id)
            return Refusal(Refused.UNAVAILABLE, repr(e))

    async def _catch(self, subscription: Subscription) -> None:
        """Tell a listener what it missed and is not in memory any more."""
        failed = 0
        while subscription.at < self._recent.after:
            upto = self._recent.after if subscription.until is None else min(self._recent.after, subscription.until)
            if subscription.at >= upto:
                break
            found = await self._read(subscription.at, upto, False)
            if isinstance(found, Refusal):
                failed += 1
                if failed == _READ_TRIES_MAX:
                    log.warning("%r: a listener cannot catch up: %s", self.conv_id, found.detail)
                    subscription.task = None
                    self.end(subscription, Ended(self.conv_id, subscription.at, EndReason.UNAVAILABLE))
                    return
                await asyncio.sleep(_READ_AGAIN_S)
                continue
            failed = 0
            for batch in found:
                await self._offer(subscription, batch)
        subscription.task = None
        subscription.stage = Stage.LIVE
        self._go_on(subscription)

    async def _offer(self, subscription: Subscription, batch: Batch) -> None:
        while True:
            subscription.room.clear()
            if self._offer_now(subscription, batch):
                return
            self._end_failed()
            # without an end of its own: the connection ends where nothing is read, and this with it
            await (self._checked if self._checking else subscription.room).wait()

    def close(self) -> None:
        """Nobody listens any more."""
        for subscription in list(self.subscriptions.values()):
            self.end(subscription)
        self._order.close()
        self.trim(0)
        if not self.ready.done():
            self.ready.cancel()
