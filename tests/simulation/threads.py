"""Threads of a simulated process: greenlets that wait where a real thread would block, and locks between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from imray.shard.runtime import Runtime
from tests.simulation.kernel import MS, Process


class BlockedLoopError(BaseException):
    """Code that runs on an event loop would have waited there: for a file, or for a lock."""


def wait_here(process: Process, us: int) -> None:
    """Let simulated time pass in the calling thread, as a blocking call does."""
    me = getcurrent()
    if me is process.sim.main:
        raise BlockedLoopError("a call that blocks on the event loop")
    process.sim.after(us, lambda: process.post(me.switch, in_thread=True))
    _leave(process, me)


def _leave(process: Process, me: greenlet) -> None:
    process.threads[me] = None
    process.sim.main.switch()
    process.threads.pop(me, None)


class SimLock:
    """Between the threads of one process; who runs on the event loop may only try."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._taken = False
        self._waiting: deque[greenlet] = deque()

    def acquire(self, blocking: bool = True) -> bool:
        """As `imray.shard.runtime.Lock.acquire`."""
        if not self._taken:
            self._taken = True
            return True
        if not blocking:
            return False
        me = getcurrent()
        if me is self._process.sim.main:
            raise BlockedLoopError("the event loop waits for a lock")
        self._waiting.append(me)
        _leave(self._process, me)
        return True

    def release(self) -> None:
        """As `imray.shard.runtime.Lock.release`."""
        if self._waiting:
            self._process.post(self._waiting.popleft().switch, in_thread=True)
        else:
            self._taken = False

    def __enter__(self) -> SimLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class SimWorker:
    """As `imray.shard.runtime.Threads`: so many calls at once, the others in the order they were handed in."""

    def __init__(self, process: Process, threads: int) -> None:
        self._process = process
        self._threads = threads
        self._free = threads
        self._ending: asyncio.Future[None] | None = None
        self._queue: deque[tuple[Callable[..., Any], tuple[Any, ...], asyncio.Future[Any]]] = deque()

    def run(self, call: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """As `Worker.run`."""
        future = self._process.loop.create_future()
        self._queue.append((call, args, future))
        self._begin()
        return future

    def _begin(self) -> None:
        sim = self._process.sim
        while self._queue and self._free:
            call, args, future = self._queue.popleft()
            if future.cancelled():
                continue
            self._free -= 1
            thread = greenlet(self._work, sim.main)

            def start(thread: greenlet = thread, work: tuple[Any, ...] = (call, args, future)) -> None:
                thread.switch(*work)

            if sim.chance(0.2):
                late_us = 3 * MS if sim.chance(0.2) else 200
                sim.after(late_us, lambda start=start: self._process.post(start, in_thread=True))  # type: ignore[misc]
            else:
                self._process.post(start, in_thread=True)

    def _work(self, call: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        try:
            result = call(*args)
        except GreenletExit:
            return
        except BaseException as e:  # noqa: BLE001 whoever waits for the call gets it
            self._post(future, None, e)
        else:
            self._post(future, result, None)
        self._free += 1
        self._begin()
        self._at_rest()

    def _post(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        def tell() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._process.post(tell)

    async def end(self, drop_waiting: bool = False) -> None:
        """As `Worker.end`."""
        if drop_waiting:
            self._queue.clear()
        self._ending = self._process.loop.create_future()
        self._at_rest()
        await self._ending

    def _at_rest(self) -> None:
        if self._ending is not None and self._free == self._threads and not self._queue:
            self._post(self._ending, None, None)


def runtime_of(process: Process) -> Runtime:
    """Time and threads of a simulated process."""
    sim = process.sim
    return Runtime(
        wall_ms=lambda: 1_000_000 + sim.now // MS,
        monotonic_s=lambda: sim.now / 1e6,
        thread_cpu_s=lambda: 0.0,
        worker=lambda _name, threads=1, background=False: SimWorker(process, threads),
        lock=lambda: SimLock(process),
    )
