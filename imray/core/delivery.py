"""A client's delivery session: one device's connection, and what it follows over all of its connections.

Owns when to connect and to which pauses, what to ask after each (re)connect, what each item of the server means, and
that a conversation is shown in order, each number once. Pure: events in, with the time; actions out, to be carried out
in their order. `timer_at_ms` says when `tick` is due.
Does not own sockets, frames, tokens or sends. `spec/delivery_cases.json` is the table of cases for every SDK.

The rule for messages is simpler than that of `imray.core.reorder`, and holds nothing back: over one connection the
server tells the numbers of a conversation in order, and every item says after which number it begins. So what repeats
is dropped by its number, and what does not join on to the last number shown means that an item was lost: the session
subscribes again from there. `imray.core.reorder` stays for clients that poll, and for those that take messages from
several sources, whose messages may overtake one another.
What no client can see is the loss of a last item while nothing more is told, and that of `ended`. Over TCP nothing is
lost; where a broken server or proxy loses items, whatever is told next, or a reconnect, shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from imray.core import delivery_items as items
from imray.core.delivery_book import FollowedBook
from imray.core.delivery_conversation import DeliveryConfig, FollowedConversation, FollowPhase, jittered_pause_ms
from imray.core.delivery_link import Link, LinkPhase, may_be_retried
from imray.core.errors import InvalidError

T = TypeVar("T")


class Delivery(Generic[T]):
    """The session. Times are monotonic milliseconds; `random` gives a share from 0 to 1, drawn by chance.

    Call `start` once; then `item`, `heard` and `closed` or `refused` for what happens on a connection, `follow` and
    `unfollow` for what the caller wants, and `tick` when `timer_at_ms` has come."""

    def __init__(self, config: DeliveryConfig, random: Callable[[], float]) -> None:
        self.link = Link(config, random)
        self._config = config
        self._random = random
        self._book: FollowedBook[T] = FollowedBook()
        self._ref = 0
        self._out: list[items.DeliveryAction[T]] = []

    @property
    def timer_at_ms(self) -> int | None:
        """When `tick` is due; None: nothing is."""
        moments = (self.link.timer_at_ms, self._book.due_at_ms)
        return min((at_ms for at_ms in moments if at_ms is not None), default=None)

    def last_shown(self, conv_id: str) -> int | None:
        """Up to where a conversation was shown; None: it is not followed, or begins with what comes from now on."""
        found = self._book.get(conv_id)
        return None if found is None else found.last_shown

    def is_followed(self, conv_id: str) -> bool:
        """Whether a conversation is followed."""
        return self._book.get(conv_id) is not None

    @property
    def is_asking(self) -> bool:
        """Whether a subscribe has no answer yet."""
        return self._book.is_asking

    def new_ref(self) -> int:
        """A ref that no other item of the session has."""
        self._ref += 1
        return self._ref

    def start(self, now_ms: int) -> list[items.DeliveryAction[T]]:
        """Make the first connection."""
        if self.link.phase is LinkPhase.NEW:
            self._out.append(items.Connect(self.link.connect(now_ms)))
        return self._flush()

    def stop(self) -> list[items.DeliveryAction[T]]:
        """The caller is done with all of it."""
        if self.link.phase in (LinkPhase.CONNECTING, LinkPhase.OPEN):
            self._out.append(items.Close(self.link.conn, "done"))
        self._end()
        return self._flush()

    def follow(self, conv_id: str, after: int | None, passive: bool, now_ms: int) -> list[items.DeliveryAction[T]]:
        """Follow a conversation from above `after` on (None: from now on); in place of what was asked before."""
        if after is not None and after < 0:
            raise InvalidError(f"after is {after}: numbers start at 1, 0 stands for none")
        before = self._book.get(conv_id)
        if before is None and len(self._book) >= self._config.conversations_max:
            raise InvalidError(f"{len(self._book)} conversations are followed already: the most for one session")
        followed: FollowedConversation[T] = FollowedConversation(conv_id, after, passive, before)
        self._book.put(followed)
        if self.link.is_up:
            self._subscribe(followed, now_ms)
        return self._flush()

    def unfollow(self, conv_id: str) -> list[items.DeliveryAction[T]]:
        """Follow a conversation no more; nothing of it is shown afterwards."""
        followed = self._book.remove(conv_id)
        if followed is not None:
            self._unsubscribe(followed)
        return self._flush()

    def hold(self, conv_id: str) -> list[items.DeliveryAction[T]]:
        """The caller has no room for more of a conversation. The others, and the connection, go on."""
        followed = self._book.get(conv_id)
        if followed is not None and followed.phase is not FollowPhase.HELD:
            self._unsubscribe(followed)
            self._book.forget_answer(followed)
            self._book.set_due(followed, None)
            followed.phase = FollowPhase.HELD
        return self._flush()

    def resume(self, conv_id: str, now_ms: int) -> list[items.DeliveryAction[T]]:
        """There is room again: go on after the last number shown."""
        followed = self._book.get(conv_id)
        if followed is not None and followed.phase is FollowPhase.HELD:
            followed.phase = FollowPhase.IDLE
            if self.link.is_up:
                self._subscribe(followed, now_ms)
        return self._flush()

    def item(self, conn: int, item: items.HeardItem[T], now_ms: int) -> list[items.DeliveryAction[T]]:
        """An item came."""
        if not self.link.is_current(conn):
            return []
        self.link.hear(now_ms)
        if self.link.is_up:
            self._take(item, now_ms)
        elif isinstance(item, items.WelcomeHeard):
            self.link.welcome(item.ping_interval_ms, now_ms)
            for followed in self._book:
                if followed.phase is FollowPhase.IDLE:
                    self._subscribe(followed, now_ms)
        elif isinstance(item, items.ErrorHeard) and item.ref is None:
            self._be_refused(item, now_ms)
        return self._flush()

    def heard(self, conn: int, now_ms: int) -> None:
        """Something came that is no item of the session: the connection lives."""
        if self.link.is_current(conn):
            self.link.hear(now_ms)

    def closed(self, conn: int, code: int | None, reason: str, now_ms: int) -> list[items.DeliveryAction[T]]:
        """A connection is gone, or could not be made. `code`: the close code, None where there was none."""
        if self.link.is_current(conn):
            status = self.link.verdict(code)
            detail = self.link.refusal or reason or f"close code {code}"
            if status is None:
                for followed in self._book.doubt() if self.link.is_malformed(code) else ():
                    self._give_up(followed.conv_id, 400, detail)
                self._lose(now_ms, code)
            else:
                self._fail(status, detail)
        return self._flush()

    def refused(
        self, conn: int, status: int, detail: str, retry_after_ms: int, now_ms: int
    ) -> list[items.DeliveryAction[T]]:
        """The handshake was answered with a status that makes no connection."""
        if self.link.is_current(conn):
            if may_be_retried(status):
                self.link.hold_off(retry_after_ms, now_ms)
                self._lose(now_ms)
            else:
                self._fail(status, detail)
        return self._flush()

    def tick(self, now_ms: int) -> list[items.DeliveryAction[T]]:
        """`timer_at_ms` has come. Too early does no harm."""
        at_ms = self.link.timer_at_ms
        if at_ms is not None and now_ms >= at_ms:
            self._look_at_link(now_ms)
        while (followed := self._book.next_due(now_ms)) is not None:
            if followed.phase is FollowPhase.PAUSED:
                self._subscribe(followed, now_ms)
            else:
                self._ask_again(followed, now_ms)
        return self._flush()

    def _take(self, item: items.HeardItem[T], now_ms: int) -> None:
        match item:
            case items.SubscribedHeard():
                self._begin(item, now_ms)
            case items.ErrorHeard(ref=None):
                self._be_refused(item, now_ms)
            case items.ErrorHeard():
                self._be_denied(item, now_ms)
            case items.DrainHeard(reconnect_in_ms):
                self.link.drain(reconnect_in_ms, now_ms)
            case items.ExpiringHeard():
                self._out.append(items.Renew(self.link.conn))
            case items.WelcomeHeard():
                pass  # a second one says nothing new
            case _:
                followed = self._book.get(item.conv_id)
                if followed is not None and followed.phase is FollowPhase.LIVE:
                    self._take_live(followed, item, now_ms)

    def _take_live(
        self,
        followed: FollowedConversation[T],
        item: items.MessagesHeard[T] | items.HeadHeard | items.BehindHeard | items.EndedHeard,
        now_ms: int,
    ) -> None:
        match item:
            case items.MessagesHeard():
                if not followed.passive:
                    self._show(followed, item, now_ms)
            case items.HeadHeard(conv_id, seq, unread):
                if followed.passive and followed.is_newer_head(seq):
                    self._out.append(items.ShowHead(conv_id, seq, unread))
            case items.BehindHeard(_, _, head):
                followed.note_number(head)
                self._ask_again(followed, now_ms)
            case items.EndedHeard(conv_id, after, reason):
                if followed.leaves_gap(after) and not followed.passive:
                    self._ask_again(followed, now_ms)  # what was lost before the end; the answer says whether it may
                elif reason == "unavailable":
                    self._pause(followed, 0, now_ms)
                else:
                    self._give_up(conv_id, 403, f"the subscription has ended: {reason}")

    def _show(self, followed: FollowedConversation[T], item: items.MessagesHeard[T], now_ms: int) -> None:
        followed.note_number(max(item.stable_seq, item.upto))
        parts = followed.take(item)
        if parts:
            self._out.append(items.Show(followed.conv_id, parts))
        if followed.leaves_gap(item.upto):
            self._ask_again(followed, now_ms)
        elif parts or followed.due_ms is None:
            self._watch(followed, now_ms)

    def _begin(self, item: items.SubscribedHeard, now_ms: int) -> None:
        followed = self._book.answered(item.ref)
        if followed is None or followed.conv_id != item.conv_id:
            return
        if followed.is_stale(item) or (followed.leaves_gap(item.after) and not followed.passive):
            self._pause(followed, 0, now_ms)
            return
        followed.begin(item)
        self._watch(followed, now_ms)

    def _watch(self, followed: FollowedConversation[T], now_ms: int) -> None:
        """What the server has named it must tell within a time."""
        self._book.set_due(followed, now_ms + self._config.stall_timeout_ms if followed.is_missing_some else None)

    def _be_denied(self, item: items.ErrorHeard, now_ms: int) -> None:
        followed = self._book.answered(item.ref)
        if followed is None:
            return
        if may_be_retried(item.status):
            self._pause(followed, min(item.retry_after_ms, self._config.reconnect_ms_max), now_ms)
        else:
            self._give_up(followed.conv_id, item.status, item.detail)

    def _be_refused(self, item: items.ErrorHeard, now_ms: int) -> None:
        self.link.refuse(item.status, item.detail)
        self.link.hold_off(item.retry_after_ms, now_ms)
        if self.link.phase is LinkPhase.CONNECTING and not may_be_retried(item.status):
            self._out.append(items.Close(self.link.conn, item.detail))
            self._fail(item.status, item.detail)

    def _subscribe(self, followed: FollowedConversation[T], now_ms: int) -> None:
        ref = self.new_ref()
        followed.phase = FollowPhase.ASKED
        self._book.ask(followed, ref)
        self._book.set_due(followed, now_ms + self._config.answer_timeout_ms)
        self._out.append(items.Subscribe(self.link.conn, ref, followed.conv_id, followed.last_shown, followed.passive))

    def _ask_again(self, followed: FollowedConversation[T], now_ms: int) -> None:
        """Subscribe again from the last number shown: at once where something new was shown since the last time."""
        if followed.tries == 0:
            followed.tries = 1
            self._subscribe(followed, now_ms)
        else:
            self._pause(followed, 0, now_ms)

    def _pause(self, followed: FollowedConversation[T], pause_ms_min: int, now_ms: int) -> None:
        config = self._config
        share = self._random()
        pause_ms = jittered_pause_ms(config.retry_ms_min, config.retry_ms_max, followed.tries, share)
        followed.tries += 1
        followed.phase = FollowPhase.PAUSED
        self._book.forget_answer(followed)
        self._book.set_due(followed, now_ms + pause_ms_min + pause_ms)

    def _give_up(self, conv_id: str, status: int, detail: str) -> None:
        self._book.remove(conv_id)
        self._out.append(items.Over(conv_id, status, detail))

    def _look_at_link(self, now_ms: int) -> None:
        link = self.link
        if link.phase is LinkPhase.WAITING:
            self._out.append(items.Connect(link.connect(now_ms)))
        elif link.phase is LinkPhase.CONNECTING:
            self._drop_link("no welcome in time", now_ms)
        elif link.is_silent(now_ms):
            self._drop_link("nothing was heard for too long", now_ms)
        elif link.is_drained(now_ms):
            self._drop_link("the gateway ends", now_ms)
            if link.timer_at_ms is not None and link.timer_at_ms <= now_ms:
                self._out.append(items.Connect(link.connect(now_ms)))
        else:
            link.ping()
            self._out.append(items.Ping(link.conn, self.new_ref()))

    def _drop_link(self, reason: str, now_ms: int) -> None:
        self._out.append(items.Close(self.link.conn, reason))
        self._lose(now_ms)

    def _lose(self, now_ms: int, code: int | None = None) -> None:
        self.link.lose(now_ms, code)
        self._book.disconnect()

    def _fail(self, status: int, detail: str) -> None:
        self._out.append(items.Failed(status, detail))
        self._end()

    def _end(self) -> None:
        self.link.phase = LinkPhase.ENDED
        self._book.clear()

    def _unsubscribe(self, followed: FollowedConversation[T]) -> None:
        if followed.phase not in (FollowPhase.IDLE, FollowPhase.HELD):  # paused: the server may tell on until then
            self._out.append(items.Unsubscribe(self.link.conn, self.new_ref(), followed.conv_id))

    def _flush(self) -> list[items.DeliveryAction[T]]:
        out = self._out
        self._out = []
        return out
