"""Work of one connection that takes its time: a few at once, and what concerns one conversation in its order.

Owns which piece of work begins when. Does not own what it is, or how much may wait (its user does not read on then).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

WorkT = TypeVar("WorkT")


class Room:
    """Work that waits until there is room for what it makes."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Until `give`."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def give(self) -> None:
        """There is room, or nobody needs it any more."""
        waiting = self._waiting
        self._waiting = []
        for one in waiting:
            if not one.done():
                one.set_result(None)


class WorkLanes(Generic[WorkT]):
    """Runs `handle` for each piece of work; at most `width` at once, and never two of one key.

    `handle` must not raise. A task exists only while there is work."""

    __slots__ = ("_changed", "_closed", "_handle", "_ready", "_tasks", "_waiting", "_width", "count")

    def __init__(self, width: int, handle: Callable[[WorkT], Awaitable[None]], changed: Callable[[], None]) -> None:
        """`changed` is called when less work is left, and when the last task of a closed one has ended."""
        self._width = width
        self._handle = handle
        self._changed = changed
        self._ready: deque[str] = deque()
        """Keys whose turn it is."""
        self._waiting: dict[str, deque[WorkT]] = {}
        """By key, in order; a key is here while any of its work waits or runs."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.count = 0
        """Pieces that wait or run."""

    @property
    def over(self) -> bool:
        """It is closed, and nothing runs any more."""
        return self._closed and not self._tasks

    def add(self, key: str, work: WorkT) -> None:
        """One more piece."""
        if self._closed:
            return
        self.count += 1
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(work)
            return
        self._waiting[key] = deque((work,))
        self._ready.append(key)
        if len(self._tasks) < self._width:
            task = asyncio.get_running_loop().create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def close(self) -> None:
        """Give up what waits and runs."""
        self._closed = True
        self._ready.clear()
        for task in self._tasks:
            task.cancel()

    async def _run(self) -> None:
        while self._ready:
            key = self._ready.popleft()
            waiting = self._waiting[key]
            await self._handle(waiting.popleft())
            if waiting:
                self._ready.append(key)
            else:
                del self._waiting[key]
            self.count -= 1
            self._changed()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._closed:
            self._changed()
        elif not task.cancelled():
            task.result()  # a handler that raises is a fault of this program: say so
