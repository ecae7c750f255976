"""What a gateway stands on: every shard behind one object. Owns routing; knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from imray.cluster.batcher import Batcher, Outcome, Send
from imray.cluster.replies import Appended, Located, Refusal, Refused
from imray.cluster.shard_client import ShardClient
from imray.core.errors import CorruptError
from imray.core.routing import shard_of
from imray.log.manifest import Manifest
from imray.settings import Settings

_SEQ_MAX = 2**63 - 1
_READY_TIMEOUT_S = 2.0


class Backend:
    """The engine as a gateway sees it. Belongs to one event loop."""

    def __init__(self, namespace: str, manifest: Manifest, settings: Settings) -> None:
        self.manifest, self.settings, self._namespace = manifest, settings, namespace
        self._clients = [ShardClient(namespace, i, settings) for i in range(manifest.shards)]
        self._batchers = [Batcher(client, settings) for client in self._clients]

    def shard_of(self, conv_id: str) -> int:
        """The shard that owns a conversation."""
        return shard_of(conv_id, self.manifest.shards)

    async def send(self, send: Send) -> Outcome:
        """One message; gathered with others that wait for its shard."""
        return await self._batchers[self.shard_of(send.conv_id)].send(send)

    async def send_batches(self, batches: dict[int, pa.RecordBatch]) -> dict[int, Appended | Refusal]:
        """One batch for each shard, at once; the order inside each is kept."""
        answers = await asyncio.gather(*(self._batchers[s].send_batch(b) for s, b in batches.items()))
        return dict(zip(batches, answers, strict=True))

    async def head(self, conv_id: str) -> Located | Refusal:
        """Where a conversation stands."""
        return await self._client(conv_id).locate(conv_id, 1, 0, self._deadline())

    async def history(
        self, conv_id: str, after: int, before: int | None, limit: int, descending: bool
    ) -> tuple[Located, Any] | Refusal:
        """One page (`analytics.history.HistoryPage`) of the numbers between `after` and `before`."""
        deadline = self._deadline()
        high = _SEQ_MAX if before is None else before - 1
        while True:
            located = await self._client(conv_id).locate(conv_id, after + 1, high, deadline)
            if isinstance(located, Refusal):
                return located
            try:
                actor = ray.get_actor("history", self._namespace)
                ref = actor.read.remote(self.shard_of(conv_id), conv_id, located, after, before, limit, descending)
                return located, await asyncio.wait_for(ref, max(0.05, deadline - time.monotonic()))
            except TimeoutError:
                return Refusal(Refused.UNAVAILABLE, "the history reader gave no answer in time: ask again")
            except (RayError, ValueError) as e:
                cause = e.cause if isinstance(e, RayTaskError) else e
                if isinstance(cause, CorruptError):
                    return Refusal(Refused.CORRUPT, str(cause))
                # the reader restarts, or files were merged since `locate`: ask the shard again
                if time.monotonic() + self.settings.retry_delay_s_max > deadline:
                    return Refusal(Refused.UNAVAILABLE, f"history: {str(cause).splitlines()[0]}")
                await asyncio.sleep(self.settings.retry_delay_s_min)

    async def status(self) -> list[dict[str, Any]]:
        """Each shard's figures; one that does not answer has the reason as its `state`."""
        return list(await asyncio.gather(*(c.ping(_READY_TIMEOUT_S) for c in self._clients)))

    def _client(self, conv_id: str) -> ShardClient:
        return self._clients[self.shard_of(conv_id)]

    def _deadline(self) -> float:
        return time.monotonic() + self.settings.send_deadline_s
