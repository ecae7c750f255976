"""A home shard and its partitions in this process, wired without Ray: what tests of hot groups send through."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imray.core.columns import Rows
from imray.core.grants import Declined, Granted, Report
from imray.core.replies import Appended, Refusal, Refused
from imray.core.routing import slot_for
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard.partition_writer import PartitionWriter
from imray.shard.shard_writer import ShardWriter
from tests.support.batches import SEED, Msg, Row, answers_of, ipc_of

_LOST = Refusal(Refused.UNAVAILABLE, "the call was lost")


class Link:
    """From a partition to its home shard; calls and answers can be lost or held."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.cut = False
        self.lose_answers = 0

    async def _call(self, method: str, *args: Any) -> Any:
        home = self._group.home
        if self.cut or self._group.home.state != "serving":
            await asyncio.sleep(0.01)
            return _LOST
        answer = await getattr(home, method)(*args)
        if self.lose_answers:
            self.lose_answers -= 1
            return _LOST
        return answer

    async def register(self, slot: int, epoch: int, segment: int) -> bool | Refusal:
        """As HomeLink."""
        return await self._call("register", slot, epoch, segment)

    async def ask(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal:
        """As HomeLink."""
        return await self._call("ask", slot, epoch, ask, rows, reports)

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | None:
        """As HomeLink."""
        return await self._call("report", slot, epoch, reports)


class Group:
    """One home shard, partitions as they are wanted."""

    def __init__(self, root: Path | LocalStore, **settings: Any) -> None:
        self.store = root if isinstance(root, LocalStore) else LocalStore(root)
        self.settings = Settings(**({"grant_timeout_s": 0.3, "reopen_delay_s_max": 0.05} | settings))
        self.home = self._new_home()
        self.partitions: dict[int, PartitionWriter] = {}
        self.links: dict[int, Link] = {}
        self._owners: list[ShardWriter | PartitionWriter] = []
        self.crashes = False
        """The home shard's end is none in good order."""

    def _new_home(self) -> ShardWriter:
        return ShardWriter(self.store, 0, SEED, self.settings, start_partitions=self._start_partitions)

    async def __aenter__(self) -> Group:
        self.loop = asyncio.get_running_loop()
        await self._start(self.home)
        return self

    async def __aexit__(self, *_: object) -> None:
        for owner in reversed(self._owners):
            if self.crashes and isinstance(owner, ShardWriter):
                owner._current = None  # nothing is put in order
            await owner.stop()

    async def _start(self, owner: ShardWriter | PartitionWriter) -> None:
        self._owners.append(owner)
        await owner.start()

    async def _start_partitions(self, partitions: int) -> None:
        for slot in range(1, partitions + 1):
            if slot not in self.partitions:
                self.new_partition(slot)

    def new_partition(self, slot: int) -> PartitionWriter:
        """A new incarnation of a partition; an old one is left as it is."""
        self.links[slot] = Link(self)
        topic = self.partitions[slot] = PartitionWriter(self.store, 0, slot, SEED, self.settings, self.links[slot])
        self._owners.append(topic)
        topic.starting = asyncio.create_task(topic.start())  # type: ignore[attr-defined]
        return topic

    async def new_home(self) -> None:
        """A new incarnation of the home shard; the old one is left as it is."""
        self.home = self._new_home()
        await self._start(self.home)

    async def send(self, slot: int, *messages: Msg) -> list[Row] | Refusal:
        """Through one partition (0: the home shard), again while the outcome is unknown, as a gateway's client does."""
        for _ in range(100):
            answer = await self.try_send(slot, *messages)
            if not isinstance(answer, Refusal) or answer.why not in (Refused.UNAVAILABLE, Refused.OLD_IDS):
                return answer
            if answer.why is Refused.OLD_IDS:
                slot = 0
            await asyncio.sleep(0.01)
        return answer

    async def try_send(self, slot: int, *messages: Msg) -> list[Row] | Refusal:
        """Once."""
        owner: ShardWriter | PartitionWriter = self.partitions[slot] if slot else self.home
        answer = await owner.append(ipc_of(messages))
        return answers_of(answer) if isinstance(answer, Appended) else answer

    async def deliver(self, *messages: Msg, partitions: int | None = None) -> list[Row]:
        """As a gateway: by the way of the first message's key, then by the home shard, until there is an answer."""
        for attempt in range(400):
            slot = (
                slot_for(messages[0].topic or messages[0].sender, partitions) if partitions and attempt % 2 == 0 else 0
            )
            answer = await self.try_send(slot, *messages)
            if not isinstance(answer, Refusal):
                return answer
            await asyncio.sleep(0.01)
        raise TimeoutError(str(answer))
