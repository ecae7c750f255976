"""The owner of one log: recover, then the write loop. Shards and partitions differ only in where numbers come from.

Owns the queue and the group commit: one put in flight, what arrives meanwhile is the next; where much waits, the next
is planned and encoded beside it. What comes back from beside the loop (a put, a settlement, an error) names the
incarnation that it belongs to. Knows nothing of Ray or HTTP, and nothing of numbers.
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
from functools import partial
from typing import Any

from imray.core.errors import CorruptError, FencedError, ImrayError, InvalidError
from imray.core.replies import Appended, Refusal, Refused
from imray.log.rows import Prepared, prepare
from imray.log.schema import from_ipc
from imray.settings import Settings
from imray.shard.commit_queue import CommitQueue, Flight, Waiting
from imray.shard.committer import Job, Records

log = logging.getLogger("imray.owner")

_REOPEN_DELAY_S_MIN = 0.1
_CORRUPT_DELAY_S = 60.0
"""A person must look; once the file is back, the shard serves by itself."""


def now_ms() -> int:
    """The wall clock, ms since 1970 UTC. Payload only: no order depends on it."""
    return time.time_ns() // 1_000_000


class WriteLoop(ABC):
    """One incarnation after another of a log's writer, in one process.

    An error ends an incarnation: its waiting requests are answered "unknown, retry", and a new one reads the log, once
    nothing of the old one is on its way to the store. A fence ends the owner for good. Corruption is reported to every
    caller, and looked at again from time to time."""

    def __init__(self, label: str, seed: int, settings: Settings, on_fenced: Callable[[], None]) -> None:
        self.label, self._seed, self._settings, self._on_fenced = label, seed, settings, on_fenced
        self._queue = CommitQueue(settings)
        self._wake = asyncio.Event()
        self._putting = ThreadPoolExecutor(1, f"put-{label}")
        self._refusal: Refusal | None = None
        self._planning: list[Waiting] = []
        self._flight: Flight | None = None
        """The commit whose put has not returned yet."""
        self._incarnation = 0
        self._failure: BaseException | None = None
        """What ended this incarnation, where that was beside the write loop."""
        self._when_idle: deque[Callable[[], Awaitable[None]]] = deque()
        """To be done once nothing is in flight, before anything else is planned."""
        self._loop_task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._tried = asyncio.Event()
        """The first try to become the writer has ended."""
        self.replaced = False
        """Another process is the writer now: what this one knows is of the past."""

    @abstractmethod
    async def _become_writer(self) -> None:
        """Recover and fence. Every error leads to another try."""

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
    def _mark_durable(self, job: Job) -> None:
        """The job is durable; called in the event loop, in the order of the jobs."""

    @abstractmethod
    async def _end_incarnation(self) -> None:
        """The writer is over, or did not quite begin; end what stands beside it."""

    def _busy(self) -> bool:
        """Whether senders must wait for another reason than a full queue."""
        return False

    async def start(self) -> None:
        """Try to become the writer, and wait for the first try's end; answers with refusals until one has worked."""
        self._refusal = Refusal(Refused.UNAVAILABLE, f"{self.label} is recovering: retry with the same ids")
        self._loop_task = asyncio.create_task(self._run())
        self._loop_task.add_done_callback(self._loop_ended)
        await self._tried.wait()

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        self._tried.set()
        if not loop.cancelled() and (error := loop.exception()) is not None:
            # a bug of ours: a process that lives and never serves again helps nobody
            log.critical("%s: its write loop is broken", self.label, exc_info=error)
            self._refuse(Refusal(Refused.UNAVAILABLE, f"{self.label} ends: retry with the same ids"))
            self._on_fenced()

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
        if not self._queue.has_room(len(request), size) or self._busy():
            return Refusal(Refused.BUSY, f"{self.label} has a full queue: retry later")
        return await self._enqueue(request, len(request), size)

    async def record(self, records: Records) -> Refusal | None:
        """Make records durable, in the log's order; None: they are."""
        return self._refusal or await self._enqueue(records, 0, 0)

    def _enqueue(self, what: Prepared | Records, rows: int, size: int) -> asyncio.Future[Any]:
        self._wake.set()
        return self._queue.add(what, rows, size)

    @property
    def state(self) -> str:
        """ "serving", or the reason why not."""
        return "serving" if self._refusal is None else self._refusal.detail

    async def _open(self) -> bool:
        """Try until this is the writer. False: the owner stops."""
        delay_s = _REOPEN_DELAY_S_MIN
        while not self._stopping.is_set():
            self._incarnation += 1
            self._failure = None
            try:
                await self._become_writer()
            except Exception as e:
                # whatever it is, out of memory or of file descriptors or a bug of ours: it may be over at the next try
                corrupt = isinstance(e, CorruptError)
                known = isinstance(e, ImrayError)
                delay_max_s = _CORRUPT_DELAY_S if corrupt else self._settings.reopen_delay_s_max
                log.error("%s cannot start: %s; next try in %.1f s", self.label, e, delay_s, exc_info=not known)
                detail = str(e) if known else f"{type(e).__name__}: {e}"
                if corrupt:
                    self._refusal = Refusal(Refused.CORRUPT, detail)
                else:
                    self._refusal = Refusal(Refused.UNAVAILABLE, f"{self.label} cannot write: {detail}", delay_s)
                await self._end_incarnation()
                self._tried.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
                delay_s = min(2 * delay_s, delay_max_s)
            else:
                break
        self._tried.set()
        if self._stopping.is_set():
            return False
        self._refusal = None
        return True

    async def _run(self) -> None:
        while await self._open():
            try:
                await self._pipeline()
            except Exception as e:  # noqa: BLE001 a bug of ours is an unknown outcome, too: callers must not wait for ever
                if await self._ended_by(e):
                    return
            else:
                return

    async def _ended_by(self, error: Exception) -> bool:
        """Answer everybody, and wait until nothing of the incarnation is on its way. True: there is no other one."""
        known = isinstance(error, ImrayError)
        log.error("%s stops: %s", self.label, error, exc_info=not known)
        if isinstance(error, CorruptError):
            refusal = Refusal(Refused.CORRUPT, str(error))
        else:
            refusal = Refusal(Refused.UNAVAILABLE, f"unknown whether it landed: {error}. Retry with the same ids")
        self._refuse(refusal)
        landed = await self._landed()
        if not landed:
            log.critical("%s: a put does not return; the process ends", self.label)
        self.replaced = any(isinstance(e, FencedError) and not e.by_home for e in (error, self._failure))
        for_good = self.replaced or not landed
        await self._end_incarnation()
        if for_good:
            log.error("%s stops for good", self.label)
            self._on_fenced()
        return for_good

    async def _pipeline(self) -> None:
        """Commit after commit until an error, which is raised, or a refusal with nothing left in the air."""
        while await self._work():
            taken = self._planning = self._queue.take()
            first = taken[0].what
            if isinstance(first, Prepared):
                job = await self._plan([w.what for w in taken])  # type: ignore[misc]
            else:
                job = await self._record(first)
            await self._until(lambda: self._flight is None)
            self._planning = []
            self._flight = Flight(self._incarnation, job, taken)
            put = asyncio.get_running_loop().run_in_executor(self._putting, self._put, job)
            put.add_done_callback(partial(self._land, self._flight))

    async def _work(self) -> bool:
        """Wait for something that is worth planning now; False where nothing more is to come."""
        ahead = self._settings.rows_to_plan_ahead

        def ready_to_plan() -> bool:
            if self._refusal is not None or self._when_idle:
                return self._flight is None
            return bool(self._queue) and (self._flight is None or self._queue.rows >= ahead)

        while True:
            await self._until(ready_to_plan)
            if self._refusal is not None:
                return False
            if not self._when_idle:
                return True
            await self._when_idle.popleft()()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._failure is not None:
                raise self._failure
            await self._wake.wait()
            self._wake.clear()
        if self._failure is not None:
            raise self._failure

    async def _landed(self) -> bool:
        """Wait until the put in flight has returned, one way or the other: whoever opens the log before may be acked by
        it. False: it does not return."""
        deadline = time.monotonic() + self._settings.put_timeout_s
        while self._flight is not None:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._wake.wait()
            except TimeoutError:
                return False
            self._wake.clear()
        return True

    def _land(self, flight: Flight, put: asyncio.Future[None]) -> None:
        """A put has returned: answer those who sent what it carried, and nobody else."""
        assert flight is self._flight
        assert flight.incarnation == self._incarnation
        self._flight = None
        self._wake.set()
        error = asyncio.CancelledError() if put.cancelled() else put.exception()
        if error is None and self._failure is None:
            self._mark_durable(
                flight.job
            )  # posts what it does: an error there ends the incarnation, and takes no ack back
            answers: list[Appended | Refusal | None] = [*flight.job.answers] or [None] * len(flight.taken)
        else:
            self._failure = self._failure or error
            unknown = Refusal(Refused.UNAVAILABLE, f"unknown whether it landed: {self._failure}")
            answers = [unknown] * len(flight.taken)
        for waiting, answer in zip(flight.taken, answers, strict=True):
            waiting.tell(answer)

    def fail(self, error: BaseException, incarnation: int | None = None) -> None:
        """End an incarnation (None: this one): something beside the write loop found that it cannot go on. Nothing
        happens where it is over already."""
        if incarnation is None or incarnation == self._incarnation:
            self._failure = self._failure or error
            self._wake.set()

    def _refuse(self, refusal: Refusal) -> None:
        """Refuse everything that is not on its way to the store."""
        self._refusal = refusal
        self._queue.refuse_all(self._planning, refusal)
        self._planning = []
