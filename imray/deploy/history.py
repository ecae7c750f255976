"""The history reader as a Ray actor: pulls run here, outside the shard actors, so that none waits for a reader."""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from imray.core.replies import Located
from imray.deploy.process import tune_process
from imray.settings import Settings

_PULLS_AT_ONCE_MAX = 64
"""What may wait here; the gateway's own deadline ends a wait."""


class History:
    """Reads pages of history. `factory` ("module:function", called with data and settings) makes the real reader:
    the folder that knows DuckDB stands beside this one, not below it."""

    def __init__(self, factory: str, data: str, settings: Settings) -> None:
        module, function = factory.split(":")
        self._reader = getattr(importlib.import_module(module), function)(data, settings)
        self._thread = ThreadPoolExecutor(1, "history")
        tune_process()

    async def ping(self) -> None:
        """Ready."""

    async def read(
        self,
        shard: int,
        conv_id: str,
        located: Located,
        after: int,
        before: int | None,
        limit: int,
        descending: bool,
        topic: str | None = None,
    ) -> Any:
        """One page (`analytics.history.HistoryPage`)."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread,
            lambda: self._reader.read(
                shard,
                conv_id,
                located.stable,
                located.intervals,
                located.spans,
                after=after,
                before=before,
                limit=limit,
                descending=descending,
                topic=topic,
            ),
        )


def create(namespace: str, factory: str, data: str, settings: Settings) -> ray.actor.ActorHandle:
    """The reader's actor, made if it is not there."""
    return (
        ray.remote(History)
        .options(
            name="history",
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=settings.history_num_cpus,
            max_concurrency=_PULLS_AT_ONCE_MAX,
        )
        .remote(factory, data, settings)
    )
