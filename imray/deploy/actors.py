"""Shards and partitions as Ray actors: thin shells around their owners."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from imray.core.blocks import Report
from imray.core.errors import UnavailableError
from imray.core.replies import Appended, Located, Refusal, Refused
from imray.deploy import names
from imray.deploy.process import tune_process
from imray.engine.clients import RayHome
from imray.log.store import LocalStore
from imray.rpc.appends import AppendServer
from imray.rpc.asks import Door
from imray.settings import Settings
from imray.shard.partition_writer import PartitionWriter
from imray.shard.shard_writer import ShardWriter
from imray.shard.write_loop import WriteLoop

WriteLoopT = TypeVar("WriteLoopT", bound=WriteLoop)

_EXIT_DELAY_S = 0.5
"""A fenced actor answers its callers, then ends; Ray restarts it if it is still the one Ray knows."""
_PARTITIONS_START_TIMEOUT_S = 20.0
"""A worker process starts in 2 s; more means that the cluster has no room."""


class WriterActor(Generic[WriteLoopT]):
    """An owner in a process. Calls may fail with Ray's errors: then the outcome is unknown, and the same ids are sent
    again."""

    def __init__(self, settings: Settings) -> None:
        self._owner: WriteLoopT | None = None
        self._starting: asyncio.Task[None] | None = None
        self._appends = AppendServer(self.append, settings.shard_queue_bytes_max)
        self._listening: asyncio.Task[Door] | None = None

    def _make(self) -> WriteLoopT:
        raise NotImplementedError

    async def _started(self) -> WriteLoopT:
        # an actor's constructor has no event loop yet, so the first call starts the owner; later ones wait a moment,
        # then they are told to retry
        await self.alive()
        assert self._starting is not None
        assert self._owner is not None
        if not self._starting.done():
            await asyncio.wait([self._starting], timeout=5)
        return self._owner

    async def ping(self) -> dict[str, object]:
        """Wait for the first attempt at recovery; figures for operators, `state` is "serving" or the reason why not."""
        owner: Any = await self._started()
        return {**await owner.status(), "pid": os.getpid()}

    async def alive(self) -> int:
        """The process runs, and begins to recover; its id."""
        if self._owner is None:
            self._owner = self._make()
            tune_process()
            self._starting = asyncio.create_task(self._owner.start())
        return os.getpid()

    async def append(self, data: object) -> Appended | Refusal:
        """As `WriteLoop.append`: Appended means durable."""
        return await (await self._started()).append(data)

    async def append_door(self) -> Door:
        """Where this process takes the same without Ray (`imray.rpc.appends`)."""
        await self.alive()
        if self._listening is None:
            self._listening = asyncio.create_task(self._appends.open(ray.util.get_node_ip_address()))
        return await self._listening

    async def stop(self) -> None:
        """End in good order; the actor answers nothing but refusals afterwards."""
        if self._owner is not None:
            await self._owner.stop()
        self._appends.close()

    def _end(self) -> None:
        asyncio.get_running_loop().call_later(_EXIT_DELAY_S, os._exit, 1)


class Shard(WriterActor[ShardWriter]):
    """One shard."""

    def __init__(self, namespace: str, data: str, shard: int, seed: int, settings: Settings) -> None:
        super().__init__(settings)
        self._args = namespace, data, shard, seed, settings

    def _make(self) -> ShardWriter:
        _, data, shard, seed, settings = self._args
        store = LocalStore(data, settings.store_put_delay_s)
        return ShardWriter(
            store,
            shard,
            seed,
            settings,
            on_fenced=self._end,
            start_partitions=self._start_partitions,
            host=ray.util.get_node_ip_address(),
        )

    async def locate(self, conv_id: str, low: int, high: int) -> Located | Refusal:
        """As `ShardWriter.locate`."""
        return await (await self._started()).locate(conv_id, low, high)

    async def mend(self, file: str) -> Refusal | None:
        """As `ShardWriter.mend`."""
        return await (await self._started()).mend(file)

    async def make_hot(self, conv_id: str, partitions: int) -> Refusal | None:
        """Turn a conversation hot (0 partitions: cold). None: done, and durable."""
        owner = await self._started()
        if owner.hot is None:
            return _not_ready(owner)
        return await (owner.hot.make_hot(conv_id, partitions) if partitions else owner.hot.make_cold(conv_id))

    async def register(self, slot: int, epoch: int, segment: int) -> bool | Refusal:
        """As `HotGroups.register`."""
        owner = await self._started()
        return _not_ready(owner) if owner.hot is None else await owner.hot.register(slot, epoch, segment)

    async def door(self) -> Door | Refusal:
        """Where this incarnation takes asks."""
        owner = await self._started()
        return _not_ready(owner) if owner.hot is None else owner.hot.door

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | None:
        """As `HotGroups.report`."""
        owner = await self._started()
        return _not_ready(owner) if owner.hot is None else await owner.hot.report(slot, epoch, reports)

    async def _start_partitions(self, partitions: int) -> None:
        namespace, data, shard, seed, settings = self._args
        actors = [create_partition(namespace, data, shard, slot, seed, settings) for slot in range(1, partitions + 1)]
        try:
            await asyncio.wait_for(asyncio.gather(*(a.alive.remote() for a in actors)), _PARTITIONS_START_TIMEOUT_S)
        except TimeoutError:
            raise UnavailableError(
                f"{partitions} partitions found no room: each needs {settings.partition_num_cpus} CPUs free in Ray"
            ) from None
        except RayError as e:
            raise UnavailableError(f"a partition did not start: {str(e).splitlines()[0]}") from e


class PartitionActor(WriterActor[PartitionWriter]):
    """One partition of a home shard."""

    def __init__(self, namespace: str, data: str, home: int, slot: int, seed: int, settings: Settings) -> None:
        super().__init__(settings)
        self._args = namespace, data, home, slot, seed, settings

    def _make(self) -> PartitionWriter:
        namespace, data, home, slot, seed, settings = self._args
        link = RayHome(namespace, home, settings)
        store = LocalStore(data, settings.store_put_delay_s)
        return PartitionWriter(store, home, slot, seed, settings, link, on_fenced=self._end)


def _not_ready(owner: WriteLoop) -> Refusal:
    return Refusal(Refused.UNAVAILABLE, f"{owner.label} is recovering")


def create(namespace: str, data: str, shard: int, seed: int, settings: Settings) -> ray.actor.ActorHandle:
    """The shard's actor, made if it is not there: detached, restarted without limit, its tasks never by Ray itself."""
    options = _options(namespace, names.shard(shard), settings.shard_num_cpus)
    return ray.remote(Shard).options(**options).remote(namespace, data, shard, seed, settings)


def create_partition(
    namespace: str, data: str, home: int, slot: int, seed: int, settings: Settings
) -> ray.actor.ActorHandle:
    """A partition's actor, made if it is not there, away from the others where there are nodes."""
    options = _options(namespace, names.partition(home, slot), settings.partition_num_cpus)
    return (
        ray.remote(PartitionActor)
        .options(scheduling_strategy="SPREAD", **options)
        .remote(namespace, data, home, slot, seed, settings)
    )  # fmt: skip


def _options(namespace: str, name: str, num_cpus: float) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": num_cpus,
        "max_concurrency": 1000,
        "max_pending_calls": 2000,
    }
