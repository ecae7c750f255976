"""The hot groups of one incarnation of a home shard: turned hot and cold, their writers watched.

Owns when things happen. What may happen is `imray.core.blocks`; the I/O is `imray.shard.grants`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from imray.core.blocks import Block
from imray.core.columns import Rows
from imray.core.errors import CorruptError, FencedError, StaleError, UnavailableError
from imray.core.grants import Declined, Granted, Report
from imray.core.replies import Refusal, Refused
from imray.core.routing import PARTITIONS_MAX
from imray.core.status import HotFigures
from imray.settings import Settings
from imray.shard.grants import Grants
from imray.shard.hot_status import TimedAsks, group_statuses
from imray.shard.jobs import Records
from imray.shard.look_ups import AskedLookUps, LookUps
from imray.shard.old_ids import LookUp
from imray.shard.runtime import Runtime, StateThread

log = logging.getLogger("imray.hot")

_WATCH_S = 0.1
"""Between two looks at outstanding grants: a tenth of what an operator would notice."""
_TICK_S = 1.0
_ROWS_AT_ONCE_MAX = 16_000
"""Up to so many rows take about a millisecond: answered on the event loop, where no file is read."""
_LOOK_UP_S = 0.02
"""So long an ask waits for its old ids: its partition asks for nobody else meanwhile. Where the system has the files in
memory, a tenth of it is enough."""
_COOL_TIMEOUT_S = 10.0
"""A group turns cold once its grants are settled, by fencing if need be (`grant_timeout_s`)."""
_NOT_THE_WRITER = Refusal(Refused.UNAVAILABLE, "the shard is not the writer any more: ask again")

StartPartitions = Callable[[int], Awaitable[None]]
"""Have the partitions 1 .. n run; UnavailableError where they cannot."""


class HotGroups:
    """What partitions and operators ask of a home shard."""

    def __init__(
        self,
        grants: Grants,
        state: StateThread,
        settings: Settings,
        runtime: Runtime,
        record: Callable[[Records], Awaitable[Refusal | None]],
        start_partitions: StartPartitions | None,
        fail: Callable[[BaseException], None],
    ) -> None:
        """`record` makes records durable in the shard's log; `fail` ends this incarnation of the shard."""
        self.grants = grants
        self._state = state
        self._settings = settings
        self._runtime = runtime
        self._record_in_log = record
        self._start_partitions = start_partitions
        self._fail_incarnation = fail
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._lock = asyncio.Lock()
        self._waiting: list[asyncio.Future[None]] = []
        self._turning: asyncio.Task[None] | None = None
        self._ended = False
        self._look_ups = AskedLookUps(LookUps(runtime, f"asked-ids-{grants.committer.shard}"))
        self._asks = TimedAsks(grants, runtime)
        self.on_progress: Callable[[], None] = lambda: None
        """Called when asks or reports may have made a checkpoint due."""
        self.on_stable: Callable[[], None] = lambda: None
        """Called when grants may be settled."""

    def start(self) -> None:
        """Begin to watch."""
        self._spawn(self._watch())
        if self.grants.committer.state.partitions:
            self._spawn(self._restart_partitions())

    async def end(self) -> None:
        """Answer no more asks, and stop watching."""
        self._ended = True
        self._wake()  # nothing settles any more
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._look_ups.end()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._ended:  # or it would end the next incarnation
            self._fail_incarnation(error)

    async def _record(self, records: Records) -> Refusal | None:
        """What this incarnation wants to log, the next one must not: it has grants and voids of its own."""
        if self._ended:
            return Refusal(Refused.UNAVAILABLE, "the shard has recovered meanwhile: try again")
        return await self._record_in_log(records)

    def ask_now(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal | None:
        """As `ask`, where that takes no file and no wait; None: it does, and nothing was granted."""
        if self._ended:
            return _NOT_THE_WRITER
        if len(rows) > _ROWS_AT_ONCE_MAX:
            return None
        now_s = self._runtime.monotonic_s()
        try:
            _, answer = self._state.run_now(self._asks.ask, slot, epoch, ask, rows, reports, now_s)
        finally:
            self._after_ask()
        return None if isinstance(answer, LookUp) else answer

    async def ask(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal:
        """As `Grants.ask`. If the call fails its outcome is unknown: the same `ask` is sent again."""
        if self._ended:
            return _NOT_THE_WRITER
        now_s = self._runtime.monotonic_s()
        looked = None
        try:
            while True:
                answer = await self._state.run(self._asks.ask, slot, epoch, ask, rows, reports, now_s, looked)
                if not isinstance(answer, LookUp):
                    return answer
                left_s = max(0.0, now_s + _LOOK_UP_S - self._runtime.monotonic_s())
                looked = await self._look_ups.looked(slot, epoch, ask, answer, left_s)
                if self._ended:
                    return _NOT_THE_WRITER
                if looked is None:
                    return await self._state.run(self.grants.too_long, slot, epoch, ask, answer)
        finally:
            self._after_ask()

    def _after_ask(self) -> None:
        """Its reports were heard, even where the ask itself failed."""
        wanted = self.grants.ceilings_wanted
        self.on_stable()
        if self._ended or not (self._waiting or wanted or self.grants.committer.checkpoint_due):
            return
        self._settled()
        if wanted:
            self._spawn(self._log_ceilings())

    def log_ceilings_soon(self) -> None:
        """Log the ceilings of all hot groups again: a record of theirs in the shard's own log, which a checkpoint is
        called after."""
        if not self._ended:
            self.grants.ceilings_wanted |= set(self.grants.committer.state.hot)
            self._spawn(self._log_ceilings())

    async def close(self) -> None:
        """For a stop in good order: grant no more, wait until everything granted is settled, and log that no number
        above the heads was given out. Whoever waits for a grant is told by its own deadline."""
        self.grants.blocks.closed = True
        await self.until_settled(lambda: not self.grants.blocks.outstanding)
        if self.grants.committer.state.hot:
            await self._record(self.grants.exact_ceilings())

    def report_now(self, slot: int, epoch: int, reports: Sequence[Report]) -> bool:
        """As `report`, where nobody else is at the state; False: somebody is, and nothing was heard."""
        heard, _ = self._state.run_now(self.grants.report, slot, epoch, reports)
        if heard:
            self._settled()
        return heard

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | None:
        """A partition's segments are durable. None: heard."""
        await self._state.run(self.grants.report, slot, epoch, reports)
        self._settled()
        return None

    async def register(self, slot: int, epoch: int, segment: int) -> bool:
        """A partition's new writer has fenced its log. False: it is not the newest."""
        if self._ended:
            return False
        try:
            lost: list[Block] | None = await self._state.run(self.grants.register, slot, epoch, segment)
        except (FencedError, CorruptError, StaleError) as e:
            self._fail(e)
            return False
        self._settled()
        if lost:
            self._spawn(self._void(lost))
        return lost is not None

    def _settled(self) -> None:
        self._wake()
        self.on_stable()
        self.on_progress()

    def _wake(self) -> None:
        while self._waiting:
            one = self._waiting.pop(0)
            if not one.done():
                one.set_result(None)

    async def make_hot(self, conv_id: str, partitions: int, by_rate: bool = False) -> Refusal | None:
        """Turn a conversation hot, or change how many partitions take its sends; None: done, and durable."""
        if not 1 <= partitions <= PARTITIONS_MAX:
            return Refusal(Refused.INVALID, f"{partitions} partitions: 1 to {PARTITIONS_MAX} are possible")
        async with self._lock:
            try:
                if self._start_partitions is not None:
                    await self._start_partitions(partitions)
            except UnavailableError as e:
                return Refusal(Refused.UNAVAILABLE, f"{conv_id!r} stays as it is: {e}")
            refusal = await self._record(self.grants.make_hot(conv_id, partitions, by_rate))
            if refusal is None:
                # durable is not applied yet, and an ask that is answered at once would not find it hot
                await self._state.run(lambda: None)
            return refusal

    async def make_cold(self, conv_id: str) -> Refusal | None:
        """Turn a conversation cold: its home shard alone writes it again. None: done, and durable."""
        blocks = self.grants.blocks
        state = self.grants.committer.state
        async with self._lock:
            conv: int = await self._state.run(state.conversations.index, conv_id)
            if conv not in state.hot:
                return None
            blocks.cooling.add(conv)
            try:
                settled = self.until_settled(lambda: not blocks.in_flight(conv))
                await asyncio.wait_for(settled, _COOL_TIMEOUT_S)
            except (TimeoutError, UnavailableError):
                blocks.cooling.discard(conv)
                return Refusal(Refused.UNAVAILABLE, f"{conv_id!r} stays hot: a block is not settled yet")
            refusal = await self._record(self.grants.make_cold(conv_id))
            if refusal is None:
                # Durable is not applied: an ask that is answered at once may be looked at first, and a block above the
                # record would make the logs unreadable. After a refusal the record may be durable, too: no more grants.
                await self._state.run(blocks.cooling.discard, conv)
            return refusal

    async def until_settled(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition of the state that only settled grants bring about. UnavailableError: nothing settles."""
        while not self._ended:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            if await self._state.run(condition):
                return
            await waiting
        raise UnavailableError("the shard is not the writer any more")

    async def figures(self) -> HotFigures:
        """Of each hot group, for operators."""
        found = await self._state.run(group_statuses, self.grants, self._runtime.monotonic_s())
        return HotFigures(found, self._asks.answered, round(self._asks.cpu_s, 6))

    async def _restart_partitions(self) -> None:
        """After a restart of the shard: its partitions may have died with the node."""
        state = self.grants.committer.state
        if state.hot and self._start_partitions is not None:
            try:
                await self._start_partitions(max(g.partitions for g in state.hot.values()))
            except UnavailableError as e:
                log.warning("partitions do not run, the home shard takes their sends: %s", e)

    async def _watch(self) -> None:
        next_tick = self._runtime.monotonic_s()
        while True:
            await asyncio.sleep(_WATCH_S)
            now = self._runtime.monotonic_s()
            oldest = await self._state.run(self.grants.blocks.oldest)
            if oldest is not None and now - oldest.asked_at > self._settings.grant_timeout_s:
                slot = oldest.slot
                age_s = now - oldest.asked_at
                log.warning("partition %d has not written a block for %.1f s: its log is fenced and read", slot, age_s)
                lost = await self._state.run(self.grants.fence, slot)
                self._settled()  # what was found in its log; who waits for it may be the only one who would ask
                await self._void(lost)
            if now >= next_tick:
                next_tick = now + _TICK_S
                await self._tick(now)

    async def _void(self, lost: list[Block]) -> None:
        """Log that some grants will never be used; then their ids are free and `stable_seq` passes them."""
        if lost and await self._record(self.grants.void(lost)) is None:
            await self._state.run(self.grants.voided, lost)
            self._settled()

    async def _log_ceilings(self) -> None:
        convs, records = await self._state.run(self.grants.ceilings)
        try:
            await self._record(records)
        finally:
            # the record says what the rate and the blocks were when it was made: that may be less than was wanted
            self.grants.ceilings_logged(convs)

    async def _tick(self, now: float) -> None:
        committer = self.grants.committer
        state = committer.state

        def look() -> tuple[list[str], list[str]]:
            hot, cold = committer.hot_detector.tick(now, set(state.hot))
            name = state.conversations.name
            return [name(c) for c in hot], [name(c) for c in cold if state.hot[c].by_rate]

        hot, cold = await self._state.run(look)
        if (hot or cold) and (self._turning is None or self._turning.done()):
            self._turning = self._spawn(self._turn(hot, cold))

    async def _turn(self, hot: list[str], cold: list[str]) -> None:
        for conv_id in hot:
            log.info("%r turns hot by its rate", conv_id)
            refusal = await self.make_hot(conv_id, self._settings.hot_partitions, by_rate=True)
            if refusal is not None:
                log.warning("%s", refusal.detail)
        for conv_id in cold:
            log.info("%r turns cold by its rate", conv_id)
            await self.make_cold(conv_id)
