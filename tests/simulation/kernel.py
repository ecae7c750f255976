"""A clock that only events move, processes that can be killed or stopped, and a network that loses and repeats calls.

Everything random comes from one seeded generator, and whatever happens at the same instant happens in the order it was
asked for: so a seed replays a run exactly. Coroutines are driven from here; there is no asyncio and no real time.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from imray.core.errors import ImrayError

LOST = "lost"
"""What a caller gets instead of an answer: the outcome is unknown."""
MS = 1000
"""The clock counts microseconds."""


class LivenessError(AssertionError):
    """Something that had to happen did not, although nothing is broken any more."""


class Future:
    """A value that comes later."""

    __slots__ = ("_then", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._then: list[Callable[[], None]] = []

    def set(self, value: Any = None, error: BaseException | None = None) -> None:
        """Only the first answer counts."""
        if not self.done:
            self.done, self.value, self.error = True, value, error
            then, self._then = self._then, []
            for call in then:
                call()

    def then(self, call: Callable[[], None]) -> None:
        """Call when it is there."""
        if self.done:
            call()
        else:
            self._then.append(call)

    def __await__(self) -> Generator[Future, None, Any]:
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error
        return self.value


class Task:
    """A coroutine of a process."""

    __slots__ = ("_coroutine", "_process", "done")

    def __init__(self, process: Process, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._process, self._coroutine, self.done = process, coroutine, Future()

    def step(self) -> None:
        """Run until it waits again."""
        if self.done.done:
            return
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration as stop:
            self._process.tasks.pop(self, None)
            self.done.set(stop.value)
        except Exception as e:  # noqa: BLE001 whoever waits for the task gets it
            self._process.tasks.pop(self, None)
            self.done.set(error=e)
        else:
            waits_for.then(self._wake)

    def _wake(self) -> None:
        self._process.post(self.step)

    def cancel(self) -> None:
        """End it where it waits."""
        self._process.tasks.pop(self, None)
        if not self.done.done:
            self._coroutine.close()
            self.done.set(LOST)


class Process:
    """Runs tasks until it is killed; stopped, what would happen to it waits."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim, self.name = sim, name
        self.alive, self.stopped = True, False
        self.tasks: dict[Task, None] = {}
        self.serves: Any = None
        """Whose methods calls reach."""
        self._held: list[Callable[[], None]] = []

    def post(self, call: Callable[[], None]) -> None:
        """Do something in this process, soon."""
        if self.alive:
            if self.stopped:
                self._held.append(call)
            else:
                self.sim.ready.append((self, call))

    def hold(self, call: Callable[[], None]) -> None:
        """It was stopped meanwhile."""
        self._held.append(call)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        """Begin a task."""
        task = Task(self, coroutine)
        if not self.alive:
            task.cancel()
            return task
        self.tasks[task] = None
        self.post(task.step)
        return task

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive:
            self.sim.trace("kill", self.name)
            self.alive = False
            self._held.clear()
            for task in list(self.tasks):
                task.cancel()

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
            for call in held:
                self.post(call)

    def sleep(self, us: int) -> Future:
        """Some time."""
        future = Future()
        self.sim.after(us, future.set)
        return future


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
        self.now = 0
        self.bugs: list[BaseException] = []
        """Errors of calls that no part raises on purpose."""
        self.moment = 0
        """Counts what clients saw: two events never have the same one."""
        self.weather = Weather()
        self.cut: set[str] = set()
        """Processes that the network does not reach."""
        self.ready: deque[tuple[Process, Callable[[], None]]] = deque()
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
        ready, heap = self.ready, self._heap
        while True:
            while ready:
                process, call = ready.popleft()
                if process.stopped:
                    process.hold(call)
                elif process.alive:
                    self.events += 1
                    call()
            if finished():
                return True
            if not heap or heap[0][0] > until_us:
                return False
            self.now, _, call = heapq.heappop(heap)
            call()

    async def call(self, caller: Process, callee: Process | None, method: str, *args: Any, timeout_us: int) -> Any:
        """Call a method of another process: its answer, or LOST. It may be executed though its answer is lost, late,
        twice, and after a call that was made later."""
        answer = Future()
        self.after(timeout_us, lambda: answer.set(LOST))
        for _ in range(2 if self.chance(self.weather.repeat) else 1):
            if not self._dropped(caller, callee) and callee is not None:
                self.after(self.delay(), _Delivery(self, caller, callee, method, args, answer))
        return await answer

    def _dropped(self, one: Process, other: Process | None) -> bool:
        return (
            self.chance(self.weather.drop) or one.name in self.cut or (other is not None and other.name in self.cut)
        )  # fmt: skip

    def answer(self, caller: Process, callee: Process, answer: Future, value: Any) -> None:
        """Send an answer back."""
        if not self._dropped(callee, caller):
            self.after(self.delay(), lambda: answer.set(value))


@dataclass
class _Delivery:
    sim: Simulation
    caller: Process
    callee: Process
    method: str
    args: tuple[Any, ...]
    answer: Future

    def __call__(self) -> None:
        """The call has arrived."""
        if not self.callee.alive:
            self.sim.answer(self.caller, self.callee, self.answer, LOST)
            return
        self.callee.post(self._begin)

    def _begin(self) -> None:
        task = self.callee.spawn(getattr(self.callee.serves, self.method)(*self.args))
        task.done.then(lambda: self._end(task))

    def _end(self, task: Task) -> None:
        # a killed callee's tasks end with LOST, as Ray reports a dead actor
        value = LOST if task.done.error is not None else task.done.value
        if task.done.error is not None:
            self.sim.trace("error", self.callee.name, self.method, repr(task.done.error))
            if not isinstance(task.done.error, ImrayError):
                self.sim.bugs.append(task.done.error)  # else a part that always fails would look like a lost call
        self.sim.answer(self.caller, self.callee, self.answer, value)
