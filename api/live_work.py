"""What a live connection asks for that takes its time: subscriptions, read marks, signals and pulls.

Owns their order, which is that of each conversation, and how many a connection has. Does not own sends
(`api.live_sends`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Final, TypeAlias

from api.auth import Caller
from api.checks import invalid
from api.live_formats import Format
from api.live_items import OkItem, PullItem, ReadItem, SignalItem, SubscribedItem, SubscribeItem, UnsubscribeItem
from api.live_lanes import WorkLanes
from api.live_pages import LivePages
from api.live_sends import error_of
from api.live_wire import LiveEngine, Wire
from api.problems import ProblemError, refused, unexpected
from api.rates import Buckets
from imray.core.errors import InvalidError
from imray.core.replies import Refusal
from imray.core.routing import check_conv_id, check_text
from imray.engine.listening import Ended, Notice

log = logging.getLogger("imray.live")

LiveWorkItem: TypeAlias = SubscribeItem | UnsubscribeItem | ReadItem | SignalItem | PullItem

_KIND_BYTES_MAX: Final = 32
_LANES: Final = 32
"""Subscriptions that one connection makes at once: each is a way to a shard and back."""
_WAITING_MAX: Final = 1000
"""What waits or runs of one connection; past it the connection is not read from."""


class LiveWork:
    """One connection's."""

    __slots__ = (
        "_caller",
        "_closed",
        "_fast",
        "_format",
        "_has_left",
        "_live",
        "_pages",
        "_pulls",
        "_signals",
        "_subscribed",
        "_wire",
    )

    def __init__(
        self, live: LiveEngine, pages: LivePages, wire: Wire, spoken: Format, caller: Callable[[], Caller]
    ) -> None:
        self._live = live
        self._pages = pages
        self._wire = wire
        self._format = spoken
        self._caller = caller
        self._fast: WorkLanes[LiveWorkItem] = WorkLanes(_LANES, self._do, self._changed)
        self._pulls: WorkLanes[LiveWorkItem] = WorkLanes(
            live.settings.live_pulls_in_flight_max, self._do, self._changed
        )
        self._subscribed: set[str] = set()
        self._signals: Buckets | None = None
        self._closed = False
        self._has_left = False

    @property
    def count(self) -> int:
        """Pieces that wait or run."""
        return self._fast.count + self._pulls.count

    @property
    def busy(self) -> bool:
        """Nothing more should be read."""
        return self.count >= _WAITING_MAX

    def add(self, item: LiveWorkItem) -> None:
        """One more piece."""
        lanes = self._pulls if isinstance(item, PullItem) else self._fast
        lanes.add(item.conv_id, item)

    def noticed(self, notice: Notice) -> None:
        """A subscription may be over by itself."""
        if isinstance(notice, Ended):
            self._subscribed.discard(notice.conv_id)

    def resume(self) -> None:
        """There is room again."""
        if self._subscribed:
            self._live.feeds.resume(self._wire)

    def close(self) -> None:
        """The connection is over. Its listener leaves when nothing of it runs: no subscription may come after that."""
        if self._closed:
            return
        self._closed = True
        self._pulls.close()
        self._fast.close()
        self._leave()

    def _changed(self) -> None:
        self._wire.work_done()
        self._leave()

    def _leave(self) -> None:
        if self._fast.over and self._pulls.over and not self._has_left:
            self._has_left = True
            self._live.feeds.leave(self._wire)

    async def _do(self, item: LiveWorkItem) -> None:
        ref = item.ref
        try:
            check_conv_id(item.conv_id)
            if isinstance(item, SubscribeItem):
                await self._subscribe(item)
            elif isinstance(item, UnsubscribeItem):
                self._unsubscribe(item)
            elif isinstance(item, ReadItem):
                await self._read(item)
            elif isinstance(item, SignalItem):
                await self._signal(item)
            else:
                await self._pull(item)
        except InvalidError as e:
            self._refuse(invalid(str(e)), ref)
        except ProblemError as e:
            self._refuse(e, ref)
        except Exception:
            # nothing above this catches it: who asked must hear of it
            log.exception("%s failed", type(item).__name__)
            self._refuse(unexpected(), ref)

    def _refuse(self, problem: ProblemError, ref: int | None) -> None:
        if ref is not None:
            self._wire.tell([error_of(problem, ref)])

    def _check(self, refusal: Refusal | None) -> None:
        if refusal is not None:
            raise refused(refusal, self._caller().service)

    async def _subscribe(self, item: SubscribeItem) -> None:
        feeds = self._live.feeds
        known = item.conv_id in self._subscribed
        if not known and len(self._subscribed) >= self._live.settings.live_subscriptions_max:
            detail = f"more than {self._live.settings.live_subscriptions_max} subscriptions: end some"
            raise ProblemError(429, "too-many", detail, 1.0)
        self._live.check_subscribes(self._caller())
        self._subscribed.add(item.conv_id)
        made = await feeds.subscribe(self._wire, item.conv_id, item.after, item.passive)
        if isinstance(made, Refusal):
            # also where there was one before: the new one had taken its place
            self._subscribed.discard(item.conv_id)
            self._check(made)
            return
        told = SubscribedItem(item.ref, item.conv_id, made.after, made.live, made.stable, made.epoch)
        self._wire.tell([told])
        feeds.start(self._wire, item.conv_id)

    def _unsubscribe(self, item: UnsubscribeItem) -> None:
        self._live.feeds.unsubscribe(self._wire, item.conv_id)
        self._subscribed.discard(item.conv_id)
        self._wire.tell([OkItem(item.ref)])

    async def _read(self, item: ReadItem) -> None:
        await self._live.mark_read(item.conv_id, self._caller(), item.seq)
        self._live.feeds.read(self._wire, item.conv_id, item.seq)
        self._wire.tell([OkItem(item.ref)])

    async def _pull(self, item: PullItem) -> None:
        caller = self._caller()
        await self._live.check_listens(item.conv_id, caller)
        await self._wire.room()
        self._wire.tell([await self._pages.pull(item, caller, self._format)])

    def _count_signal(self) -> None:
        per_s = self._live.settings.live_signals_per_s
        if per_s <= 0:
            return
        if self._signals is None:
            self._signals = Buckets(per_s, max(1.0, per_s), 1)
        wait_s = self._signals.take("", 1, monotonic())
        if wait_s > 0:
            raise ProblemError(429, "too-many", f"more than {per_s:g} signals a second of one connection", wait_s)

    async def _signal(self, item: SignalItem) -> None:
        check_text(item.kind, "kind", _KIND_BYTES_MAX)
        data = self._format.signal_data(item.data)
        self._count_signal()
        self._check(await self._live.feeds.signal(self._wire, item.conv_id, item.kind, data))
        if item.ref is not None:
            self._wire.tell([OkItem(item.ref)])
