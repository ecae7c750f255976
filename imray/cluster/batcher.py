"""Many sends, few calls: what waits in a gateway for one shard goes as one batch of columns.

Owns the queue of a gateway for one shard. Does not own retries (`imray.cluster.shard_client`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from imray.cluster.replies import Appended, Refusal, Refused
from imray.cluster.shard_client import ShardClient
from imray.log.schema import BATCH_SCHEMA, MS, encode_text, to_ipc
from imray.settings import Settings

_ROW_BYTES = 200
"""What a queued send costs beside its body, about."""


class Send(NamedTuple):
    """One message, checked."""

    conv_id: str
    client_msg_id: bytes
    sender: str
    topic: str | None
    content_type: str | None
    client_ts: int | None
    body: bytes


def record_batch(sends: list[Send]) -> pa.RecordBatch:
    """The columns of some sends."""
    conv_id, ids, sender, topic, content_type, client_ts, body = zip(*sends, strict=True)
    return pa.record_batch(
        [
            encode_text(conv_id),
            pa.array(ids, pa.binary(16)),
            encode_text(sender),
            encode_text(topic),
            encode_text(content_type),
            pa.array(client_ts, MS),
            pa.array(body, pa.binary()),
        ],
        schema=BATCH_SCHEMA,
    )


class Outcome(NamedTuple):
    """The answer that a send's batch got, and the send's row in it."""

    answer: Appended | Refusal
    row: int


@dataclass(slots=True)
class _Waiting:
    send: Send
    answer: asyncio.Future[Outcome]


class Batcher:
    """Gathers sends for one shard while calls are in flight; an idle one sends at once."""

    def __init__(self, client: ShardClient, settings: Settings) -> None:
        self._client, self._settings = client, settings
        self._open: deque[_Waiting] = deque()
        self._rows = self._bytes = 0
        self._calls = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, send: Send) -> Outcome:
        """One message, in the next batch."""
        size = len(send.body) + _ROW_BYTES
        if not self._reserve(1, size):
            return Outcome(self._full(), 0)
        waiting = _Waiting(send, asyncio.get_running_loop().create_future())
        self._open.append(waiting)
        self._flush()
        return await waiting.answer

    async def send_batch(self, batch: pa.RecordBatch) -> Appended | Refusal:
        """A request's own batch; it is a call of its own, in the order that `send_batch` was called."""
        size = batch.nbytes
        if not self._reserve(batch.num_rows, size):
            return self._full()
        try:
            return await self._client.append(to_ipc(batch), self._deadline())
        finally:
            self._release(batch.num_rows, size)

    def _flush(self) -> None:
        while self._open and self._calls < self._settings.gateway_calls_in_flight_max:
            taken = [self._open.popleft() for _ in range(min(len(self._open), self._settings.batch_messages_max))]
            self._calls += 1
            self._spawn(self._call(taken))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, taken: list[_Waiting]) -> None:
        answer: Appended | Refusal = Refusal(Refused.UNAVAILABLE, "the gateway is stopping")
        try:
            batch = record_batch([w.send for w in taken])
            answer = await self._client.append(to_ipc(batch), self._deadline())
        finally:
            self._calls -= 1
            self._release(len(taken), sum(len(w.send.body) + _ROW_BYTES for w in taken))
            for row, waiting in enumerate(taken):
                if not waiting.answer.done():
                    waiting.answer.set_result(Outcome(answer, row))
            self._flush()

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.send_deadline_s

    def _reserve(self, rows: int, size: int) -> bool:
        settings = self._settings
        if self._rows + rows > settings.gateway_queue_rows_max or self._bytes + size > settings.gateway_queue_bytes_max:
            return False
        self._rows += rows
        self._bytes += size
        return True

    def _release(self, rows: int, size: int) -> None:
        self._rows -= rows
        self._bytes -= size

    def _full(self) -> Refusal:
        return Refusal(Refused.BUSY, f"the gateway's queue for shard {self._client.shard} is full: retry later")
