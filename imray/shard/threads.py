"""Real threads that take calls: what a simulation replaces by its own. Owns their queue and their life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_BACKGROUND_NICE = 5
"""A third of another thread's CPU where there is not enough: checkpoints and merges of ids took half of a small quota.
Not less, since now and then such a thread holds the interpreter's lock, and everybody waits until it runs again."""


class _Call(NamedTuple):
    """A call that a thread is to make, and whom to tell."""

    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    call: Callable[..., Any] | None
    """None: it is to end."""
    args: tuple[Any, ...] = ()


class Threads:
    """A worker of real threads: a queue and nothing else, since each commit goes through it.

    Measured alone: 42 us of CPU there and back, an executor's 53. The threads are daemons: a put that never returns
    does not keep a process that ends."""

    def __init__(self, name: str, threads: int = 1, background: bool = False) -> None:
        """As `imray.shard.runtime.NewWorker`."""
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._name = name
        self._background = background
        self._count = threads
        self._threads: list[threading.Thread] = []
        self._ends: list[asyncio.Future[None]] = []
        self._ended = False

    def run(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """As `imray.shard.runtime.Worker.run`. RuntimeError where it has ended."""
        if self._ended:
            raise RuntimeError(f"{self._name} takes no calls any more")
        if not self._threads:
            self._start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._calls.put(_Call(loop, answer, call, args))
        return answer

    def _start(self) -> None:
        for number in range(self._count):
            thread = threading.Thread(target=self._work, name=f"{self._name}_{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        if self._background:
            # Linux takes a thread's id here; elsewhere it may not be known, and the thread is as all others
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICE)
        while (one := self._calls.get()).call is not None:
            if one.answer.cancelled():
                continue
            result: Any = None
            error: BaseException | None = None
            try:
                result = one.call(*one.args)
            except BaseException as e:  # noqa: BLE001 whoever waits for the call gets it
                error = e
            _tell(one, result, error)
            del one, result, error  # what it holds may be large, and the next call may come late
        _tell(one, None, None)

    async def end(self, drop_waiting: bool = False) -> None:
        """As `imray.shard.runtime.Worker.end`."""
        self._ended = True
        if drop_waiting and not self._ends:  # else what waits behind a call is the threads' end
            with contextlib.suppress(Empty):
                while True:
                    self._calls.get_nowait().answer.cancel()
        loop = asyncio.get_running_loop()
        while len(self._ends) < len(self._threads):  # once, however often it is ended
            self._ends.append(loop.create_future())
            self._calls.put(_Call(loop, self._ends[-1], None))
        if self._ends:
            # not by joining, which would take a thread that keeps the process; who gives up here may ask again
            await asyncio.wait(self._ends)


def _tell(one: _Call, result: Any, error: BaseException | None) -> None:
    # a loop that is closed has nobody who waits
    with contextlib.suppress(RuntimeError):
        one.loop.call_soon_threadsafe(_settle, one.answer, result, error)


def _settle(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return  # whoever asked has given up
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
