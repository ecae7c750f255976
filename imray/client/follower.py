"""Who follows a conversation over a live connection: what has come and was not taken yet, and its bound.

Owns the queue between the connection and the caller. A caller that is slow is told less: its conversation is held, the
others go on, and it goes on where it was once there is room. Does not own order (`imray.core.delivery`).
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

from imray.client.errors import fresh
from imray.client.models import Hole, LiveSignal, Message, Unread
from imray.core.errors import ImrayError

I = TypeVar("I")  # noqa: E741 an item
OnSignal: TypeAlias = Callable[[LiveSignal], object]
QUEUE_ITEMS_MAX = 1_000
"""Items that wait for their caller; the items of one frame may come on top."""


class Followed(Protocol):
    """What a follower needs of its connection."""

    def hold(self, conv_id: str) -> None:
        """Nothing more of it, for now."""

    def resume(self, conv_id: str) -> None:
        """On with it."""

    def leave(self, follower: AsyncFollower[I]) -> None:
        """Nothing more of it, for good."""


class AsyncFollower(Generic[I]):
    """Items of one conversation, in order, each once: `async for item in follower`, or `await follower.each(callback)`.

    It does not end by itself; while the server is away it waits. After an item is taken, `last_shown` is the number to
    store and to start again from. Raises AuthError where the conversation may not be listened to (any more), and what
    else ends the connection for good. To leave it early, call `aclose` or use it as an async context manager."""

    def __init__(self, source: Followed, conv_id: str, after: int | None, on_signal: OnSignal | None) -> None:
        self.conv_id = conv_id
        self.last_shown = after
        """None: it begins with what comes from now on, and nothing came yet."""
        self.on_signal = on_signal
        self._source = source
        self._waiting: deque[I] = deque()
        self._changed = asyncio.Event()
        self._is_held = False
        self._end: ImrayError | None = None
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> I:
        if not self._waiting:
            await self._wait()
        if not self._waiting:
            if self._end is not None:
                raise fresh(self._end)
            raise StopAsyncIteration
        item = self._waiting.popleft()
        self._note(item)
        self._make_room()
        return item

    async def each(self, callback: Callable[[I], Awaitable[object] | object]) -> None:
        """Call `callback` for every item, the next one once it has returned (or what it returns was awaited)."""
        async for item in self:
            done = callback(item)
            if inspect.isawaitable(done):
                await done

    async def take(self) -> list[I]:
        """All that is there, at least one; nothing: it was closed."""
        if not self._waiting:
            await self._wait()
        if not self._waiting and self._end is not None:
            raise fresh(self._end)
        taken = list(self._waiting)
        self._waiting.clear()
        for item in taken[-1:]:
            self._note(item)
        self._make_room()
        return taken

    async def aclose(self) -> None:
        """Follow no more; who waits for an item gets none."""
        self._is_closed = True
        self._waiting.clear()
        self._changed.set()
        self._source.leave(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def put(self, items: list[I]) -> None:
        """The connection's side: these come next."""
        if isinstance(items[-1], Unread):
            self._waiting.clear()  # only the newest head says something
        self._waiting.extend(items)
        self._changed.set()
        if len(self._waiting) >= QUEUE_ITEMS_MAX and not self._is_held:
            self._is_held = True
            self._source.hold(self.conv_id)

    def end(self) -> None:
        """The connection's side: its owner has closed it."""
        self._is_closed = True
        self._changed.set()

    def fail(self, error: ImrayError) -> None:
        """The connection's side: nothing comes after what is there."""
        self._end = error
        self._changed.set()

    async def _wait(self) -> None:
        while not self._waiting and not self._is_closed and self._end is None:
            self._changed.clear()
            await self._changed.wait()

    def _note(self, item: I) -> None:
        match item:
            case Message():
                self.last_shown = item.conv_seq
            case Hole():
                self.last_shown = item.to_seq

    def _make_room(self) -> None:
        if self._end is not None or self._is_closed:
            return  # the conversation may have another follower by now
        if self._is_held and len(self._waiting) <= QUEUE_ITEMS_MAX // 2:
            self._is_held = False
            self._source.resume(self.conv_id)
