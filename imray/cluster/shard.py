"""The shard as a Ray actor: a thin shell around `imray.cluster.owner.Owner`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import ray

from imray.cluster.owner import Owner
from imray.cluster.process import settle
from imray.cluster.replies import Appended, Located, Refusal
from imray.log.store import LocalStore
from imray.settings import Settings

log = logging.getLogger("imray.shard")

_EXIT_DELAY_S = 0.5
"""A fenced actor answers its callers, then ends; Ray restarts it if it is still the one Ray knows."""


class Shard:
    """One shard. Calls may fail with Ray's errors: then the outcome is unknown, and the same ids are sent again."""

    def __init__(self, data: str, shard: int, seed: int, settings: Settings) -> None:
        self._make: Callable[[], Owner] = lambda: Owner(LocalStore(data), shard, seed, settings, on_fenced=self._end)
        self._owner: Owner | None = None
        self._starting: asyncio.Task[None] | None = None

    async def _started(self) -> Owner:
        # an actor's constructor has no event loop yet, so the first call starts the owner; later ones do not wait:
        # they are told to retry
        if self._owner is None:
            self._owner = self._make()
            settle()
            self._starting = asyncio.create_task(self._owner.start())
        return self._owner

    async def ping(self) -> dict[str, object]:
        """Wait for the first attempt at recovery; figures for operators, `state` is "serving" or the reason why not."""
        owner = await self._started()
        assert self._starting is not None
        await asyncio.wait([self._starting], timeout=5)
        return {**owner.status(), "pid": os.getpid()}

    async def append(self, data: object) -> Appended | Refusal:
        """As `Owner.append`: Appended means durable."""
        owner = await self._started()
        assert self._starting is not None
        if not self._starting.done():
            await asyncio.wait([self._starting], timeout=5)
        return await owner.append(data)

    async def locate(self, conv_id: str, low: int, high: int) -> Located | Refusal:
        """As `Owner.locate`."""
        owner = await self._started()
        assert self._starting is not None
        if not self._starting.done():
            await asyncio.wait([self._starting], timeout=5)
        return await owner.locate(conv_id, low, high)

    async def stop(self) -> None:
        """End in good order; the actor answers nothing but refusals afterwards."""
        if self._owner is not None:
            await self._owner.stop()

    def _end(self) -> None:
        asyncio.get_running_loop().call_later(_EXIT_DELAY_S, os._exit, 1)


def create(namespace: str, data: str, shard: int, seed: int, settings: Settings) -> ray.actor.ActorHandle:
    """The shard's actor, made if it is not there: detached, restarted without limit, its tasks never by Ray itself."""
    return (
        ray.remote(Shard)
        .options(
            name=name(shard),
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=settings.shard_num_cpus,
            max_concurrency=1000,
            max_pending_calls=2000,
        )
        .remote(data, shard, seed, settings)
    )


def name(shard: int) -> str:
    """The actor's name inside the deployment's namespace."""
    return f"shard-{shard:04d}"
