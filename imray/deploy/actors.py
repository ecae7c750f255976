"""Shards and partitions as Ray actors: thin shells that start a writer and say where its process takes calls.

Owns the life of the process. Does not own what the writers do (`imray.shard`), nor how they are called (`imray.rpc`).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import ray
from ray.exceptions import RayError

from imray.core.errors import UnavailableError
from imray.core.routing import log_of
from imray.core.status import PartitionStatus, ShardStatus
from imray.deploy import names
from imray.deploy.directory import RayDirectory
from imray.deploy.options import lasting
from imray.deploy.process import tune_process
from imray.log.store import LocalStore
from imray.rpc import tls
from imray.rpc.endpoint import Endpoint
from imray.rpc.server import RpcServer
from imray.settings import Settings
from imray.shard.home_link import RpcHomeLink
from imray.shard.partition_writer import PartitionWriter
from imray.shard.service import Handlers, partition_handlers, partition_status, shard_handlers, shard_status
from imray.shard.shard_writer import ShardWriter

_EXIT_DELAY_S = 0.5
"""A fenced actor answers its callers, then ends; Ray restarts it if it is still the one Ray knows."""
_RECOVERY_WAIT_S = 5.0
"""Who asks where a process listens waits so long for its recovery, which mostly takes less; after that callers are
told to retry."""
_PARTITIONS_START_TIMEOUT_S = 20.0
"""A worker process starts in 2 s; more means that the cluster has no room."""
_CALLS_AT_ONCE_MAX = 1000
_CALLS_PENDING_MAX = 2000


class WriterActor:
    """A writer in a process of its own. An actor's constructor has no event loop yet: the first call starts it."""

    def __init__(self, log: int, settings: Settings) -> None:
        self._log = log
        self._writer: ShardWriter | PartitionWriter | None = None
        self._starting: asyncio.Task[None] | None = None
        self._server = RpcServer(settings.shard_queue_bytes_max, tls.server_context())
        self._opening: asyncio.Task[Endpoint] | None = None

    def _make(self) -> tuple[ShardWriter | PartitionWriter, Handlers]:
        raise NotImplementedError

    async def alive(self) -> int:
        """The process runs, and begins to recover; its id."""
        if self._writer is None:
            self._writer, handlers = self._make()
            self._server.serve(self._log, handlers)
            tune_process()
            self._starting = asyncio.create_task(self._writer.start())
        return os.getpid()

    async def endpoint(self) -> Endpoint:
        """Where this process takes calls, once its writer has recovered, or not in `_RECOVERY_WAIT_S`."""
        await self._recovered()
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._server.open(ray.util.get_node_ip_address()))
        return await self._opening

    async def ping(self) -> ShardStatus | PartitionStatus:
        """The writer's state and figures, once it has recovered, or not in `_RECOVERY_WAIT_S`."""
        await self._recovered()
        if isinstance(self._writer, ShardWriter):
            return await shard_status(self._writer)
        assert self._writer is not None
        return await partition_status(self._writer)

    async def _recovered(self) -> None:
        await self.alive()
        assert self._starting is not None
        await asyncio.wait([self._starting], timeout=_RECOVERY_WAIT_S)

    async def stop(self) -> None:
        """End in good order; calls that come afterwards get no answer."""
        if self._writer is not None:
            await self._writer.stop()
        await self._server.close()

    def _end(self) -> None:
        asyncio.get_running_loop().call_later(_EXIT_DELAY_S, os._exit, 1)


class ShardActor(WriterActor):
    """One shard."""

    def __init__(self, namespace: str, data: str, shard: int, seed: int, settings: Settings) -> None:
        super().__init__(shard, settings)
        self._namespace = namespace
        self._data = data
        self._shard = shard
        self._seed = seed
        self._settings = settings

    def _make(self) -> tuple[ShardWriter, Handlers]:
        writer = ShardWriter(
            LocalStore(self._data, self._settings.store_put_delay_s),
            self._shard,
            self._seed,
            self._settings,
            on_fenced=self._end,
            start_partitions=self._start_partitions,
        )
        return writer, shard_handlers(writer)

    async def _start_partitions(self, partitions: int) -> None:
        settings = self._settings

        def made() -> list[Any]:
            return [
                create_partition(self._namespace, self._data, self._shard, slot, self._seed, settings)
                for slot in range(1, partitions + 1)
            ]

        async def alive() -> None:
            # in a thread: while Ray's own store hangs nobody's commit may wait for it
            actors = await asyncio.to_thread(made)
            await asyncio.gather(*(a.alive.remote() for a in actors))

        try:
            await asyncio.wait_for(alive(), _PARTITIONS_START_TIMEOUT_S)
        except TimeoutError:
            raise UnavailableError(
                f"{partitions} partitions found no room: each needs {settings.partition_num_cpus} CPUs free in Ray"
            ) from None
        except RayError as e:
            raise UnavailableError(f"a partition did not start: {str(e).splitlines()[0]}") from e


class PartitionActor(WriterActor):
    """One partition of a home shard."""

    def __init__(self, namespace: str, data: str, home: int, slot: int, seed: int, settings: Settings) -> None:
        super().__init__(log_of(home, slot), settings)
        self._namespace = namespace
        self._data = data
        self._home = home
        self._slot = slot
        self._seed = seed
        self._settings = settings

    def _make(self) -> tuple[PartitionWriter, Handlers]:
        settings = self._settings
        link = RpcHomeLink(RayDirectory(self._namespace), self._home, settings, tls.client_context())
        store = LocalStore(self._data, settings.store_put_delay_s)
        writer = PartitionWriter(store, self._home, self._slot, self._seed, settings, link, on_fenced=self._end)
        return writer, partition_handlers(writer)


def create(namespace: str, data: str, shard: int, seed: int, settings: Settings) -> ray.actor.ActorHandle:
    """The shard's actor, made if it is not there."""
    options = _options(namespace, names.shard(shard), settings.shard_num_cpus)
    return ray.remote(ShardActor).options(**options).remote(namespace, data, shard, seed, settings)


def create_partition(
    namespace: str, data: str, home: int, slot: int, seed: int, settings: Settings
) -> ray.actor.ActorHandle:
    """A partition's actor, made if it is not there, away from the others where there are nodes."""
    options = _options(namespace, names.partition(home, slot), settings.partition_num_cpus)
    options["scheduling_strategy"] = "SPREAD"
    return ray.remote(PartitionActor).options(**options).remote(namespace, data, home, slot, seed, settings)


def _options(namespace: str, name: str, num_cpus: float) -> dict[str, Any]:
    return {
        **lasting(namespace, name, num_cpus),
        "max_concurrency": _CALLS_AT_ONCE_MAX,
        "max_pending_calls": _CALLS_PENDING_MAX,
    }
