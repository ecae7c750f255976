"""The sending half of a replay: batches in flight, each lane in its order, and what became of every row.

Owns concurrency and results. Which rows may go is `replay_plan`'s; retries are the client's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imray.cli.replay_plan import Chat, LaneBatch, Lanes, Rows
from imray.client import AsyncClient, AuthError, Outcome, Outgoing, ServerError, UnknownOutcomeError
from imray.core.errors import InvalidError, UnavailableError
from imray.core.ids import ID_BYTES

NEW = 201
STORED_BEFORE = 200
CONFLICT = 409
_OPEN = (503, 504)


class Recorder(Protocol):
    """Is told what the client does and sees, when it does."""

    def sends(self, rows: Rows) -> None: ...

    def answered(self, rows: Rows, status: Rows, seq: Rows, stable_seq: Rows) -> None: ...


@dataclass
class Acks:
    """What became of each row: the status as HTTP says it (0: not sent yet), and its number."""

    status: Rows
    seq: Rows

    @classmethod
    def none(cls, rows: int) -> Acks:
        """Nothing was sent yet."""
        return cls(np.zeros(rows, np.int64), np.full(rows, -1, np.int64))

    def count(self, status: int) -> int:
        """How many rows had this outcome."""
        return int(np.count_nonzero(self.status == status))

    @property
    def stored(self) -> npt.NDArray[np.bool_]:
        """Mask of the rows that are durable."""
        stored: npt.NDArray[np.bool_] = (self.status == NEW) | (self.status == STORED_BEFORE)
        return stored


@dataclass
class Sender:
    """Sends a chat through one client."""

    client: AsyncClient
    chat: Chat
    as_arrow: bool
    on_rows: Callable[[int], None] = lambda rows: None
    recorder: Recorder | None = None
    acks: Acks = field(init=False)

    def __post_init__(self) -> None:
        self.acks = Acks.none(len(self.chat))

    async def run(self, lanes: Lanes, concurrency: int) -> None:
        """Send everything; raises the first error, with what is stored by then in `acks`."""
        in_flight: dict[asyncio.Task[None], LaneBatch] = {}
        try:
            while True:
                while len(in_flight) < concurrency and (batch := lanes.take()) is not None:
                    in_flight[asyncio.create_task(self._send(batch.rows))] = batch
                if not in_flight:
                    return
                done, _ = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    lanes.release(in_flight.pop(task))
                    task.result()
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def _send(self, rows: Rows) -> None:
        if self.recorder is not None:
            self.recorder.sends(rows)
        try:
            if self.as_arrow:
                answer: list[Outcome] | pa.Table = await self.client.send_arrow(self._table(rows))
            else:
                answer = await self.client.send_batch(self._messages(rows))
        except UnknownOutcomeError as e:
            if e.outcomes is not None:
                self._record(rows, e.outcomes)
            raise UnavailableError(f"{self._progress()}: {e.detail}; run the same replay again, it goes on") from e
        except AuthError as e:
            raise _forbidden(e) from e
        except InvalidError as e:
            raise InvalidError(f"{self._progress()}; rows {rows[0]} to {rows[-1]} were refused: {e}") from e
        self._record(rows, answer)
        self.on_rows(len(rows))
        broken = ~np.isin(self.acks.status[rows], (NEW, STORED_BEFORE, CONFLICT))
        if broken.any():
            row = rows[broken][0]
            raise ServerError(f"{self._progress()}; row {row} was refused with status {self.acks.status[row]}")

    def _record(self, rows: Rows, answer: list[Outcome] | pa.Table) -> None:
        if isinstance(answer, pa.Table):
            status = answer.column("status").to_numpy().astype(np.int64)
            seq = answer.column("conv_seq").to_numpy().astype(np.int64)
            stable = answer.column("stable_seq").to_numpy().astype(np.int64)
        else:
            status = np.array([outcome.status for outcome in answer], np.int64)
            seq = np.array([-1 if o.conv_seq is None else o.conv_seq for o in answer], np.int64)
            stable = np.array([-1 if o.stable_seq is None else o.stable_seq for o in answer], np.int64)
        self.acks.status[rows] = status
        self.acks.seq[rows] = seq
        if self.recorder is not None:
            known = ~np.isin(status, _OPEN)
            self.recorder.answered(rows[known], status[known], seq[known], stable[known])

    def _messages(self, rows: Rows) -> list[Outgoing]:
        chat = self.chat
        texts = chat.texts.take(pa.array(rows)).to_pylist()
        return [
            Outgoing(
                chat.conversations.of(row),
                text,
                chat.client_msg_id(row),
                sender=chat.senders.of(row),
            )
            for row, text in zip(rows.tolist(), texts, strict=True)
        ]

    def _table(self, rows: Rows) -> pa.Table:
        chat = self.chat
        ids = np.frombuffer(chat.raw_ids, np.dtype((np.void, ID_BYTES)))[rows].tobytes()
        columns = {
            "conv_id": pa.array([chat.conversations.of(row) for row in rows.tolist()], pa.string()),
            "client_msg_id": pa.Array.from_buffers(pa.binary(ID_BYTES), len(rows), [None, pa.py_buffer(ids)]),
            "sender": pa.array([chat.senders.of(row) for row in rows.tolist()], pa.string()),
            "body": chat.texts.take(pa.array(rows)).cast(pa.binary()),
        }
        return pa.table(columns)

    def _progress(self) -> str:
        return f"{int(np.count_nonzero(self.acks.stored))} of {len(self.chat)} messages are stored"


def _forbidden(error: AuthError) -> AuthError:
    if "403" not in str(error):
        return error
    return AuthError(
        f"{error}: a replay names the sender of each message and needs a token with the role service "
        "(`imray token --service`)"
    )
