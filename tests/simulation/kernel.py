"""A clock that only events move, processes that can be killed or stopped, and a network that loses and repeats calls.

Everything random comes from one seeded generator, and whatever happens at the same instant happens in the order it was
asked for: so a seed replays a run exactly. Processes run production code on event loops of their own (`loop`) with
threads that are greenlets (`threads`).
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from imray.core.errors import ImrayError
from tests.simulation.loop import SimLoop

LOST = "lost"
"""What a caller gets instead of an answer: the outcome is unknown."""
MS = 1000
"""The clock counts microseconds."""


class LivenessError(AssertionError):
    """Something that had to happen did not, although nothing is broken any more."""


class Process:
    """An event loop and threads, until it is killed; stopped, what would happen to it waits."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim = sim
        self.name = name
        self.alive = True
        self.stopped = False
        self.loop = SimLoop(self)
        self.serves: Any = None
        """Whose methods calls reach."""
        self._held: list[tuple[bool, Callable[[], None]]] = []
        self.threads: dict[greenlet, None] = {}
        """Threads that have begun and wait."""
        self.on_kill: list[Callable[[], None]] = []
        """What others see of its end."""

    def post(self, call: Callable[[], None], in_thread: bool = False) -> None:
        """Do something in this process, soon: in its event loop, or in one of its threads."""
        if self.alive:
            if self.stopped:
                self._held.append((in_thread, call))
            else:
                self.sim.ready.append((self, in_thread, call))

    def hold(self, in_thread: bool, call: Callable[[], None]) -> None:
        """It was stopped meanwhile."""
        self._held.append((in_thread, call))

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task."""
        return asyncio.Task(coroutine, loop=self.loop)

    def kill(self) -> None:
        """SIGKILL: no code of it runs any more, not even to clean up."""
        if self.alive:
            self.sim.trace("kill", self.name)
            self.alive = False
            self._held.clear()
            for call in self.on_kill:
                call()
            for thread in list(self.threads):
                thread.throw(GreenletExit)
            self.threads.clear()

    def stop(self) -> None:
        """SIGSTOP."""
        if self.alive and not self.stopped:
            self.sim.trace("stop", self.name)
            self.stopped = True

    def resume(self) -> None:
        """SIGCONT."""
        if self.stopped:
            self.sim.trace("resume", self.name)
            self.stopped = False
            held, self._held = self._held, []
            for in_thread, call in held:
                self.post(call, in_thread)

    async def sleep(self, us: int) -> None:
        """Some time."""
        future = self.loop.create_future()
        self.sim.after(us, lambda: self.post(lambda: future.done() or future.set_result(None)))  # type: ignore[func-returns-value]
        await future


@dataclass
class Weather:
    """How bad the network and the disk are: probabilities, and the longest usual delay."""

    drop: float = 0.0
    repeat: float = 0.0
    straggle: float = 0.0
    put_error: float = 0.0
    delay_us_max: int = 2 * MS


class Simulation:
    """The clock, the dice and the trace."""

    def __init__(self, seed: int, keep_trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.main = getcurrent()
        self.now = 0
        self.bugs: list[BaseException] = []
        """Errors that no part raises on purpose."""
        self.moment = 0
        """Counts what clients saw: two events never have the same one."""
        self.weather = Weather()
        self.cut: set[str] = set()
        """Processes that the network does not reach."""
        self.ready: deque[tuple[Process, bool, Callable[[], None]]] = deque()
        self.lines: list[str] | None = [] if keep_trace else None
        self.events = 0
        self._hash = hashlib.blake2b(digest_size=8)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def trace(self, what: str, *about: object) -> None:
        """One line of the run."""
        line = f"{self.now / MS:9.3f} {what:<10} {' '.join(map(str, about))}"
        self._hash.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """Of the trace: equal for equal runs."""
        return self._hash.hexdigest()

    def chance(self, probability: float) -> bool:
        """Throw the dice."""
        return probability > 0 and self.rng.random() < probability

    def tick(self) -> int:
        """The next moment."""
        self.moment += 1
        return self.moment

    def after(self, us: int, call: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + us, self._count, call))

    def delay(self) -> int:
        """Of one message or one write."""
        slow = 30 if self.chance(self.weather.straggle) else 1
        return int(self.rng.random() * self.weather.delay_us_max * slow) + 50

    def run(self, until_us: int, finished: Callable[[], bool]) -> bool:
        """Go on until it is finished, or until a time; whether it is."""
        ready = self.ready
        heap = self._heap
        try:
            while True:
                while ready:
                    process, in_thread, call = ready.popleft()
                    if process.stopped:
                        process.hold(in_thread, call)
                    elif process.alive:
                        self.events += 1
                        asyncio._set_running_loop(None if in_thread else process.loop)
                        call()
                asyncio._set_running_loop(None)
                if finished():
                    return True
                if not heap or heap[0][0] > until_us:
                    return False
                self.now, _, call = heapq.heappop(heap)
                call()
        finally:
            asyncio._set_running_loop(None)

    async def call(self, caller: Process, callee: Process | None, method: str, *args: Any, timeout_us: int) -> Any:
        """Call a method of another process: its answer, or LOST. It may be executed though its answer is lost, late,
        twice, and after a call that was made later."""
        answer = caller.loop.create_future()
        self.after(timeout_us, lambda: _tell(caller, answer, LOST))
        for _ in range(2 if self.chance(self.weather.repeat) else 1):
            if not self._dropped(caller, callee) and callee is not None:
                self.after(self.delay(), _Delivery(self, caller, callee, method, args, answer))
        return await answer

    def _dropped(self, one: Process, other: Process | None) -> bool:
        return (
            self.chance(self.weather.drop) or one.name in self.cut or (other is not None and other.name in self.cut)
        )  # fmt: skip

    def answer(self, caller: Process, callee: Process, answer: asyncio.Future[Any], value: Any) -> None:
        """Send an answer back."""
        if not self._dropped(callee, caller):
            self.after(self.delay(), lambda: _tell(caller, answer, value))

    def failed(self, process: Process, what: str, error: BaseException) -> None:
        """Code of a process raised what nobody waits for."""
        self.trace("error", process.name, what, repr(error))
        if not isinstance(error, ImrayError):
            self.bugs.append(error)  # else a part that always fails would look like a lost call


def _tell(process: Process, answer: asyncio.Future[Any], value: Any) -> None:
    def tell() -> None:
        if not answer.done():
            answer.set_result(value)

    process.post(tell)


@dataclass
class _Delivery:
    sim: Simulation
    caller: Process
    callee: Process
    method: str
    args: tuple[Any, ...]
    answer: asyncio.Future[Any]

    def __call__(self) -> None:
        """The call has arrived."""
        if not self.callee.alive:
            self.sim.answer(self.caller, self.callee, self.answer, LOST)
            return
        self.callee.post(self._begin)

    def _begin(self) -> None:
        if self.callee.serves is None:
            self.sim.answer(self.caller, self.callee, self.answer, LOST)  # it has not begun yet
            return
        task = self.callee.spawn(getattr(self.callee.serves, self.method)(*self.args))
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Any]) -> None:
        value = LOST
        if task.cancelled():
            pass
        elif (error := task.exception()) is not None:
            self.sim.failed(self.callee, self.method, error)
        else:
            value = task.result()
        self.sim.answer(self.caller, self.callee, self.answer, value)
