"""Assigns numbers for one shard, and grants ranges of them to its partitions.

Owns the shard's write loop and the thread that touches its state, and answers what may be asked of a shard. Actors are
a thin shell around it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from imray.core.columns import Rows
from imray.core.errors import StorageError, UnavailableError
from imray.core.grants import Declined, Granted, Report
from imray.core.members import Roles
from imray.core.replies import Appended, Located, Refusal, Refused
from imray.core.state import ShardState
from imray.core.status import ServingState, ShardStatus
from imray.log.store import Store
from imray.rpc.publications import SubscribeArgs, SubscribedMarks
from imray.settings import Settings
from imray.shard.committer import located
from imray.shard.hot_groups import HotGroups, StartPartitions
from imray.shard.members import ShardMembers, roles_of
from imray.shard.publisher import Publisher, Subscriber, marks_of
from imray.shard.recovery import Readable
from imray.shard.runtime import SYSTEM, Runtime, StateThread
from imray.shard.shard_incarnation import ShardIncarnation, Surroundings
from imray.shard.upkeep import UpkeepWorkers
from imray.shard.write_loop import WriteLoop

_NOTES_KEPT = 20
_CLOSE_TIMEOUT_S = 5.0
"""For the grants of a shard that stops in good order to be settled: they are, or their writer is fenced, sooner."""


class ShardWriter:
    """One shard, for as long as this process has it."""

    def __init__(
        self,
        store: Store,
        shard: int,
        seed: int,
        settings: Settings,
        runtime: Runtime = SYSTEM,
        on_fenced: Callable[[], None] = lambda: None,
        start_partitions: StartPartitions | None = None,
    ) -> None:
        """`on_fenced`: called when this process must end. `start_partitions`: has partitions 1 .. n run."""
        self.shard = shard
        self._store = store
        self._state = StateThread(runtime, f"commit-{shard}")
        self._workers = UpkeepWorkers(runtime, shard)
        self._notes: deque[str] = deque(maxlen=_NOTES_KEPT)
        self.publisher = Publisher(shard, self._is_writer)
        self._current: ShardIncarnation | None = None
        """The incarnation that serves, or served last."""
        self._readable: Readable | None = None
        """What was recovered while the store took no fence, until the shard can write."""
        self.loop = WriteLoop(f"shard {shard}", seed, settings, runtime, self._open, on_fenced, store.puts_at_once)
        self._around = Surroundings(
            store=store,
            shard=shard,
            seed=seed,
            settings=settings,
            runtime=runtime,
            state=self._state,
            upkeep_workers=self._workers,
            notes=self._notes,
            start_partitions=start_partitions,
            record=self.loop.record,
            when_idle=self.loop.when_idle,
            on_recovered=self._recovered,
            publisher=self.publisher,
        )
        self.members = ShardMembers(self.loop.record, self._state, self._readable_state, self._not_ready)

    async def _open(self, number: int) -> ShardIncarnation:
        def fail(error: BaseException) -> None:
            self.loop.fail(error, number)

        self._current = await ShardIncarnation.open(self._around, fail)
        self._readable = None
        return self._current

    def _recovered(self, readable: Readable) -> None:
        self._readable = readable
        self._current = None  # what an earlier incarnation knew is older

    # Life

    async def start(self) -> None:
        """As `WriteLoop.start`."""
        await self.loop.start()

    async def stop(self) -> None:
        """As `WriteLoop.stop`; hot groups' ceilings are taken back to their heads, so the next start voids nothing."""
        if self._current is not None and self.loop.refusal is None:
            with contextlib.suppress(TimeoutError, UnavailableError):
                await asyncio.wait_for(self._current.hot.close(), _CLOSE_TIMEOUT_S)
        self.publisher.end()
        await self.loop.stop()
        await self._workers.end()
        await self._state.end()

    @property
    def current(self) -> ShardIncarnation | None:
        """The incarnation that serves, or served last; None before the first, and while the store takes no fence."""
        return self._current

    @property
    def state(self) -> ServingState:
        """Whether it takes messages, and why not."""
        return self.loop.state

    def _not_ready(self) -> Refusal:
        detail = f"{self.loop.label} is recovering: retry with the same ids"
        return self.loop.refusal or Refusal(Refused.UNAVAILABLE, detail)

    # Of senders

    async def append(self, data: object) -> Appended | Refusal:
        """As `WriteLoop.append`."""
        return await self.loop.append(data)

    # Of readers

    async def locate(self, conv_id: str, low: int, high: int) -> Located | Refusal:
        """Where numbers low..high of a conversation are. Works while the shard cannot write, but not where another
        process has taken over: its `stable_seq` may be higher by now."""
        label = self.loop.label
        try:
            found = await self._state.run(self._locate, conv_id, low, high)
        except StorageError as e:
            return Refusal(Refused.UNAVAILABLE, f"{label}: {e}")
        return found or self.loop.refusal or Refusal(Refused.UNAVAILABLE, f"{label} is not the writer any more")

    def _locate(self, conv_id: str, low: int, high: int) -> Located | None:
        if self.loop.replaced:
            return None
        if self._current is not None:
            committer = self._current.committer
            found = committer.locate(conv_id, low, high)
            return found if committer.writer.is_last(or_own_process=True) else None
        readable = self._readable
        if readable is None:
            return None
        state = readable.state
        if not readable.partitions_read and state.conversations.index(conv_id) in state.hot:
            return None
        return located(state, conv_id, low, high) if readable.is_current(self._store, self.shard) else None

    # Of listeners

    async def subscribe(self, caller: Subscriber, args: SubscribeArgs) -> SubscribedMarks | Refusal:
        """From now on a gateway hears of some conversations; the answer says where they stand.

        What is above that is published, so nothing falls between."""
        refusal = self.publisher.subscribe(caller, args)
        if refusal is not None:
            return refusal
        try:
            found = await self._state.run(self._subscribed, args.add)
        except StorageError as e:
            return Refusal(Refused.UNAVAILABLE, f"{self.loop.label}: {e}")
        return found or self._not_ready()

    def _subscribed(self, names: Sequence[str]) -> SubscribedMarks | None:
        state = self._readable_state()
        return None if state is None else SubscribedMarks(state.log.epoch, marks_of(state, names))

    async def _is_writer(self) -> bool:
        return await self._state.run(self._readable_state) is not None

    def _readable_state(self) -> ShardState | None:
        """The state that may be read: durable, and no other process has taken over. In its thread."""
        if self.loop.replaced:
            return None
        if self._current is not None:
            committer = self._current.committer
            return committer.state if committer.writer.is_last(or_own_process=True) else None
        readable = self._readable
        return readable.state if readable is not None and readable.is_current(self._store, self.shard) else None

    def roles(self, conv_id: str, users: list[str]) -> Roles | None:
        """What some users may do, as it is durable; None where that is not known here. In the thread of the state."""
        state = self._readable_state()
        return None if state is None else roles_of(state, conv_id, users)

    async def mend(self, file: str) -> Refusal | None:
        """A reader found that a derived file is missing or damaged: look, and make it anew. None: looked at."""
        if self.loop.refusal is not None or self._current is None:
            return self._not_ready()
        await self._current.upkeep.mend(file)
        return None

    # Of operators

    async def make_hot(self, conv_id: str, partitions: int) -> Refusal | None:
        """Spread a conversation over partitions; 0: this shard alone writes it again. None: done, and durable."""
        hot = self._hot
        if hot is None:
            return self._not_ready()
        return await (hot.make_hot(conv_id, partitions) if partitions else hot.make_cold(conv_id))

    async def status(self) -> ShardStatus:
        """Figures for operators."""
        log = None
        hot = None
        current = self._current  # another may take its place meanwhile
        if current is not None:
            log = await self._state.run(current.committer.figures)
            hot = await current.hot.figures()
        refusal = self.loop.refusal
        return ShardStatus(
            shard=self.shard,
            state=self.loop.state,
            detail="" if refusal is None else refusal.detail,
            queued_rows=self.loop.queued_rows,
            notes=list(self._notes),
            log=log,
            hot=hot,
        )

    # Of partitions

    @property
    def _hot(self) -> HotGroups | None:
        # whatever its state: an incarnation that was ready once answers, and what it grants is fenced with it
        return None if self._current is None else self._current.hot

    async def register(self, slot: int, epoch: int, segment: int) -> bool | Refusal:
        """As `HotGroups.register`."""
        hot = self._hot
        return self._not_ready() if hot is None else await hot.register(slot, epoch, segment)

    def ask_now(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal | None:
        """As `HotGroups.ask_now`."""
        hot = self._hot
        return self._not_ready() if hot is None else hot.ask_now(slot, epoch, ask, rows, reports)

    async def ask(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal:
        """As `HotGroups.ask`."""
        hot = self._hot
        return self._not_ready() if hot is None else await hot.ask(slot, epoch, ask, rows, reports)

    def report_now(self, slot: int, epoch: int, reports: Sequence[Report]) -> bool:
        """As `HotGroups.report_now`."""
        return self._hot is not None and self._hot.report_now(slot, epoch, reports)

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | None:
        """As `HotGroups.report`."""
        hot = self._hot
        return self._not_ready() if hot is None else await hot.report(slot, epoch, reports)
