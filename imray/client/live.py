"""The live side for asyncio: follow conversations by push, send over the same connection.

Owns the calls. Connections, order and retries are in `imray.client.live_driver` and below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from imray.client.arguments import check_conversation, check_number, check_page, check_place, check_signal
from imray.client.call import RetryPolicy
from imray.client.calls import fields_of
from imray.client.errors import ServerError
from imray.client.follower import AsyncFollower, OnSignal
from imray.client.live_driver import LiveDriver, TokenSource
from imray.client.live_wire import READ_ERRORS
from imray.client.models import Ack, HistoryPage, Hole, Message, Order, Outgoing, Unread
from imray.client.wire import address, environment
from imray.core.delivery_conversation import DeliveryConfig
from imray.core.pages import SEQ_MAX

R = TypeVar("R")
TIMEOUT_S = 30.0
PAGE_MESSAGES = 100


class AsyncLive:
    """One live connection and what goes over it, for asyncio. Use it as an async context manager, or call `aclose`.

    It connects with the first call, comes back by itself after every loss, with jitter, and goes on with every
    conversation after the last number shown. `url` and `token` default to the environment's IMRAY_URL and IMRAY_TOKEN;
    a `token` that is a function (or gives an awaitable) is asked for every connection and before a token expires.
    Calls raise what `imray.client.AsyncClient`'s do, within `timeout_s`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | TokenSource | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry: RetryPolicy | None = None,
        config: DeliveryConfig | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        unix_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        base, known = address(url, None if callable(token) else token)
        self._env = environment(timeout_s, retry, clock_s, unix_ms)
        self._driver = LiveDriver(base, token if callable(token) else known, self._env, config or DeliveryConfig())

    def follow(
        self, conv_id: str, after: int | None = None, *, on_signal: OnSignal | None = None
    ) -> AsyncFollower[Message | Hole]:
        """Every message above `after` (None: from now on), in order, each once, and a Hole where numbers will never be
        messages. `after` may be as old as you like. `on_signal` is called with every signal, and must be quick.

        A connection has one follower for each conversation: a second one takes the place of the first."""
        check_place(conv_id, after)
        follower: AsyncFollower[Message | Hole] = AsyncFollower(self._driver, conv_id, after, on_signal)
        self._driver.follow(follower, after, passive=False)
        return follower

    def watch(self, conv_id: str, after: int | None = None) -> AsyncFollower[Unread]:
        """Where a conversation stands, without its messages: for one that nobody looks at. `after`: what was read. Only
        the newest item waits for its caller."""
        check_place(conv_id, after)
        follower: AsyncFollower[Unread] = AsyncFollower(self._driver, conv_id, after, None)
        self._driver.follow(follower, after, passive=True)
        return follower

    async def send(
        self,
        conv_id: str,
        body: str,
        *,
        client_msg_id: str | None = None,
        content_type: str | None = None,
        topic: str | None = None,
        client_ts: int | None = None,
        sender: str | None = None,
    ) -> Ack:
        """Store one message; it is durable when this returns. See `imray.client.AsyncClient.send` for ids and errors.

        Many may be in flight. They are numbered in the order of their calls, unless one of them has to be tried again:
        who needs the order for certain waits for each."""
        message = Outgoing(
            conv_id=conv_id,
            body=body,
            client_msg_id=client_msg_id,
            content_type=content_type,
            topic=topic,
            client_ts=client_ts,
            sender=sender,
        )
        fields = fields_of(message, self._env)
        ids = (str(fields["client_msg_id"]),)
        return await self._ask({"t": "send", **fields}, Ack.of_item, ids)

    async def pull(
        self,
        conv_id: str,
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE_MESSAGES,
        order: Order = "asc",
        topic: str | None = None,
    ) -> HistoryPage:
        """One page of the history, as `imray.client.AsyncClient.history` gives it."""
        check_page(conv_id, after, before, limit, order, topic)
        optional = {name: value for name, value in {"before": before, "topic": topic}.items() if value is not None}
        item = {"t": "pull", "conv_id": conv_id, "after": after, "limit": limit, "order": order, **optional}
        return await self._ask(item, HistoryPage.of, writes=False)

    async def read(self, conv_id: str, seq: int) -> None:
        """The caller has read up to `seq`; that is durable when this returns."""
        check_conversation(conv_id)
        check_number(seq, "seq", 0, SEQ_MAX)
        await self._ask({"t": "read", "conv_id": conv_id, "seq": seq}, lambda _: None)

    def signal(self, conv_id: str, kind: str, data: Any = None) -> bool:
        """Tell who listens now, such as that somebody types. It may be lost, and is where there is no connection.
        `data`: any value of JSON, up to 1 KB.

        Returns whether it was written."""
        check_signal(conv_id, kind, data)
        self._driver.begin()
        return self._driver.signal({"t": "signal", "conv_id": conv_id, "kind": kind, "data": data})

    async def aclose(self) -> None:
        """Close the connection; who follows gets no more."""
        await self._driver.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(
        self,
        item: dict[str, Any],
        of: Callable[[Mapping[str, Any]], R],
        msg_ids: tuple[str, ...] = (),
        writes: bool = True,
    ) -> R:
        self._driver.begin()
        answer = await self._driver.asks.ask(item, msg_ids, writes)
        try:
            return of(answer)
        except READ_ERRORS as e:
            detail = f"the answer is not that of an imray server: {type(e).__name__}: {e}"
            raise ServerError(detail, msg_ids) from e
