"""The owner of one log: recover, then the write loop. Shards and sub-topics differ only in where numbers come from.

Owns the queue and the group commit: one put in flight, what arrives meanwhile is the next; where much waits, the next
is planned and encoded beside it. Knows nothing of Ray or HTTP, and nothing of numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from imray.cluster.committer import Job, Records
from imray.cluster.replies import Appended, Refusal, Refused
from imray.core.errors import CorruptError, FencedError, ImrayError, InvalidError, StorageError
from imray.log.rows import Prepared, prepare
from imray.log.schema import from_ipc
from imray.settings import Settings

log = logging.getLogger("imray.owner")


def now_ms() -> int:
    """The wall clock, ms since 1970 UTC. Payload only: no order depends on it."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Waiting:
    what: Prepared | Records
    rows: int
    bytes: int
    answer: asyncio.Future[Any]


class Owner(ABC):
    """One incarnation after another of a log's writer, in one process.

    An error of the store ends an incarnation: its waiting requests are answered "unknown, retry", and a new one
    reads the log. A fence ends the owner for good; so does corruption, which it then reports to every caller."""

    def __init__(self, label: str, seed: int, settings: Settings, on_fenced: Callable[[], None]) -> None:
        self.label, self._seed, self._settings, self._on_fenced = label, seed, settings, on_fenced
        self._queue: deque[_Waiting] = deque()
        self._queued_rows = self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._putting = ThreadPoolExecutor(1, f"put-{label}")
        self._refusal: Refusal | None = None
        self._planning: list[_Waiting] = []
        self._in_air: tuple[Job, list[_Waiting]] | None = None
        """The job whose put is in flight, and whom to answer."""
        self._failure: BaseException | None = None
        self._between: deque[Callable[[], Awaitable[None]]] = deque()
        """To be done once nothing is in flight, before anything else is planned."""
        self._loop_task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @abstractmethod
    async def _become_writer(self) -> None:
        """Recover and fence. ImrayError where that cannot be now, CorruptError where it never can."""

    @abstractmethod
    async def _plan(self, requests: list[Prepared]) -> Job:
        """Number and encode; every error ends the incarnation."""

    @abstractmethod
    async def _record(self, records: Records) -> Job:
        """Encode records that are no messages."""

    @abstractmethod
    def _put(self, job: Job) -> None:
        """Make a job durable; called in a thread of its own, in the order of the jobs."""

    @abstractmethod
    def _settle(self, job: Job) -> None:
        """The job is durable; called in the event loop, in the order of the jobs."""

    @abstractmethod
    async def _end_incarnation(self) -> None:
        """The writer is over; wait for what it left behind."""

    def _busy(self) -> bool:
        """Whether senders must wait for another reason than a full queue."""
        return False

    async def start(self) -> None:
        """Become the writer; answers with refusals until that has worked."""
        self._refusal = Refusal(Refused.UNAVAILABLE, f"{self.label} is recovering: retry with the same ids")
        await self._open()
        self._loop_task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End in good order: what is being committed is answered, the rest is refused."""
        self._stopping.set()
        self._refuse(Refusal(Refused.UNAVAILABLE, f"{self.label} is stopping: retry with the same ids"))
        self._wake.set()
        if self._loop_task is not None:
            await asyncio.wait([self._loop_task])  # it ends when what is in the air has landed
        await self._end_incarnation()
        self._putting.shutdown(wait=True)

    async def append(self, data: object) -> Appended | Refusal:
        """Number a batch (an Arrow IPC stream, `imray.log.schema.BATCH_SCHEMA`) and make it durable.

        Appended: it is. Refusal: what the caller must do. If the call itself fails, the outcome is unknown."""
        if self._refusal is not None:
            return self._refusal
        settings = self._settings
        try:
            request = prepare(from_ipc(data), self._seed)
        except (InvalidError, ValueError, OSError) as e:
            return Refusal(Refused.INVALID, str(e))
        size = request.batch.nbytes
        if not len(request) or len(request) > settings.commit_rows_max or size > settings.shard_queue_bytes_max:
            return Refusal(Refused.INVALID, f"a batch of {len(request)} messages: send 1 to {settings.commit_rows_max}")
        if (
            self._queued_rows + len(request) > settings.shard_queue_rows_max
            or self._queued_bytes + size > settings.shard_queue_bytes_max
            or self._busy()
        ):
            return Refusal(Refused.BUSY, f"{self.label} has a full queue: retry later")
        return await self._enqueue(request, len(request), size)

    async def record(self, records: Records) -> Refusal | None:
        """Make records durable, in the log's order; None: they are."""
        return self._refusal or await self._enqueue(records, 0, 0)

    def _enqueue(self, what: Prepared | Records, rows: int, size: int) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(what, rows, size, answer))
        self._queued_rows += rows
        self._queued_bytes += size
        self._wake.set()
        return answer

    @property
    def state(self) -> str:
        """ "serving", or the reason why not."""
        return "serving" if self._refusal is None else self._refusal.detail

    async def _open(self) -> None:
        delay_s = 0.1
        while not self._stopping.is_set():
            try:
                await self._become_writer()
            except CorruptError as e:
                log.error("%s refuses to start: %s", self.label, e)
                self._refusal = Refusal(Refused.CORRUPT, str(e))
                return
            except ImrayError as e:
                log.warning("%s cannot become the writer: %s; next try in %.1f s", self.label, e, delay_s)
                self._refusal = Refusal(Refused.UNAVAILABLE, f"{self.label} cannot write: {e}", delay_s)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
                delay_s = min(2 * delay_s, self._settings.reopen_delay_s_max)
            else:
                if not self._stopping.is_set():
                    self._refusal = None
                return

    async def _run(self) -> None:
        while self._refusal is None:
            try:
                await self._pipeline()
            except FencedError as e:
                await self._air()
                log.error("%s stops for good: %s", self.label, e)
                self._refuse(Refusal(Refused.UNAVAILABLE, f"{e}: retry with the same ids"))
                if not e.by_home:
                    self._on_fenced()
                    return
            except CorruptError as e:
                await self._air()
                log.error("%s stops: %s", self.label, e)
                self._refuse(Refusal(Refused.CORRUPT, str(e)))
                return
            except Exception as e:
                await self._air()
                # a bug of ours counts as an unknown outcome, too: callers must not wait for ever
                known = isinstance(e, (StorageError, ImrayError))
                log.error("%s stops: %r", self.label, e, exc_info=not known)
                self._refuse(Refusal(Refused.UNAVAILABLE, f"unknown whether it landed: {e}"))
            else:
                return
            await self._end_incarnation()
            self._failure = None
            await self._open()

    async def _pipeline(self) -> None:
        """Commit after commit until an error, which is raised, or a refusal with nothing left in the air."""
        while await self._work():
            taken = self._planning = self._take()
            first = taken[0].what
            if isinstance(first, Prepared):
                job = await self._plan([w.what for w in taken])  # type: ignore[misc]
            else:
                job = await self._record(first)
            await self._until(lambda: self._in_air is None)
            self._planning = []
            self._in_air = job, taken
            put = asyncio.get_running_loop().run_in_executor(self._putting, self._put, job)
            put.add_done_callback(self._land)

    async def _work(self) -> bool:
        """Wait for something that is worth planning now; False where nothing more is to come."""
        ahead = self._settings.rows_to_plan_ahead

        def worth() -> bool:
            if self._refusal is not None or self._between:
                return self._in_air is None
            return bool(self._queue) and (self._in_air is None or self._queued_rows >= ahead)

        while True:
            await self._until(worth)
            if self._refusal is not None:
                return False
            if not self._between:
                return True
            await self._between.popleft()()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._failure is not None:
                raise self._failure
            await self._wake.wait()
            self._wake.clear()
        if self._failure is not None:
            raise self._failure

    async def _air(self) -> None:
        """Wait until what is in the air has landed, or will not."""
        while self._in_air is not None and self._failure is None:
            await self._wake.wait()
            self._wake.clear()

    def _land(self, put: asyncio.Future[None]) -> None:
        self._wake.set()
        if self._in_air is None:
            return  # refused already, when something beside the loop failed
        if put.cancelled() or put.exception() is not None:
            self._failure = put.exception() or asyncio.CancelledError()
            return
        job, taken = self._in_air
        self._in_air = None
        self._settle(job)
        answers: list[Appended | Refusal | None] = [*job.answers] or [None] * len(taken)
        for waiting, answer in zip(taken, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)

    def _take(self) -> list[_Waiting]:
        rows = size = 0
        taken: list[_Waiting] = []
        while self._queue:
            following = self._queue[0]
            rows += following.rows
            size += following.bytes
            full = rows > self._settings.commit_rows_max or size > self._settings.commit_bytes_max
            if taken and (full or not isinstance(following.what, Prepared)):
                break
            taken.append(self._queue.popleft())
            self._queued_rows -= following.rows
            self._queued_bytes -= following.bytes
            if not isinstance(following.what, Prepared):
                break
        return taken

    def fail(self, error: BaseException) -> None:
        """End the incarnation: something beside the write loop found that it cannot go on."""
        self._failure = error
        self._wake.set()

    def _refuse(self, refusal: Refusal) -> None:
        """Refuse everything that is not in the air of a healthy writer."""
        self._refusal = refusal
        waiting = [*self._planning, *self._queue]
        if self._failure is not None and self._in_air is not None:
            waiting = [*self._in_air[1], *waiting]
            self._in_air = None
        self._planning = []
        self._queue.clear()
        self._queued_rows = self._queued_bytes = 0
        for w in waiting:
            if not w.answer.done():
                w.answer.set_result(refusal)
