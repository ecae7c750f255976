"""Writes messages of hot conversations into one partition's log, under numbers that their home shard grants.

Owns the partition's write loop, and answers what may be asked of a partition. Owns bytes, not numbers or ids:
`imray.shard.partition_incarnation` asks for those once a commit.
"""

from __future__ import annotations

from collections.abc import Callable

from imray.core.replies import Appended, Refusal
from imray.core.routing import log_of
from imray.core.status import PartitionStatus, ServingState
from imray.log.store import Store
from imray.rpc.publications import SubscribeArgs, SubscribedMarks
from imray.settings import Settings
from imray.shard.partition_incarnation import HomeLink, PartitionIncarnation
from imray.shard.publisher import Publisher, Subscriber
from imray.shard.recovery import become_partition_writer
from imray.shard.runtime import SYSTEM, Runtime
from imray.shard.write_loop import WriteLoop


class PartitionWriter:
    """One partition of a home shard, for as long as this process has it."""

    def __init__(
        self,
        store: Store,
        home: int,
        slot: int,
        seed: int,
        settings: Settings,
        link: HomeLink,
        runtime: Runtime = SYSTEM,
        on_fenced: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_fenced`: called when this process must end."""
        self.slot = slot
        self._store = store
        self._home = home
        self._settings = settings
        self._link = link
        self._runtime = runtime
        self._encoding = runtime.worker(f"encode-{log_of(home, slot)}", 1)
        self._stopping = False
        self.publisher = Publisher(log_of(home, slot), self._is_writer)
        self.current: PartitionIncarnation | None = None
        """The incarnation that serves, or served last."""
        label = f"partition {slot} of shard {home}"
        self.loop = WriteLoop(label, seed, settings, runtime, self._open, on_fenced, store.puts_at_once)

    async def _open(self, _number: int) -> PartitionIncarnation:
        progress, writer = await self._encoding.run(
            become_partition_writer, self._store, self._home, self.slot, self._runtime.wall_ms
        )
        made = PartitionIncarnation(
            label=self.loop.label,
            slot=self.slot,
            writer=writer,
            progress=progress,
            link=self._link,
            settings=self._settings,
            runtime=self._runtime,
            encoding=self._encoding,
            publisher=self.publisher,
        )
        self.publisher.epoch = max(self.publisher.epoch, progress.sequencer)
        self.current = made
        if self._stopping:
            made.ended.set()  # it waits for nobody
        try:
            await made.register()
        except BaseException:
            await made.end()
            raise
        return made

    async def start(self) -> None:
        """As `WriteLoop.start`."""
        await self.loop.start()

    async def stop(self) -> None:
        """As `WriteLoop.stop`."""
        self._stopping = True
        if self.current is not None:
            self.current.ended.set()  # neither an ask nor a registration is repeated
        self.publisher.end()
        await self.loop.stop()
        await self._encoding.end()

    async def append(self, data: object) -> Appended | Refusal:
        """As `WriteLoop.append`."""
        return await self.loop.append(data)

    async def subscribe(self, caller: Subscriber, args: SubscribeArgs) -> SubscribedMarks | Refusal:
        """From now on a gateway hears of what is written here of some conversations; where they stand it hears of the
        home shard."""
        refusal = self.publisher.subscribe(caller, args) or self.loop.refusal
        if refusal is not None:
            return refusal
        return SubscribedMarks(self.publisher.epoch, [])

    async def _is_writer(self) -> bool:
        if self.loop.replaced or self.current is None:
            return False
        return await self._encoding.run(self.current.writer.is_last)

    @property
    def state(self) -> ServingState:
        """Whether it takes messages, and why not."""
        return self.loop.state

    async def status(self) -> PartitionStatus:
        """Figures for operators."""
        refusal = self.loop.refusal
        return PartitionStatus(
            shard=self._home,
            slot=self.slot,
            state=self.loop.state,
            detail="" if refusal is None else refusal.detail,
            segment=self.current.writer.segment if self.current is not None else 0,
        )
