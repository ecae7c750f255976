"""Many sends, few calls: what waits in a gateway for one shard goes as one batch of columns.

Owns the queue of a gateway for one shard or partition. Does not own retries (`imray.engine.clients`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from imray.core.replies import Appended, Refusal, Refused
from imray.engine.clients import LogClient
from imray.engine.sends import Send, record_batch, stream_of
from imray.log.schema import to_ipc
from imray.settings import Settings

_ROW_BYTES = 200
"""What a queued send costs beside its body, about."""


class SendAnswer(NamedTuple):
    """The answer that a send's batch got, and the send's row in it."""

    answer: Appended | Refusal
    row: int


@dataclass(slots=True)
class QueuedSend:
    """What waits in a batcher for its call: one send, or a request's batch."""

    what: Send | pa.RecordBatch
    rows: int
    bytes: int
    answer: asyncio.Future[SendAnswer]


class Batcher:
    """Gathers sends and batches for one shard while calls are in flight; an idle one sends at once."""

    def __init__(self, client: LogClient, settings: Settings, deadline_s: float | None = None) -> None:
        """`deadline_s`: how long a call is retried; None: as long as a sender waits."""
        self._client = client
        self._settings = settings
        self._deadline_s = settings.send_deadline_s if deadline_s is None else deadline_s
        self._waiting: deque[QueuedSend] = deque()
        self._waiting_rows = 0
        self._rows = 0
        self._bytes = 0
        """Waiting and in flight, as the rows are."""
        self._calls = 0
        """In flight."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Asked for once: that is a call of the kernel each time, which looks whether the process has forked."""

    async def send(self, send: Send) -> SendAnswer:
        """One message, in the next call."""
        return await self._add(send, 1, len(send.body) + _ROW_BYTES)

    async def send_batch(self, batch: pa.RecordBatch) -> Appended | Refusal:
        """A request's batch, whole in one call; its order is kept."""
        answer, row = await self._add(batch, batch.num_rows, batch.nbytes)
        return answer if isinstance(answer, Refusal) else answer.slice(row, batch.num_rows)

    def _add(self, what: Send | pa.RecordBatch, rows: int, size: int) -> asyncio.Future[SendAnswer]:
        settings = self._settings
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[SendAnswer] = self._loop.create_future()
        if self._rows + rows > settings.gateway_queue_rows_max or self._bytes + size > settings.gateway_queue_bytes_max:
            detail = f"the gateway's queue for {self._client.name} is full: retry later"
            answer.set_result(SendAnswer(Refusal(Refused.BUSY, detail), 0))
            return answer
        self._waiting.append(QueuedSend(what, rows, size, answer))
        self._waiting_rows += rows
        self._rows += rows
        self._bytes += size
        self._flush()
        return answer

    def _flush(self) -> None:
        settings = self._settings
        assert self._loop is not None
        while self._waiting and (
            not self._calls
            or (
                self._waiting_rows >= settings.gateway_rows_for_another_call
                and self._calls < settings.gateway_calls_in_flight_max
            )
        ):
            task = self._loop.create_task(self._call(self._take()))
            self._calls += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[QueuedSend]:
        taken: list[QueuedSend] = []
        rows = 0
        size = 0
        while self._waiting:
            following = self._waiting[0]
            rows += following.rows
            size += following.bytes
            if taken and (rows > self._settings.call_rows_max or size > self._settings.call_bytes_max):
                break
            taken.append(self._waiting.popleft())
            self._waiting_rows -= following.rows
        return taken

    async def _call(self, taken: list[QueuedSend]) -> None:
        answer: Appended | Refusal = Refusal(Refused.UNAVAILABLE, "the gateway is stopping", unknown=True)
        try:
            deadline = time.monotonic() + self._deadline_s
            answer = await self._client.append(_join([w.what for w in taken]), deadline)
        finally:
            self._calls -= 1
            row = 0
            for waiting in taken:
                self._rows -= waiting.rows
                self._bytes -= waiting.bytes
                if not waiting.answer.done():
                    waiting.answer.set_result(SendAnswer(answer, row))
                row += waiting.rows
            self._flush()


def _join(parts: list[Send | pa.RecordBatch]) -> bytes | pa.Buffer:
    """One batch of single sends and batches, in their order, as it goes to a shard."""
    batches: list[pa.RecordBatch] = []
    sends: list[Send] = []
    for part in parts:
        if isinstance(part, Send):
            sends.append(part)
            continue
        if sends:
            batches.append(record_batch(sends))
            sends = []
        batches.append(part)
    if not batches:
        return stream_of(sends)
    if sends:
        batches.append(record_batch(sends))
    if len(batches) == 1:
        return to_ipc(batches[0])
    return to_ipc(pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()[0])
