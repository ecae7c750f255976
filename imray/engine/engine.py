"""What a gateway stands on: every shard behind one object. Owns routing; knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from imray.core.errors import CorruptError, DerivedError
from imray.core.replies import Appended, Located, Refusal, Refused
from imray.core.routing import home_of, shard_of
from imray.deploy import names
from imray.engine.batcher import Batcher, Outcome, Send
from imray.engine.clients import ActorClient, ShardClient
from imray.engine.hot_routes import HotRoutes
from imray.log.manifest import Manifest
from imray.settings import Settings

_SEQ_MAX = 2**63 - 1
_READY_TIMEOUT_S = 2.0


class Engine:
    """The engine as a gateway sees it. Belongs to one event loop."""

    def __init__(self, namespace: str, manifest: Manifest, settings: Settings) -> None:
        self.manifest, self.settings, self._namespace = manifest, settings, namespace
        self._clients = [ShardClient(namespace, i, settings) for i in range(manifest.shards)]
        self._batchers = [Batcher(client, settings) for client in self._clients]
        self._hot_routes = HotRoutes(namespace, settings)

    def shard_of(self, conv_id: str) -> int:
        """The shard that owns a conversation."""
        return shard_of(conv_id, self.manifest.shards)

    async def send(self, send: Send) -> Outcome:
        """One message; gathered with others that take the same way."""
        home = self.shard_of(send.conv_id)
        log = self._hot_routes.log_for(home, send.conv_id, send.topic or send.sender)
        unknown = False
        if log != home:
            outcome = await self._hot_routes.topic(log).send(send)
            if self._hot_routes.is_final(log, outcome.answer, [send.conv_id]):
                return outcome
            unknown = _maybe_written(outcome.answer)
        answer, row = await self._batchers[home].send(send)
        self._hot_routes.update(answer, [send.conv_id])
        return Outcome(_after(unknown, answer), row)

    def ways(self, batch: pa.RecordBatch) -> np.ndarray:
        """For each conversation in a batch's dictionary the log that its messages should go to: all of them one way, so
        that the order inside a request is kept."""
        conv = batch.column("conv_id")
        found = conv.dictionary.to_pylist()
        logs = np.fromiter(map(self.shard_of, found), np.int64, len(found))
        for i, name in enumerate(found):
            if name in self._hot_routes.hot:
                row = int(np.argmax(conv.indices.to_numpy() == i))
                key = batch.column("topic")[row].as_py() or batch.column("sender")[row].as_py()
                logs[i] = self._hot_routes.log_for(int(logs[i]), name, key)
        return logs

    async def send_batches(self, batches: dict[int, pa.RecordBatch]) -> dict[int, Appended | Refusal]:
        """One batch for each log that `ways` named, at once; the order inside each is kept."""
        answers = await asyncio.gather(*(self._send_batch(log, b) for log, b in batches.items()))
        return dict(zip(batches, answers, strict=True))

    async def _send_batch(self, log: int, batch: pa.RecordBatch) -> Appended | Refusal:
        home, slot = home_of(log)
        unknown = False
        if slot:
            answer = await self._hot_routes.topic(log).send_batch(batch)
            if self._hot_routes.is_final(log, answer, batch.column("conv_id").dictionary.to_pylist()):
                return answer
            unknown = _maybe_written(answer)
        answer = await self._batchers[home].send_batch(batch)
        if self._hot_routes.hot or (isinstance(answer, Appended) and answer.hot):
            self._hot_routes.update(answer, batch.column("conv_id").dictionary.to_pylist())
        return _after(unknown, answer)

    async def make_hot(self, conv_id: str, partitions: int) -> Refusal | None:
        """Spread a conversation over partitions; 0: its home shard alone writes it again. None: done, and durable."""
        return await self._client(conv_id).make_hot(conv_id, partitions, self._deadline())

    async def head(self, conv_id: str) -> Located | Refusal:
        """Where a conversation stands."""
        return await self._client(conv_id).locate(conv_id, 1, 0, self._deadline())

    async def history(
        self, conv_id: str, after: int, before: int | None, limit: int, descending: bool, topic: str | None = None
    ) -> tuple[Located, Any] | Refusal:
        """One page (`analytics.history.HistoryPage`) of the numbers between `after` and `before`, of one topic's
        messages where `topic` is given."""
        deadline = self._deadline()
        high = _SEQ_MAX if before is None else before - 1
        while True:
            located = await self._client(conv_id).locate(conv_id, after + 1, high, deadline)
            if isinstance(located, Refusal):
                return located
            try:
                actor = ray.get_actor("history", self._namespace)
                ref = actor.read.remote(
                    self.shard_of(conv_id), conv_id, located, after, before, limit, descending, topic
                )  # fmt: skip
                return located, await asyncio.wait_for(ref, max(0.05, deadline - time.monotonic()))
            except TimeoutError:
                return Refusal(Refused.UNAVAILABLE, "the history reader gave no answer in time: ask again")
            except (RayError, ValueError) as e:
                cause = e.cause if isinstance(e, RayTaskError) else e
                if isinstance(cause, CorruptError):
                    return Refusal(Refused.CORRUPT, str(cause))
                if isinstance(cause, DerivedError):
                    await self._client(conv_id).mend(cause.file)
                # the reader restarts, or files were merged or made anew since `locate`: ask the shard again
                if time.monotonic() + self.settings.retry_delay_s_max > deadline:
                    return Refusal(Refused.UNAVAILABLE, f"history: {str(cause).splitlines()[0]}")
                await asyncio.sleep(self.settings.retry_delay_s_min)

    async def status(self) -> list[dict[str, Any]]:
        """Each shard's figures; one that does not answer has the reason as its `state`. One with hot groups has those
        of its partitions under `topics`."""
        shards = list(await asyncio.gather(*(c.ping(_READY_TIMEOUT_S) for c in self._clients)))
        for home, figures in enumerate(shards):
            slots = range(1, 1 + max((group["topics"] for group in figures.get("hot", ())), default=0))
            if slots:
                clients = [ActorClient(self._namespace, names.partition(home, slot), self.settings) for slot in slots]
                figures["topics"] = list(await asyncio.gather(*(c.ping(_READY_TIMEOUT_S) for c in clients)))
        return shards

    def _client(self, conv_id: str) -> ShardClient:
        return self._clients[self.shard_of(conv_id)]

    def _deadline(self) -> float:
        return time.monotonic() + self.settings.send_deadline_s


def _maybe_written(answer: Appended | Refusal) -> bool:
    return not isinstance(answer, Refusal) or answer.maybe_written


def _after(unknown: bool, answer: Appended | Refusal) -> Appended | Refusal:
    """The home shard's answer; `unknown`: a try at a partition before may have been executed."""
    return answer.after_unknown() if unknown and isinstance(answer, Refusal) else answer
