"""The write loop: `imray.shard.write_loop.WriteLoop` step by step, over simulated processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from imray.core.columns import Commit
from imray.core.errors import CorruptError, FencedError, ImrayError, StorageError
from imray.core.replies import Appended, Refusal, Refused
from imray.log.schema import Record
from tests.simulation.disk import Disk, Msg, Segment
from tests.simulation.kernel import MS, Future, Process, Task
from tests.simulation.threads import Thread

Request = tuple[Msg, ...]
Records = Callable[[Any], list[Record]]


class BugError(AssertionError):
    """Code under test raised what it never should."""


@dataclass
class Job:
    """What was planned and encoded."""

    answers: Sequence[Any]
    commit: Commit | None
    encoded: Segment | None
    report: Any = None


@dataclass
class _Waiting:
    what: Request | Records
    rows: int
    answer: Future


def unavailable(detail: str) -> Refusal:
    """Outcome unknown."""
    return Refusal(Refused.UNAVAILABLE, detail)


class WriteLoop:
    """One incarnation after another of a log's writer, in one process."""

    def __init__(self, label: str, disk: Disk, process: Process, ahead: int, on_fenced: Callable[[], None]) -> None:
        self.label, self.disk, self.process, self.sim = label, disk, process, disk.sim
        process.serves = self
        self.thread, self._putting = Thread(process), Thread(process)
        self._ahead, self._on_fenced = ahead, on_fenced
        self._queue: deque[_Waiting] = deque()
        self._wake = Future()
        self.refusal: Refusal | None = unavailable("recovering")
        self._planning: list[_Waiting] = []
        self._commit_in_flight: tuple[Job, list[_Waiting]] | None = None
        self._failure: BaseException | None = None
        self._when_idle: deque[Callable[[], Awaitable[None]]] = deque()
        self.slot = 0
        self.replaced: Callable[[], bool] = lambda: False
        self.bug: BaseException | None = None

    async def _become_writer(self) -> None:
        raise NotImplementedError

    async def _plan(self, requests: list[Request]) -> Job:
        raise NotImplementedError

    async def _record(self, records: Records) -> Job:
        raise NotImplementedError

    async def _put(self, job: Job) -> None:
        raise NotImplementedError

    def _mark_durable(self, job: Job) -> None:
        raise NotImplementedError

    async def _end_incarnation(self) -> None:
        raise NotImplementedError

    def start(self) -> Task:
        """Become the writer, then write."""
        return self.process.spawn(self._live())

    async def _live(self) -> None:
        await self._open()
        await self._run()

    def usurps(self) -> bool:
        """Whether this process became the writer though another one was put in its place."""
        return self.replaced()

    async def append(self, request: Request) -> Appended | Refusal:
        """Number a request and make it durable."""
        if self.refusal is not None:
            return self.refusal
        return await self._enqueue(request, len(request))

    async def record(self, records: Records) -> Refusal | None:
        """Make records durable, in the log's order; None: they are."""
        return self.refusal or await self._enqueue(records, 0)

    def _enqueue(self, what: Request | Records, rows: int) -> Future:
        answer = Future()
        self._queue.append(_Waiting(what, rows, answer))
        self._woken()
        return answer

    def _woken(self) -> None:
        self._wake.set()

    async def _wait(self) -> None:
        await self._wake
        self._wake = Future()

    async def _open(self) -> None:
        delay_us = 5 * MS
        while True:
            try:
                await self._become_writer()
                if self.usurps():
                    # taken for granted here: who was replaced learns it before he serves again
                    self.sim.after(0, self.process.kill)
                    await Future()
            except CorruptError as e:
                self.bug = e
                self.refusal = Refusal(Refused.CORRUPT, str(e))
                return
            except ImrayError as e:
                self.sim.trace("no writer", self.process.name, e)
                await self.process.sleep(delay_us)
                delay_us = min(2 * delay_us, 100 * MS)
            else:
                self.sim.trace("serving", self.process.name)
                self.refusal = None
                return

    async def _run(self) -> None:
        while self.refusal is None:
            try:
                await self._pipeline()
            except FencedError as e:
                await self._wait_for_commit()
                self.sim.trace("fenced", self.process.name, e)
                self._refuse(unavailable("fenced"))
                if not e.by_home:
                    self._on_fenced()
                    return
            except (StorageError, ImrayError) as e:
                await self._wait_for_commit()
                self.sim.trace("fails", self.process.name, e)
                if not isinstance(e, StorageError) and isinstance(e, CorruptError):
                    self.bug = e
                    return
                self._refuse(unavailable("unknown whether it landed"))
            except Exception as e:
                self.bug = e
                self._refuse(unavailable("a bug"))
                raise
            await self._end_incarnation()
            self._failure = None
            await self._open()

    async def _pipeline(self) -> None:
        while True:
            await self._work()
            taken = self._planning = self._take()
            first = taken[0].what
            if isinstance(first, tuple):
                job = await self._plan([w.what for w in taken])  # type: ignore[misc]
            else:
                job = await self._record(first)
            await self._until(lambda: self._commit_in_flight is None)
            self._planning = []
            self._commit_in_flight = job, taken
            put = self._putting.submit(self._put, job)
            put.then(lambda put=put: self._land(put))  # type: ignore[misc]

    async def _work(self) -> None:
        def ready_to_plan() -> bool:
            if self._when_idle:
                return self._commit_in_flight is None
            rows = sum(w.rows for w in self._queue)
            return bool(self._queue) and (self._commit_in_flight is None or rows >= self._ahead)

        while True:
            await self._until(ready_to_plan)
            if not self._when_idle:
                return
            await self._when_idle.popleft()()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._failure is not None:
                raise self._failure
            await self._wait()
        if self._failure is not None:
            raise self._failure

    async def _wait_for_commit(self) -> None:
        while self._commit_in_flight is not None and self._failure is None:
            await self._wait()

    def _land(self, put: Future) -> None:
        self._woken()
        if self._commit_in_flight is None:
            return
        if put.error is not None:
            self._failure = put.error
            return
        job, taken = self._commit_in_flight
        self._commit_in_flight = None
        self._mark_durable(job)
        for waiting, answer in zip(taken, list(job.answers) or [None] * len(taken), strict=True):
            waiting.answer.set(answer)

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        while self._queue:
            if taken and not isinstance(self._queue[0].what, tuple):
                break
            taken.append(self._queue.popleft())
            if not isinstance(taken[0].what, tuple):
                break
        return taken

    def fail(self, error: BaseException) -> None:
        """End the incarnation: something beside the write loop found that it cannot go on."""
        self._failure = error
        self._woken()

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        waiting = [*self._planning, *self._queue]
        if self._failure is not None and self._commit_in_flight is not None:
            waiting = [*self._commit_in_flight[1], *waiting]
            self._commit_in_flight = None
        self._planning = []
        self._queue.clear()
        for w in waiting:
            w.answer.set(refusal)

    def watch(self, coroutine: Coroutine[Any, Any, None], tasks: set[Task]) -> Task:
        """A task beside the loop: its error ends the incarnation."""
        task = self.process.spawn(coroutine)
        tasks.add(task)

        def done() -> None:
            tasks.discard(task)
            if task.done.error is not None:
                self.fail(task.done.error)

        task.done.then(done)
        return task
