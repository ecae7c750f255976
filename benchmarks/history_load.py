"""Messages with a realistic skew, sent through engines in processes of their own.

The n-th conversation gets 1/n of what the first gets (Zipf's law); each has eight members who write. Owns the load.
Does not own what is measured of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.history_system import engine_of
from benchmarks.workload import BODY_BYTES, ID_BYTES, bodies, text
from imray.core.replies import Appended, Refusal, Refused
from imray.core.routing import shard_of
from imray.deploy.process import tune_process
from imray.engine.engine import Engine
from imray.engine.sends import Send, record_batch
from imray.log.manifest import Manifest
from imray.log.schema import BATCH_SCHEMA, MS, constant_text
from imray.settings import Settings

MEMBERS = 8
"""Of a conversation, who write."""
_USER_STEPS = (7919, 104_729)
"""Primes: which users are a conversation's members."""
_GRACE_S = 120.0
_BUSY_S = 0.05
_AGAIN = (Refused.BUSY, Refused.UNAVAILABLE)


def room(rank: int) -> str:
    """The conversation that is the `rank`-th busiest, from 0."""
    return f"room-{rank:08d}"


def rooms_of(shard: int, shards: int, count: int, prefix: str) -> list[str]:
    """`count` conversations outside the load that belong to one shard."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        name = f"{prefix}-{number}"
        if shard_of(name, shards) == shard:
            found.append(name)
        number += 1
    return found


class SkewedMessages:
    """Batches over `conversations` conversations; the ids never repeat."""

    def __init__(self, conversations: int, shards: int, seed: int) -> None:
        self._conversations = conversations
        self._shards = shards
        self._rng = np.random.default_rng(seed)
        cumulative = np.cumsum(1.0 / np.arange(1, conversations + 1))
        self._cumulative = cumulative / cumulative[-1]
        found = (shard_of(room(rank), shards) for rank in range(conversations))
        self._shard = np.fromiter(found, np.int32, conversations)

    def ranks(self, rows: int) -> np.ndarray:
        """Which conversation each of `rows` messages is for."""
        return np.searchsorted(self._cumulative, self._rng.random(rows))

    def batches(self, rows: int) -> dict[int, pa.RecordBatch]:
        """One request of `rows` messages, as an engine takes it: a batch for each shard."""
        ranks = self.ranks(rows)
        shards = self._shard[ranks]
        return {shard: self._batch(ranks[shards == shard]) for shard in np.unique(shards).tolist()}

    def _batch(self, ranks: np.ndarray) -> pa.RecordBatch:
        rows = len(ranks)
        members = ranks * MEMBERS + self._rng.integers(0, MEMBERS, rows)
        nothing = constant_text(None, rows)
        ids = pa.py_buffer(self._rng.bytes(ID_BYTES * rows))
        columns = [
            _texts(ranks, room),
            pa.Array.from_buffers(pa.binary(ID_BYTES), rows, [None, ids]),
            _texts(members, self._user),
            nothing,
            nothing,
            pa.nulls(rows, MS),
            bodies(rows, self._rng),
        ]
        return pa.record_batch(columns, schema=BATCH_SCHEMA)

    def _user(self, member: int) -> str:
        rank, number = divmod(member, MEMBERS)
        return f"user-{(rank * _USER_STEPS[0] + number * _USER_STEPS[1]) % self._conversations:07d}"


def _texts(keys: np.ndarray, name: Any) -> pa.DictionaryArray:
    """A dictionary column with the name of each key, only the used ones in the dictionary."""
    used, index = np.unique(keys, return_inverse=True)
    dictionary = pa.array([name(key) for key in used.tolist()])
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), dictionary)


class EngineUser:
    """What has an engine in a process of its own: a Ray actor, whose loop runs only with its first call."""

    def __init__(self, namespace: str, manifest: Manifest, settings: Settings, number: int) -> None:
        self._namespace = namespace
        self._settings = settings
        self._made: Engine | None = None
        self.manifest = manifest
        self.number = number
        tune_process()

    @property
    def engine(self) -> Engine:
        """Made where it is first used: inside the event loop."""
        if self._made is None:
            self._made = engine_of(self._namespace, self.manifest, self._settings)
        return self._made

    async def ready(self) -> None:
        """It can be asked, and knows the shards."""
        await self.engine.status()

    async def send(self, batches: dict[int, pa.RecordBatch]) -> dict[int, Appended]:
        """One request, repeated with the same ids until all is durable; RuntimeError for an answer that is none."""
        found: dict[int, Appended] = {}
        left = batches
        again = False
        deadline = time.monotonic() + _GRACE_S
        while left:
            answers = await self.engine.send_batches(left)
            for log, answer in answers.items():
                if isinstance(answer, Appended):
                    found[log] = answer
                    check_new(answer, left[log].num_rows, again)
                elif answer.why not in _AGAIN or time.monotonic() > deadline:
                    raise RuntimeError(f"not an ack: {answer}")
            left = {log: batch for log, batch in left.items() if log not in found}
            if left:
                again = True
                await asyncio.sleep(_BUSY_S)
        return found


def check_new(answer: Appended, rows: int, again: bool) -> None:
    """RuntimeError unless all rows are durable and have numbers, and are new where they were not sent `again`."""
    if answer.rows != rows or int(np.min(answer.seq)) < 1 or (answer.firsts is not None and not again):
        raise RuntimeError(f"not an ack of {rows} new messages: {answer}")


class HistoryLoader(EngineUser):
    """Sends the load."""

    def __init__(self, namespace: str, manifest: Manifest, settings: Settings, conversations: int, number: int) -> None:
        super().__init__(namespace, manifest, settings, number)
        self._messages = SkewedMessages(conversations, manifest.shards, seed=time.time_ns() + number)
        text()  # made now, not within the measurement

    async def load(self, rows: int, batch_rows: int, window: int) -> tuple[float, float]:
        """Send `rows` messages, `window` requests in flight: when the first was sent and the last acked (monotonic)."""
        left = rows
        began = time.monotonic()

        async def line() -> None:
            nonlocal left
            while left > 0:
                taken = min(batch_rows, left)
                left -= taken
                await self.send(self._messages.batches(taken))

        await asyncio.gather(*(line() for _ in range(window)))
        return began, time.monotonic()

    async def pace(self, batch_rows: int, first: float, interval_s: float, count: int) -> list[float]:
        """Send requests at first, first + interval, ... whether or not acks come: seconds of each, from when it was
        due."""

        async def one(when: float, batches: dict[int, pa.RecordBatch]) -> float:
            await self.send(batches)
            return time.monotonic() - when

        waiting: list[asyncio.Task[float]] = []
        for i in range(count):
            when = first + i * interval_s
            batches = self._messages.batches(batch_rows)
            await asyncio.sleep(max(0.0, when - time.monotonic()))
            waiting.append(asyncio.create_task(one(when, batches)))
        return list(await asyncio.gather(*waiting))

    async def single_commits(self, sends: Sequence[Send]) -> list[tuple[int, int]]:
        """Messages one after the other, so each in a segment of its own: (number, log position) of each."""
        found: list[tuple[int, int]] = []
        for send in sends:
            sent = await self.engine.send(send)
            answer = sent.answer
            if isinstance(answer, Refusal):
                raise RuntimeError(f"not an ack: {answer}")
            own = answer.slice(sent.row, 1)
            found.append((int(own.seqs()[0]), own.log_position))
        return found


def marks_of(names: Sequence[str], count: int, seed: int) -> list[Send]:
    """Single messages to send now and again much later, with the same ids."""
    rng = np.random.default_rng(seed)
    return [
        Send(
            names[i % len(names)], rng.bytes(ID_BYTES), "marker", None, None, None, b"mark %d " % i + b"." * BODY_BYTES
        )
        for i in range(count)
    ]


def batch_of(sends: Sequence[Send]) -> pa.RecordBatch:
    """The same as one request's batch."""
    return record_batch(sends)
