"""The work that every system gets: one conversation, 100-byte bodies, 128-bit ids, 1% of all sends a retry.

Owns what is sent and what a right answer is. Knows no system.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa

from benchmarks.workload import ID_BYTES, bodies, conversation_names
from imray.kernels.hashing import U8
from imray.log.schema import BATCH_SCHEMA, MS, constant_text, to_ipc

IN_FLIGHT_MAX = 5_000
"""Messages that a sender has sent and not seen acked."""
RETRY_SHARE = 0.01
NO_NUMBER = -1
"""Where a number stands: the system acks, but tells no number."""
(CONV,) = conversation_names(1)


class WrongAnswerError(Exception):
    """An ack that breaks what the system is said to promise."""


@dataclass(frozen=True)
class Shape:
    """How a system is driven at its best: so many messages in a batch, so many batches in flight for each sender."""

    rows: int
    in_flight: int

    def __post_init__(self) -> None:
        if not 1 <= self.rows * self.in_flight <= IN_FLIGHT_MAX:
            raise ValueError(f"{self.in_flight} batches of {self.rows}: at most {IN_FLIGHT_MAX:,} messages in flight")


@dataclass(frozen=True)
class Batch:
    """Messages to send: `ids` (rows, 16), and a body for each. The first `retries` were sent and acked before."""

    ids: U8
    bodies: list[bytes]
    retries: int
    _stream: U8 = field(repr=False)

    @property
    def rows(self) -> int:
        return len(self.bodies)

    @cached_property
    def id_list(self) -> list[bytes]:
        """The ids, 16 bytes each."""
        flat = self.ids.tobytes()
        return [flat[i : i + ID_BYTES] for i in range(0, len(flat), ID_BYTES)]

    @property
    def arrow(self) -> U8:
        """The batch as imray takes it, an Arrow IPC stream; valid until the source makes the next batch."""
        return self._stream


class Client(Protocol):
    """One connection of a sender to a system."""

    async def send(self, batch: Batch) -> np.ndarray:
        """Number of each message (int64), in their order, once all are acked. NO_NUMBER where an ack tells none."""

    async def close(self) -> None:
        """Let the connection go, also where it is broken."""


class Source:
    """Batches for one place in flight: bodies made once, ids new, and in every other batch some of the one before.

    Not before its ack: a retry here is what a client does that missed the answer."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        made = bodies(rows, self._rng)
        self._bodies: list[bytes] = made.to_pylist()
        self._ids = np.frombuffer(bytearray(self._rng.bytes(ID_BYTES * rows)), np.uint8).reshape(rows, ID_BYTES)
        self._stream, self._at = _stream(made, self._ids)
        self._repeats = _repeats(rows)
        self._turn = 0
        self._numbers: np.ndarray | None = None

    def next(self) -> Batch:
        """The next batch. Call it when the one before has its ack."""
        every, share = self._repeats
        self._turn += 1
        retries = share if self._turn % every == 0 and self._numbers is not None else 0
        fresh = self._rng.bytes(ID_BYTES * (len(self._bodies) - retries))
        self._ids[retries:] = np.frombuffer(fresh, np.uint8).reshape(-1, ID_BYTES)
        self._stream[self._at : self._at + self._ids.size] = self._ids.reshape(-1)
        return Batch(self._ids.copy(), self._bodies, retries, self._stream)

    def acked(self, batch: Batch, numbers: np.ndarray, once: bool, numbered: bool) -> None:
        """Take note of an ack. WrongAnswerError where it does not give each message a number of its own, or a retry
        (`once`) the number that it had."""
        if len(numbers) != batch.rows:
            raise WrongAnswerError(f"{len(numbers)} answers to {batch.rows} messages")
        if numbered:
            if int(numbers.min()) < 1 or len(np.unique(numbers)) != batch.rows:
                raise WrongAnswerError("numbers are missing or stand there twice")
            before = self._numbers
            again = batch.retries if once else 0
            if before is not None and not np.array_equal(numbers[:again], before[:again]):
                raise WrongAnswerError(f"a retry got another number than the first send: {numbers[:3]}")
        self._numbers = numbers


def _repeats(rows: int) -> tuple[int, int]:
    """(every how many batches, how many rows): RETRY_SHARE of all rows on the mean."""
    if rows * RETRY_SHARE < 0.5:
        return round(1 / RETRY_SHARE), 1 if rows == 1 else rows
    return 2, round(2 * rows * RETRY_SHARE)


def _stream(texts: pa.Array, ids: U8) -> tuple[U8, int]:
    """The Arrow IPC stream of a batch, writable, and where its ids stand."""
    rows = len(texts)
    column = pa.Array.from_buffers(pa.binary(ID_BYTES), rows, [None, pa.py_buffer(ids.tobytes())])
    nothing = constant_text(None, rows)
    columns = [constant_text(CONV, rows), column, constant_text("alice", rows), nothing, nothing]
    batch = pa.record_batch([*columns, pa.nulls(rows, MS), texts], schema=BATCH_SCHEMA)
    stream = to_ipc(batch).to_pybytes()
    at = stream.find(ids.tobytes())
    assert at >= 0, "the stream holds the ids as they are"
    return np.frombuffer(bytearray(stream), np.uint8), at
