"""The write loop of a log: recover, then group commit after group commit. Shards and partitions share it.

Owns the queue, and when a commit is planned, written and applied: `window` puts are on their way at once and are acked
in order; what arrives meanwhile is the next commit. Each incarnation is an object of its own (`Incarnation`), and what
comes back from beside the loop names the one that it belongs to. Knows nothing of Ray, HTTP or numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from imray.core.errors import CorruptError, FencedError, ImrayError, InvalidError, StorageError
from imray.core.replies import Appended, Refusal, Refused
from imray.core.status import ServingState
from imray.log.rows import Prepared, prepare
from imray.log.schema import from_ipc
from imray.settings import Settings
from imray.shard.commit_queue import CommitQueue, Flight, Waiting
from imray.shard.jobs import Incarnation, Open, Records
from imray.shard.look_ups import LookUps
from imray.shard.runtime import Runtime
from imray.shard.set_aside import SetAside

log = logging.getLogger("imray.write_loop")

_REOPEN_DELAY_S_MIN = 0.1
_CORRUPT_DELAY_S = 60.0
"""A person must look; once the file is back, the shard serves by itself."""


class WriteLoop:
    """One incarnation after another of a log's writer, in one process.

    An error ends an incarnation: its waiting requests are answered "unknown, retry", and a new one reads the log, once
    nothing of the old one is on its way to the store. A fence ends the loop for good. Corruption is reported to every
    caller, and looked at again from time to time."""

    def __init__(
        self,
        label: str,
        seed: int,
        settings: Settings,
        runtime: Runtime,
        open_incarnation: Open,
        on_fenced: Callable[[], None],
        window: int = 1,
    ) -> None:
        """`window`: how many puts may be on their way, counted from the oldest that is not acked."""
        self.label = label
        self._seed = seed
        self._settings = settings
        self._runtime = runtime
        self._open_incarnation = open_incarnation
        self._on_fenced = on_fenced
        self._window = window
        self._queue = CommitQueue(settings)
        self._wake = asyncio.Event()
        self._set_aside = SetAside(LookUps(runtime, f"old-ids-{label}"), self._queue, self._wake, self.fail)
        self._putting = runtime.worker(f"put-{label}", window)
        self._refusal: Refusal | None = None
        self._planning: list[Waiting] = []
        self._flights: deque[Flight] = deque()
        """Commits that are not acked yet, oldest first."""
        self.current: Incarnation | None = None
        """The one that serves, or served last."""
        self.number = 0  # of the incarnation that serves, or is being opened
        self._failure: BaseException | None = None  # what ended this incarnation
        self._when_idle: deque[Callable[[], Awaitable[None]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._tried = asyncio.Event()
        """The first try to become the writer has ended."""
        self.replaced = False
        """Another process is the writer now: what this one knows is of the past."""
        self._unwritable = False

    async def start(self) -> None:
        """Try to become the writer, and wait for the first try's end; answers with refusals until one has worked."""
        self._refusal = Refusal(Refused.UNAVAILABLE, f"{self.label} is recovering: retry with the same ids")
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)
        await self._tried.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tried.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # a bug of ours: a process that lives and never serves again helps nobody
            log.critical("%s: its write loop is broken", self.label, exc_info=error)
            self._refuse(Refusal(Refused.UNAVAILABLE, f"{self.label} ends: retry with the same ids"))
            self._on_fenced()

    async def stop(self) -> None:
        """End in good order: what is being committed is answered, the rest is refused."""
        self._stopping.set()
        self._refuse(Refusal(Refused.UNAVAILABLE, f"{self.label} is stopping: retry with the same ids"))
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task])  # it ends when what is on its way has returned
        await self._end_incarnation()
        await self._set_aside.end()
        if not self._flights:  # else its thread hangs, and the process must end
            await self._putting.end()

    @property
    def refusal(self) -> Refusal | None:
        """Why nothing is taken now; None: it serves."""
        return self._refusal

    @property
    def state(self) -> ServingState:
        """Whether it takes messages, and why not."""
        if self._refusal is None:
            return ServingState.SERVING
        if self.replaced:
            return ServingState.REPLACED
        if self._stopping.is_set():
            return ServingState.STOPPING
        if self._refusal.why is Refused.CORRUPT:
            return ServingState.CORRUPT
        return ServingState.UNWRITABLE if self._unwritable else ServingState.RECOVERING

    @property
    def queued_rows(self) -> int:
        """Messages that wait for their commit."""
        return self._queue.rows

    async def append(self, data: object) -> Appended | Refusal:
        """Number a batch (an Arrow IPC stream, `imray.log.schema.BATCH_SCHEMA`) and make it durable.

        Appended: it is. Refusal: what the caller must do. If the call itself fails, the outcome is unknown."""
        if self._refusal is not None:
            return self._refusal
        settings = self._settings
        try:
            request = prepare(from_ipc(data), self._seed)
        except (InvalidError, ValueError, TypeError, NotImplementedError, OSError) as e:
            return Refusal(Refused.INVALID, str(e))
        size = request.batch.get_total_buffer_size()
        if not len(request) or len(request) > settings.commit_rows_max or size > settings.shard_queue_bytes_max:
            return Refusal(Refused.INVALID, f"a batch of {len(request)} messages: send 1 to {settings.commit_rows_max}")
        if not self._queue.has_room(len(request), size) or (self.current is not None and self.current.busy):
            return Refusal(Refused.BUSY, f"{self.label} has a full queue: retry later")
        answer: Appended | Refusal = await self._enqueue(request, len(request), size)
        return answer

    async def record(self, records: Records) -> Refusal | None:
        """Make records durable, in the log's order; None: they are."""
        if self._refusal is not None:
            return self._refusal
        answer: Refusal | None = await self._enqueue(records, 0, 0)
        return answer

    def _enqueue(self, what: Prepared | Records, rows: int, size: int) -> asyncio.Future[Any]:
        self._wake.set()
        return self._queue.add(what, rows, size)

    def when_idle(self, do: Callable[[], Awaitable[None]]) -> None:
        """Have something done once nothing is on its way, before anything else is planned."""
        self._when_idle.append(do)
        self._wake.set()

    def fail(self, error: BaseException, number: int | None = None) -> None:
        """End an incarnation (None: this one): something beside the loop found that it cannot go on. Nothing happens
        where it is over already."""
        if number is None or number == self.number:
            self._failure = self._failure or error
            self._wake.set()

    def _refuse(self, refusal: Refusal) -> None:
        """Refuse everything that is not on its way to the store."""
        self._refusal = refusal
        self._queue.refuse_all(self._planning, refusal)
        self._planning = []
        self._set_aside.drop()

    async def _run(self) -> None:
        while (incarnation := await self._open()) is not None:
            try:
                await self._pipeline(incarnation)
            except Exception as e:  # noqa: BLE001 a bug of ours is an unknown outcome, too: callers must not wait for ever
                if await self._ended_by(e):
                    return
            else:
                return

    async def _open(self) -> Incarnation | None:
        """Try until this is the writer. None: the loop stops."""
        delay_s = _REOPEN_DELAY_S_MIN
        while not self._stopping.is_set():
            self.number += 1
            self._failure = None
            try:
                self.current = await self._open_incarnation(self.number)
            except Exception as e:  # noqa: BLE001 out of memory, of file descriptors, or a bug of ours: try again
                self._refusal = self._cannot_open(e, delay_s)
                self._tried.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
                corrupt = isinstance(e, CorruptError)
                delay_s = min(2 * delay_s, _CORRUPT_DELAY_S if corrupt else self._settings.reopen_delay_s_max)
            else:
                break
        self._tried.set()
        if self._stopping.is_set():
            return None
        self._refusal = None
        return self.current

    def _cannot_open(self, error: Exception, delay_s: float) -> Refusal:
        known = isinstance(error, ImrayError)
        log.error("%s cannot start: %s; next try in %.1f s", self.label, error, delay_s, exc_info=not known)
        self._unwritable = isinstance(error, StorageError)
        detail = str(error) if known else f"{type(error).__name__}: {error}"
        if isinstance(error, CorruptError):
            return Refusal(Refused.CORRUPT, detail)
        return Refusal(Refused.UNAVAILABLE, f"{self.label} cannot write: {detail}", delay_s)

    async def _ended_by(self, error: Exception) -> bool:
        """Answer everybody, and wait until nothing of the incarnation is on its way. True: there is no other one."""
        log.error("%s stops: %s", self.label, error, exc_info=not isinstance(error, ImrayError))
        unknown = f"unknown whether it landed: {error}. Retry with the same ids"
        corrupt = isinstance(error, CorruptError)
        self._refuse(Refusal(Refused.CORRUPT, str(error)) if corrupt else Refusal(Refused.UNAVAILABLE, unknown))
        if not (returned := await self._puts_returned()):
            log.critical("%s: a put does not return; the process ends", self.label)
        self.replaced = any(isinstance(e, FencedError) and not e.by_home for e in (error, self._failure))
        await self._end_incarnation()
        if self.replaced or not returned:
            log.error("%s stops for good", self.label)
            self._on_fenced()
            return True
        return False

    async def _end_incarnation(self) -> None:
        self._when_idle.clear()
        if self.current is not None:
            await self.current.end()

    async def _pipeline(self, incarnation: Incarnation) -> None:
        """Commit after commit until an error, which is raised, or a refusal with nothing left on its way."""
        while await self._work():
            taken = self._planning = self._queue.take()
            requests = [w.what for w in taken if isinstance(w.what, Prepared)]
            job = await incarnation.plan(requests or taken[0].what)  # type: ignore[arg-type]
            taken = self._planning = self._set_aside.planned(self.number, taken, job)
            if not taken:
                continue
            await self._until(self._window_open)
            self._planning = []
            flight = Flight(self.number, job, taken)
            self._flights.append(flight)
            loop = asyncio.get_running_loop()
            flight.overdue = loop.call_later(self._settings.put_timeout_s, self._put_overdue, self.number)
            self._putting.run(incarnation.write, job).add_done_callback(partial(self._returned, flight))

    def _window_open(self) -> bool:
        """Whether another put may begin. Counted from the oldest commit that is not acked: a successor's fence leaves
        room for so many names above the first missing one, however many of them have been written."""
        return len(self._flights) < self._window

    async def _work(self) -> bool:
        """Wait for something that should be planned now; False where nothing more is to come."""
        while True:
            await self._until(self._ready_to_plan)
            if self._refusal is not None:
                return False
            if not self._when_idle:
                return True
            await self._when_idle.popleft()()

    def _ready_to_plan(self) -> bool:
        if self._refusal is not None or self._when_idle:
            return not self._flights
        return bool(self._queue) and (self._window_open() or self._queue.rows >= self._settings.rows_to_plan_ahead)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._failure is not None:
                raise self._failure
            await self._wake.wait()
            self._wake.clear()
        if self._failure is not None:
            raise self._failure

    async def _puts_returned(self) -> bool:
        """Wait until every put has returned, one way or the other: whoever opens the log before may be acked by one.
        False: one does not return."""
        deadline = self._runtime.monotonic_s() + self._settings.put_timeout_s
        while self._flights:
            try:
                async with asyncio.timeout(deadline - self._runtime.monotonic_s()):
                    await self._wake.wait()
            except TimeoutError:
                return False
            self._wake.clear()
        return True

    def _returned(self, flight: Flight, put: asyncio.Future[None]) -> None:
        """A put has returned: answer those whose turn it is, and nobody else."""
        assert flight.incarnation == self.number
        flight.returned = True
        if flight.overdue is not None:
            flight.overdue.cancel()
        flight.error = asyncio.CancelledError() if put.cancelled() else put.exception()
        self._failure = self._failure or flight.error
        self._wake.set()
        while self._flights and self._flights[0].returned:
            self._acked(self._flights.popleft())

    def _put_overdue(self, number: int) -> None:
        self.fail(StorageError(f"a put has not returned within {self._settings.put_timeout_s:.0f} s"), number)

    def _acked(self, flight: Flight) -> None:
        """The oldest commit has returned: its senders are answered. Nothing above one that failed is acked."""
        answers: list[Appended | Refusal | None]
        if flight.error is None and self._failure is None:
            assert self.current is not None
            self.current.apply(flight.job)  # an error of what it starts ends the incarnation, and takes no ack back
            answers = [*flight.job.answers] or [None] * len(flight.taken)
        else:
            unknown = Refusal(Refused.UNAVAILABLE, f"unknown whether it landed: {self._failure}")
            answers = [unknown] * len(flight.taken)
        for waiting, answer in zip(flight.taken, answers, strict=True):
            waiting.tell(answer)
