"""The owner of one shard: recover, then the write loop. Shard actors are a thin shell around it.

Owns the state, the queue and the group commit: one commit in flight, what arrives meanwhile is the next.
Knows nothing of Ray or HTTP. All that touches the state runs on one thread, the committer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from imray.cluster.committer import Committer
from imray.cluster.replies import Appended, Located, Refusal, Refused
from imray.core.errors import CorruptError, FencedError, ImrayError, InvalidError, StorageError
from imray.log import checkpoint
from imray.log.rows import Prepared, prepare
from imray.log.schema import from_ipc
from imray.log.store import Store
from imray.settings import Settings

log = logging.getLogger("imray.owner")


def now_ms() -> int:
    """The wall clock, ms since 1970 UTC. Payload only: no order depends on it."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Waiting:
    request: Prepared
    bytes: int
    answer: asyncio.Future[Appended | Refusal]


class Owner:
    """One incarnation after another of a shard's writer, in one process.

    An error of the store ends an incarnation: its waiting requests are answered "unknown, retry", and a new one
    reads the log. A fence ends the owner for good; so does corruption, which it then reports to every caller."""

    def __init__(
        self,
        store: Store,
        shard: int,
        seed: int,
        settings: Settings,
        clock_ms: Callable[[], int] = now_ms,
        on_fenced: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self.shard, self._seed, self._settings = store, shard, seed, settings
        self._clock_ms, self._on_fenced = clock_ms, on_fenced
        self._queue: deque[_Waiting] = deque()
        self._queued_rows = self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, f"commit-{shard}")
        self._background = ThreadPoolExecutor(1, f"checkpoint-{shard}")
        self._committer: Committer | None = None
        self._refusal: Refusal | None = None
        self._in_flight: asyncio.Future[list[Appended]] | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._merging = ThreadPoolExecutor(1, f"merge-{shard}")
        self._merge_task: asyncio.Task[None] | None = None
        self._checkpoint_retry_at = 0.0

    async def start(self) -> None:
        """Become the writer; answers with refusals until that has worked."""
        self._refusal = Refusal(Refused.UNAVAILABLE, f"shard {self.shard} is recovering: retry with the same ids")
        await self._open()
        self._loop_task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the incarnation in good order: what is being committed is answered, the rest is refused."""
        self._refuse(Refusal(Refused.UNAVAILABLE, f"shard {self.shard} is stopping: retry with the same ids"))
        if self._in_flight is not None:
            await asyncio.wait([self._in_flight])  # `_run` was waiting before, so it has answered before we go on
        for task in (self._loop_task, self._checkpoint_task, self._merge_task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._thread.shutdown(wait=True)
        self._background.shutdown(wait=True)
        self._merging.shutdown(wait=True)
        if self._committer is not None:
            self._committer.writer.close()

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
            or (self._committer is not None and self._committer.checkpoint_overdue)
        ):
            self._start_checkpoint()  # where one is overdue no commit will start it any more
            return Refusal(Refused.BUSY, f"shard {self.shard} has a full queue: retry later")
        answer: asyncio.Future[Appended | Refusal] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(request, size, answer))
        self._queued_rows += len(request)
        self._queued_bytes += size
        self._wake.set()
        return await answer

    async def locate(self, conv_id: str, low: int, high: int) -> Located | Refusal:
        """Where numbers low..high of a conversation are. Works while the shard cannot write."""
        committer = self._committer
        if committer is None:
            return self._refusal or Refusal(Refused.UNAVAILABLE, f"shard {self.shard} is not ready")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, committer.locate, conv_id, low, high)

    def status(self) -> dict[str, object]:
        """Figures for operators; `state` is "serving" or the reason why not."""
        figures: dict[str, object] = {
            "shard": self.shard,
            "state": "serving" if self._refusal is None else self._refusal.detail,
            "queued_rows": self._queued_rows,
        }
        return figures | (self._committer.figures() if self._committer is not None else {})

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        delay_s = 0.1
        while True:
            try:
                self._committer = await loop.run_in_executor(
                    self._thread,
                    Committer.open,
                    self._store,
                    self.shard,
                    self._seed,
                    self._settings,
                    self._clock_ms,
                )
            except CorruptError as e:
                log.error("shard %d refuses to start: %s", self.shard, e)
                self._refusal = Refusal(Refused.CORRUPT, str(e))
                return
            except ImrayError as e:
                log.warning("shard %d cannot become the writer: %s; next try in %.1f s", self.shard, e, delay_s)
                detail = f"shard {self.shard} cannot write: {e}"
                self._refusal = Refusal(Refused.UNAVAILABLE, detail, delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, self._settings.reopen_delay_s_max)
            else:
                self._refusal = None
                return

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._refusal is None:
            await self._wake.wait()
            self._wake.clear()
            while self._queue and self._refusal is None:
                commit = self._take()
                assert self._committer is not None
                try:
                    requests = [w.request for w in commit]
                    self._in_flight = loop.run_in_executor(self._thread, self._committer.commit, requests)
                    answers = await self._in_flight
                except FencedError as e:
                    log.error("shard %d stops for good: %s", self.shard, e)
                    self._refuse(Refusal(Refused.UNAVAILABLE, f"{e}: retry with the same ids"), commit)
                    self._on_fenced()
                    return
                except CorruptError as e:
                    log.error("shard %d stops: %s", self.shard, e)
                    self._refuse(Refusal(Refused.CORRUPT, str(e)), commit)
                    return
                except Exception as e:
                    # a bug of ours counts as an unknown outcome, too: callers must not wait for ever
                    known = isinstance(e, StorageError)
                    epoch = self._committer.writer.epoch
                    log.error("shard %d, epoch %d stops: %r", self.shard, epoch, e, exc_info=not known)
                    self._refuse(Refusal(Refused.UNAVAILABLE, f"unknown whether it landed: {e}"), commit)
                    await self._settle_checkpoint()
                    await self._open()
                    continue
                for waiting, answer in zip(commit, answers, strict=True):
                    if not waiting.answer.done():
                        waiting.answer.set_result(answer)
                self._start_checkpoint()

    def _take(self) -> list[_Waiting]:
        rows = size = 0
        taken: list[_Waiting] = []
        while self._queue:
            following = self._queue[0]
            rows += len(following.request)
            size += following.bytes
            full = rows > self._settings.commit_rows_max or size > self._settings.commit_bytes_max
            if taken and full:
                break
            taken.append(self._queue.popleft())
            self._queued_rows -= len(following.request)
            self._queued_bytes -= following.bytes
        return taken

    def _refuse(self, refusal: Refusal, also: list[_Waiting] | None = None) -> None:
        self._refusal = refusal
        waiting = [*(also or ()), *self._queue]
        self._queue.clear()
        self._queued_rows = self._queued_bytes = 0
        for w in waiting:
            if not w.answer.done():
                w.answer.set_result(refusal)

    def _start_checkpoint(self) -> None:
        committer = self._committer
        if committer is None or self._checkpoint_task is not None or time.monotonic() < self._checkpoint_retry_at:
            return
        if committer.checkpoint_due:
            self._checkpoint_task = asyncio.create_task(self._checkpoint(committer))

    async def _checkpoint(self, committer: Committer) -> None:
        loop = asyncio.get_running_loop()
        try:
            snap = await loop.run_in_executor(self._thread, committer.freeze)
            files = await loop.run_in_executor(
                self._background, checkpoint.write, self._store, snap, list(committer.intervals)
            )
            await loop.run_in_executor(self._thread, committer.sealed, files)
            if self._merge_task is None or self._merge_task.done():
                self._merge_task = asyncio.create_task(self._merge(committer))
        except StorageError as e:
            # the frozen ids stay in memory and the log holds everything: only the next recovery takes longer
            log.warning("shard %d: no checkpoint: %s", self.shard, e)
            self._checkpoint_retry_at = time.monotonic() + self._settings.reopen_delay_s_max
        except CorruptError as e:
            log.error("shard %d stops: %s", self.shard, e)
            self._refuse(Refusal(Refused.CORRUPT, str(e)))
        finally:
            self._checkpoint_task = None

    async def _merge(self, committer: Committer) -> None:
        loop = asyncio.get_running_loop()
        store = self._store
        try:
            table = await loop.run_in_executor(self._merging, committer.clear_used)
            if table is not None:
                await loop.run_in_executor(self._thread, committer.recycle, table)
            while self._refusal is None:
                step = await loop.run_in_executor(
                    self._merging, checkpoint.merge_step, store, list(committer.intervals)
                )
                if step is None:
                    break
                await loop.run_in_executor(self._thread, committer.merged, *step)
            in_use = list(committer.intervals)
            await loop.run_in_executor(self._merging, checkpoint.collect, store, self.shard, in_use)
        except StorageError as e:
            log.warning("shard %d: no merge of sealed intervals: %s; the next checkpoint tries again", self.shard, e)
        except CorruptError as e:
            log.error("shard %d stops: %s", self.shard, e)
            self._refuse(Refusal(Refused.CORRUPT, str(e)))

    async def _settle_checkpoint(self) -> None:
        tasks = [t for t in (self._checkpoint_task, self._merge_task) if t is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
