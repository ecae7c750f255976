"""The owner of a shard: the only one who numbers its conversations, and who grants numbers where they are hot.

Owns the shard's incarnations and the thread that touches their state. Shard actors are a thin shell around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from imray.core.errors import StorageError
from imray.core.replies import Located, Refusal, Refused
from imray.log.recovery import Readable
from imray.log.rows import Prepared
from imray.log.store import Store
from imray.settings import Settings
from imray.shard.committer import Committer, Job, Records, located
from imray.shard.grants import Grants
from imray.shard.hot_groups import HotGroups
from imray.shard.upkeep import Upkeep, UpkeepThreads
from imray.shard.write_loop import WriteLoop, now_ms

StartPartitions = Callable[[int], Awaitable[None]]
"""Make the partitions 1 .. n run; UnavailableError where they cannot."""
_NOTES_KEPT = 20
_CLOSE_TIMEOUT_S = 5.0
"""For the grants of a shard that stops in good order to be settled: they are, or their writer is fenced, sooner."""


class ShardWriter(WriteLoop):
    """One shard, for as long as this process has it."""

    def __init__(
        self,
        store: Store,
        shard: int,
        seed: int,
        settings: Settings,
        clock_ms: Callable[[], int] = now_ms,
        on_fenced: Callable[[], None] = lambda: None,
        start_partitions: StartPartitions | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """`host`: the address at which partitions reach this process."""
        super().__init__(f"shard {shard}", seed, settings, on_fenced)
        self._store, self.shard, self._clock_ms, self._start_partitions = store, shard, clock_ms, start_partitions
        self._host = host
        self._thread = ThreadPoolExecutor(1, f"commit-{shard}")
        self._upkeep_threads = UpkeepThreads(shard)
        self._lock = threading.Lock()
        self._committer: Committer | None = None
        self._readable: Readable | None = None
        """What was recovered while the store took no fence, until the shard can write."""
        self._notes: deque[str] = deque(maxlen=_NOTES_KEPT)
        self._upkeep: Upkeep | None = None
        self.hot: HotGroups | None = None

    async def on_state(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call something that touches the state, in the order of these calls."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.locked, call, *args)

    def locked(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call something that touches the state, in this thread: one at a time."""
        with self._lock:
            return call(*args)

    async def _become_writer(self) -> None:
        fail = partial(self.fail, incarnation=self._incarnation)
        args = (self._store, self.shard, self._seed, self._settings, self._clock_ms, self._found, self._notes)
        committer: Committer = await self.on_state(Committer.open, *args)
        try:
            grants: Grants = await self.on_state(Grants.open, committer)
            hot = HotGroups(self, grants, self._settings, self._start_partitions, self._host, fail)
        except BaseException as e:
            committer.writer.close()
            if isinstance(e, StorageError):
                self._found(Readable(committer.state, True))  # the fence fitted, and the record after it did not
            raise
        self._committer = committer
        self._readable = None
        self.hot = hot
        self._upkeep = Upkeep(
            committer, self._upkeep_threads, self.on_state, self._settings, self._when_quiet, hot.until_settled,
            hot.log_ceilings_soon,
        )  # fmt: skip
        hot.on_progress = self._upkeep.start_checkpoint
        hot.start()
        self._upkeep.start()

    def _found(self, readable: Readable) -> None:
        self._readable = readable
        self._committer = None  # what an earlier incarnation knew is older

    def _when_quiet(self, do: Callable[[], Awaitable[None]]) -> None:
        self._when_idle.append(do)
        self._wake.set()

    async def _plan(self, requests: list[Prepared]) -> Job:
        assert self._committer is not None
        return await self.on_state(self._committer.plan, requests)

    async def _record(self, records: Records) -> Job:
        assert self._committer is not None
        return await self.on_state(self._committer.record, records)

    def _put(self, job: Job) -> None:
        assert self._committer is not None
        self._committer.put(job)

    def _mark_durable(self, job: Job) -> None:
        assert self._committer is not None
        settled = asyncio.get_running_loop().run_in_executor(
            self._thread, self.locked, self._committer.mark_durable, job
        )
        settled.add_done_callback(partial(self._settled, self._incarnation))

    def _settled(self, incarnation: int, settled: asyncio.Future[None]) -> None:
        if not settled.cancelled() and (error := settled.exception()) is not None:
            self.fail(error, incarnation)
        elif self._upkeep is not None:
            self._upkeep.start_checkpoint()

    def _busy(self) -> bool:
        if self._committer is None or not self._committer.checkpoint_overdue:
            return False
        assert self._upkeep is not None
        self._upkeep.start_checkpoint()  # no commit will start it any more
        return True

    async def _end_incarnation(self) -> None:
        self._when_idle.clear()
        if self.hot is not None:
            await self.hot.end()
        if self._upkeep is not None:
            await self._upkeep.end()
        if self._committer is not None:
            self._committer.writer.close()

    async def stop(self) -> None:
        """As `WriteLoop.stop`; hot groups' ceilings are taken back to their heads, so the next start voids nothing."""
        if self.hot is not None and self._refusal is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.hot.close(), _CLOSE_TIMEOUT_S)
        await super().stop()
        await self._upkeep_threads.end()
        self._thread.shutdown(wait=True)

    async def locate(self, conv_id: str, low: int, high: int) -> Located | Refusal:
        """Where numbers low..high of a conversation are. Works while the shard cannot write, but not where another
        process has taken over: its `stable_seq` may be higher by now."""
        try:
            found: Located | None = await self.on_state(self._locate, conv_id, low, high)
        except StorageError as e:
            return Refusal(Refused.UNAVAILABLE, f"{self.label}: {e}")
        return found or self._refusal or Refusal(Refused.UNAVAILABLE, f"{self.label} is not the writer any more")

    def _locate(self, conv_id: str, low: int, high: int) -> Located | None:
        if self.replaced:
            return None
        if self._committer is not None:
            found = self._committer.locate(conv_id, low, high)
            return found if self._committer.writer.is_last(or_own_process=True) else None
        readable = self._readable
        if readable is None:
            return None
        state = readable.state
        if not readable.partitions_read and state.conversations.index(conv_id) in state.hot:
            return None
        return located(state, conv_id, low, high) if readable.is_current(self._store, self.shard) else None

    async def mend(self, file: str) -> Refusal | None:
        """A reader found that a derived file is missing or damaged: look, and make it anew. None: looked at."""
        if self._refusal is not None or self._upkeep is None:
            return self._refusal or Refusal(Refused.UNAVAILABLE, f"{self.label} is not ready")
        await self._upkeep.mend(file)
        return None

    async def status(self) -> dict[str, object]:
        """Figures for operators; `state` is "serving" or the reason why not."""
        figures: dict[str, object] = {"shard": self.shard, "state": self.state, "queued_rows": self._queue.rows}
        figures["notes"] = list(self._notes)
        if self._committer is not None and self.hot is not None:
            figures |= await self.on_state(self._committer.figures)
            figures |= {"hot": await self.hot.figures(), **self.hot.asked()}
        return figures
