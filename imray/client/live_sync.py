"""The live side for programs without asyncio: `Live` and `Follower`, over an event loop in a thread of their own.

Owns the thread, and the way into it and back. Everything else is `imray.client.live.AsyncLive`'s: one logic for both.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from imray.client.call import RetryPolicy
from imray.client.follower import AsyncFollower, OnSignal
from imray.client.live import PAGE_MESSAGES, TIMEOUT_S, AsyncLive
from imray.client.live_driver import TokenSource
from imray.client.models import Ack, HistoryPage, Hole, Message, Order, Unread
from imray.core.delivery_conversation import DeliveryConfig
from imray.core.errors import UnavailableError

R = TypeVar("R")
I = TypeVar("I")  # noqa: E741 an item
_END_TIMEOUT_S = 10.0
"""Longer than the connection's own good-bye."""


class _LoopThread:
    """An event loop that runs in a thread until it is stopped. The thread keeps no program alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="imray-live", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """The result of a coroutine, from another thread."""
        if self._loop.is_closed():
            work.close()
            raise UnavailableError("the client was closed")
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return waiting.result()
        finally:
            waiting.cancel()  # where an interrupt ended the wait

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing runs any more."""
        return self._loop.is_closed()


class Follower(Generic[I]):
    """Items of one conversation, in order, each once: `for item in follower`, or `follower.each(callback)`.

    As `imray.client.AsyncFollower`. For one thread at a time; another one may `close` it."""

    def __init__(self, thread: _LoopThread, follower: AsyncFollower[I]) -> None:
        self.conv_id = follower.conv_id
        self.last_shown = follower.last_shown
        """The number to store, and to start again from."""
        self._thread = thread
        self._follower = follower
        self._taken: deque[I] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> I:
        if not self._taken:
            self._taken.extend(self._thread.run(self._follower.take()))
        if not self._taken:
            raise StopIteration
        item = self._taken.popleft()
        match item:
            case Message():
                self.last_shown = item.conv_seq
            case Hole():
                self.last_shown = item.to_seq
        return item

    def each(self, callback: Callable[[I], object]) -> None:
        """Call `callback` for every item, in this thread, the next one once it has returned."""
        for item in self:
            callback(item)

    def close(self) -> None:
        """Follow no more; who waits for an item gets none."""
        if not self._thread.is_stopped:
            self._thread.run(self._follower.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Live:
    """One live connection and what goes over it, blocking. Methods, errors and constructor are those of `AsyncLive`.

    Threads may share it. Callbacks for signals, and a `token` that is a function, are called in its own thread."""

    def __init__(
        self,
        url: str | None = None,
        token: str | TokenSource | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry: RetryPolicy | None = None,
        config: DeliveryConfig | None = None,
    ) -> None:
        self._live = AsyncLive(url, token, timeout_s=timeout_s, retry=retry, config=config)
        self._thread = _LoopThread()

    def follow(
        self, conv_id: str, after: int | None = None, *, on_signal: OnSignal | None = None
    ) -> Follower[Message | Hole]:
        """See `AsyncLive.follow`."""

        async def begin() -> AsyncFollower[Message | Hole]:
            return self._live.follow(conv_id, after, on_signal=on_signal)

        return Follower(self._thread, self._thread.run(begin()))

    def watch(self, conv_id: str, after: int | None = None) -> Follower[Unread]:
        """See `AsyncLive.watch`."""

        async def begin() -> AsyncFollower[Unread]:
            return self._live.watch(conv_id, after)

        return Follower(self._thread, self._thread.run(begin()))

    def send(
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
        """See `AsyncLive.send`."""
        sending = self._live.send(
            conv_id,
            body,
            client_msg_id=client_msg_id,
            content_type=content_type,
            topic=topic,
            client_ts=client_ts,
            sender=sender,
        )
        return self._thread.run(sending)

    def pull(
        self,
        conv_id: str,
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE_MESSAGES,
        order: Order = "asc",
        topic: str | None = None,
    ) -> HistoryPage:
        """See `AsyncLive.pull`."""
        return self._thread.run(self._live.pull(conv_id, after, before, limit, order, topic))

    def read(self, conv_id: str, seq: int) -> None:
        """See `AsyncLive.read`."""
        self._thread.run(self._live.read(conv_id, seq))

    def signal(self, conv_id: str, kind: str, data: Any = None) -> bool:
        """See `AsyncLive.signal`."""

        async def tell() -> bool:
            return self._live.signal(conv_id, kind, data)

        return self._thread.run(tell())

    def close(self) -> None:
        """Close the connection; who follows gets no more."""
        if not self._thread.is_stopped:
            self._thread.run(self._live.aclose())
            self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
