"""The merger as a Ray actor: one process of a deployment that turns the logs into history and deletes what it has.

It shares nothing with the others but the files, and nothing waits for it. Two of them do no harm
(`imray.history.merger`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Sequence

import ray

from imray.core.errors import ImrayError, StorageError
from imray.core.status import MergerStatus, MergeStatus
from imray.deploy import names
from imray.deploy.options import lasting
from imray.history.merger import Merger
from imray.log.store import LocalStore
from imray.rpc import tls
from imray.rpc.directory import MERGER
from imray.rpc.endpoint import Endpoint, Parts
from imray.rpc.messages import encode_struct
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from imray.settings import Settings

log = logging.getLogger("imray.merger")

_NICENESS = 10
"""Sends and reads go first where cores are short."""
_CALL_BYTES_MAX = 64 * 1024
_STATUS_AGE_S = 2.0
"""Counting files takes long where there are many: it is done once for all who ask within that time."""
_STOP_TIMEOUT_S = 10.0


class EndingStore(LocalStore):
    """A disk that refuses further reading and writing once `end` was called, so that a merge ends within one of them.
    What a merge put already can still be deleted."""

    def __init__(self, root: str, put_delay_s: float) -> None:
        super().__init__(root, put_delay_s)
        self._ending = False

    def end(self) -> None:
        """Refuse from now on."""
        self._ending = True

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        """As `LocalStore.put_if_absent`."""
        self._check(name)
        return super().put_if_absent(name, parts)

    def get(self, name: str) -> bytes | None:
        """As `LocalStore.get`."""
        self._check(name)
        return super().get(name)

    def get_range(self, name: str, start: int, size: int) -> bytes | None:
        """As `LocalStore.get_range`."""
        self._check(name)
        return super().get_range(name, start, size)

    def _check(self, name: str) -> None:
        if self._ending:
            raise StorageError(f"{name}: this process ends")


class MergerProcess:
    """Runs a merger in a thread, as soon as the actor lives: a restarted one merges again."""

    def __init__(self, data: str, shards: int, settings: Settings) -> None:
        self._settings = settings
        self._store = EndingStore(data, settings.store_put_delay_s)
        self._merger = Merger(self._store, shards, settings, time.monotonic, lambda: time.time_ns() // 1_000_000)
        self._server = RpcServer(_CALL_BYTES_MAX, tls.server_context())
        self._opening: asyncio.Task[Endpoint] | None = None
        self._counting: asyncio.Task[MergerStatus] | None = None
        self._counted_s = 0.0
        self._failed: dict[int, tuple[str, float]] = {}
        """By shard: what went wrong, and when it is tried again."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="merger", daemon=True)
        self._thread.start()

    async def alive(self) -> int:
        """The process runs; its id."""
        return os.getpid()

    async def endpoint(self) -> Endpoint:
        """Where this process takes calls."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        return await self._opening

    async def stop(self) -> None:
        """End in good order: what is being merged is given up, and its files are removed."""
        self._ended.set()
        self._store.end()
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)
        await self._server.close()

    async def _open(self) -> Endpoint:
        self._server.serve(MERGER, {Method.STATUS: self._status})
        return await self._server.open(ray.util.get_node_ip_address())

    async def _status(self, _content: memoryview, _caller: ServerConnection) -> Parts:
        task = self._counting
        is_old = time.monotonic() - self._counted_s > _STATUS_AGE_S
        if task is None or (task.done() and (is_old or task.exception() is not None)):
            self._counted_s = time.monotonic()
            task = self._counting = asyncio.create_task(asyncio.to_thread(self._count))
        # who asks may go away; others wait for the same
        return encode_struct(await asyncio.shield(task))

    def _count(self) -> MergerStatus:
        return MergerStatus([self._count_of(shard) for shard in range(self._merger.shards)])

    def _count_of(self, shard: int) -> MergeStatus:
        try:
            status = self._merger.status(shard)
        except ImrayError as e:
            status = MergeStatus(shard, self._merger.version, [], [f"segments cannot be counted: {e}"])
        failed = self._failed.get(shard)
        detail = status.detail if failed is None else [*status.detail, failed[0]]
        return MergeStatus(shard, status.version, status.logs, detail, os.getpid())

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)  # on Linux of this thread; those that it starts inherit it
        while not self._ended.is_set():
            if not self._round():
                self._ended.wait(self._settings.merge_interval_s)

    def _round(self) -> bool:
        """A piece of work for each shard. False: nothing is to be done, or it failed."""
        steps = [self._step(shard) for shard in range(self._merger.shards) if not self._ended.is_set()]
        return any(steps)

    def _step(self, shard: int) -> bool:
        failed = self._failed.get(shard)
        if failed is not None and time.monotonic() < failed[1]:
            return False
        try:
            again = self._merger.step(shard)
        except Exception as e:
            # a bug of ours, or no memory: nothing here is needed for an ack, what is not merged stays in the log, and
            # the other shards go on
            log.exception("shard %d: the merger failed", shard)
            self._failed[shard] = f"the merger failed: {e!r}", time.monotonic() + self._settings.reopen_delay_s_max
            return False
        self._failed.pop(shard, None)
        return again


def create(namespace: str, data: str, shards: int, settings: Settings) -> ray.actor.ActorHandle:
    """The merger's actor, made if it is not there."""
    options = lasting(namespace, names.MERGER_NAME, settings.history_num_cpus)
    return ray.remote(MergerProcess).options(**options).remote(data, shards, settings)
