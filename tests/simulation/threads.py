"""An executor with one thread, over simulated time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.kernel import MS, Future, Process


class Thread:
    """One call after another, in the order they were handed in: what a single-thread executor does."""

    def __init__(self, process: Process) -> None:
        self._process, self._busy = process, False
        self._queue: deque[tuple[Callable[..., Any], tuple[Any, ...], Future]] = deque()

    def submit(self, call: Callable[..., Any], *args: Any) -> Future:
        """A call that may itself be a coroutine function."""
        future = Future()
        self._queue.append((call, args, future))
        if not self._busy:
            self._next()
        return future

    def submit_elsewhere(self, call: Callable[..., Any], *args: Any) -> Future:
        """A call in a thread of its own that needs the same lock: it may overtake those that wait."""
        future = self.submit(call, *args)
        if self._queue and self._process.sim.chance(0.5):
            self._queue.rotate()
        return future

    def _next(self) -> None:
        self._busy = bool(self._queue)
        if not self._busy:
            return
        call, args, future = self._queue.popleft()
        task = self._process.spawn(self._run(call, args))

        def done() -> None:
            future.set(task.done.value, task.done.error)
            if self._process.alive:
                self._next()

        task.done.then(done)

    async def _run(self, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        result = call(*args)
        if hasattr(result, "__await__"):
            result = await result
        elif self._process.sim.chance(0.2):
            await self._process.sleep(3 * MS if self._process.sim.chance(0.2) else 200)
        return result
