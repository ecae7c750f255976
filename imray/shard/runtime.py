"""Time and threads of a process, as writers use them. Everything here can be replaced: a simulation passes its own.

Owns nothing. Timers are asyncio's, so whoever brings an event loop of its own brings them, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from imray.shard.threads import Threads

T = TypeVar("T")


class Worker(Protocol):
    """One thread or a few that take one call after another, in the order they were handed in."""

    def run(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Have a call made there; its result, or its error, comes to the running event loop."""

    async def end(self, drop_waiting: bool = False) -> None:
        """Wait until it is at rest; it takes nothing any more. `drop_waiting`: what has not begun is dropped."""


class NewWorker(Protocol):
    """Makes workers."""

    def __call__(self, name: str, threads: int = 1, background: bool = False) -> Worker:
        """`background`: what it does is for later, and gives way to everything else."""


class Lock(AbstractContextManager[Any], Protocol):
    """A mutual exclusion between threads."""

    def acquire(self, blocking: bool = True) -> bool:
        """Take it; False where it is taken and `blocking` is False."""

    def release(self) -> None:
        """Give it back."""


@dataclass(frozen=True)
class Runtime:
    """What a writer needs of its process."""

    wall_ms: Callable[[], int]
    """Milliseconds since 1970 UTC. Payload only: no order depends on it."""
    monotonic_s: Callable[[], float]
    """Seconds since some moment; never goes back."""
    thread_cpu_s: Callable[[], float]
    """CPU seconds that the calling thread has used; for figures."""
    worker: NewWorker
    lock: Callable[[], Lock]


def wall_ms() -> int:
    """The wall clock of this machine, as `Runtime.wall_ms`."""
    return time.time_ns() // 1_000_000


SYSTEM = Runtime(
    wall_ms=wall_ms,
    monotonic_s=time.monotonic,
    thread_cpu_s=time.thread_time,
    worker=Threads,
    lock=threading.Lock,
)
"""The real one."""


class StateThread:
    """Whoever touches the state of a shard does it through here: one at a time.

    Most calls go to one thread, in their order. Short ones may be made at once, where the state is free."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._worker = runtime.worker(name, 1)
        self._lock = runtime.lock()
        self._handed_in = 0
        """Calls in the thread whose end the event loop has not seen."""

    def run(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call in the thread, in the order of these calls."""
        self._handed_in += 1
        answer = self._worker.run(self._locked, call, *args)
        answer.add_done_callback(self._returned)
        return answer

    def _returned(self, _answer: asyncio.Future[Any]) -> None:
        self._handed_in -= 1

    def run_in_turn(self, call: Callable[..., T], *args: Any) -> tuple[bool, T | None]:
        """As `run_now`, where nothing waits for the thread either: it overtakes no call that was handed in before."""
        return (False, None) if self._handed_in else self.run_now(call, *args)

    def run_now(self, call: Callable[..., T], *args: Any) -> tuple[bool, T | None]:
        """Call in the caller's own thread, where nobody else touches the state: True and the result. Else False.

        May overtake what waits for the thread. For calls that read no file and take microseconds."""
        if not self._lock.acquire(blocking=False):
            return False, None
        try:
            return True, call(*args)
        finally:
            self._lock.release()

    def _locked(self, call: Callable[..., T], *args: Any) -> T:
        with self._lock:
            return call(*args)

    async def end(self) -> None:
        """Wait until it is at rest."""
        await self._worker.end()
