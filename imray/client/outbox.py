"""An outbox: a message that is given to it gets its number, whatever happens to this process in between.

Owns the rule: on disk before the first try, gone with the final answer, sent again with the same id until then, and in
the order of a conversation. Works over every client that has a `send`: `AsyncClient`, `AsyncLive`, `Client`, `Live`.
Does not own the file (`imray.client.outbox_store`) or the tries of one send.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from imray.client.call import Environment
from imray.client.calls import fields_of
from imray.client.errors import AuthError, ConflictError
from imray.client.models import Ack, Outgoing
from imray.client.outbox_store import BYTES_MAX, ROWS_MAX, OutboxRow, OutboxStore
from imray.client.wire import environment
from imray.core.errors import ImrayError, InvalidError, UnavailableError

_CONVERSATIONS_AT_ONCE = 16
"""Resent side by side: enough to fill a connection, few enough to leave room for new sends."""


class SendsAsync(Protocol):
    """A client for asyncio."""

    def send(self, conv_id: str, body: str, **fields: Any) -> Awaitable[Ack]: ...


class Sends(Protocol):
    """A client that blocks."""

    def send(self, conv_id: str, body: str, **fields: Any) -> Ack: ...


@dataclass(frozen=True)
class OutboxAnswer:
    """What became of a message: `ack` where it is stored, else `error`."""

    message: Outgoing
    ack: Ack | None
    error: ImrayError | None

    @property
    def is_final(self) -> bool:
        """Whether it has left the outbox; else it is sent again another time."""
        return self.error is None or is_final(self.error)


def is_final(error: ImrayError) -> bool:
    """Whether an error is the server's last word on a message: sent again it would be refused again. Without an answer,
    or where the token or the server is at fault, the message is kept."""
    if isinstance(error, AuthError):
        return error.is_about_request
    return isinstance(error, ConflictError | InvalidError)


class AsyncOutbox:
    """For asyncio. One file for each account; one process for each file.

    Call `resend` after the start, and whenever the server is there again."""

    def __init__(
        self,
        path: Path | str,
        client: SendsAsync,
        *,
        on_answer: Callable[[OutboxAnswer], object] | None = None,
        rows_max: int = ROWS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """`on_answer` is told of every message that gets a final answer while nobody waits for its `send`.

        Raises InvalidError where another process uses the file, or where it is no outbox."""
        self._store = OutboxStore(path, rows_max, bytes_max)
        self._client = client
        self._on_answer = on_answer
        self._env = _environment()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def send(self, conv_id: str, body: str, **fields: Any) -> Ack:
        """As the client's `send`, after everything of the conversation that waits.

        UnavailableError, ServerError, AuthError about the token: the message is kept; so it is where this is cancelled.
        Other errors are final. BusyError: the outbox has no room, and nothing was sent."""
        row = await asyncio.to_thread(_put, self._store, Outgoing(conv_id=conv_id, body=body, **fields), self._env)
        async with self._turns[conv_id]:
            answers = await self._send_rows(await asyncio.to_thread(self._store.rows, conv_id, row.n))
        self._forget_turn(conv_id)
        return _answer_for(row, answers, self._on_answer)

    async def resend(self) -> list[OutboxAnswer]:
        """Send everything that waits: in order within a conversation, up to the first that gets no final answer. What
        became of each that was tried."""
        conversations = dict.fromkeys(row.conv_id for row in await asyncio.to_thread(self._store.rows))
        room = asyncio.Semaphore(_CONVERSATIONS_AT_ONCE)

        async def work(conv_id: str) -> list[OutboxAnswer]:
            async with room, self._turns[conv_id]:
                answers = await self._send_rows(await asyncio.to_thread(self._store.rows, conv_id))
            self._forget_turn(conv_id)
            return [answer for _, answer in answers]

        done = await asyncio.gather(*(work(conv_id) for conv_id in conversations))
        return [answer for answers in done for answer in answers]

    async def waiting(self) -> list[Outgoing]:
        """What has no final answer yet, in order."""
        return [Outgoing(**row.fields) for row in await asyncio.to_thread(self._store.rows)]  # type: ignore[arg-type]

    async def aclose(self) -> None:
        """Give the file back. What waits stays in it."""
        await asyncio.to_thread(self._store.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send_rows(self, rows: list[OutboxRow]) -> list[tuple[OutboxRow, OutboxAnswer]]:
        answers: list[tuple[OutboxRow, OutboxAnswer]] = []
        for row in rows:
            message = _message_of(row)
            try:
                answer = OutboxAnswer(message, await self._client.send(**vars(message)), None)
            except ImrayError as e:
                answer = OutboxAnswer(message, None, e)
            answers.append((row, answer))
            if not answer.is_final:
                break
            await asyncio.to_thread(self._store.remove, row)
        return answers

    def _forget_turn(self, conv_id: str) -> None:
        turn = self._turns[conv_id]
        if not turn.locked() and not getattr(turn, "_waiters", None):
            del self._turns[conv_id]


class Outbox:
    """For programs without asyncio: methods and errors are those of `AsyncOutbox`. Threads may share it."""

    def __init__(
        self,
        path: Path | str,
        client: Sends,
        *,
        on_answer: Callable[[OutboxAnswer], object] | None = None,
        rows_max: int = ROWS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """See `AsyncOutbox`."""
        self._store = OutboxStore(path, rows_max, bytes_max)
        self._client = client
        self._on_answer = on_answer
        self._env = _environment()
        self._turn = threading.Lock()
        """One thread sends at a time: the order of a conversation is that of its rows."""

    def send(self, conv_id: str, body: str, **fields: Any) -> Ack:
        """See `AsyncOutbox.send`."""
        row = _put(self._store, Outgoing(conv_id=conv_id, body=body, **fields), self._env)
        with self._turn:
            answers = self._send_rows(self._store.rows(conv_id, row.n))
        return _answer_for(row, answers, self._on_answer)

    def resend(self) -> list[OutboxAnswer]:
        """See `AsyncOutbox.resend`; one conversation after the other."""
        with self._turn:
            conversations = dict.fromkeys(row.conv_id for row in self._store.rows())
            answers = [self._send_rows(self._store.rows(conv_id)) for conv_id in conversations]
        return [answer for some in answers for _, answer in some]

    def waiting(self) -> list[Outgoing]:
        """See `AsyncOutbox.waiting`."""
        return [_message_of(row) for row in self._store.rows()]

    def close(self) -> None:
        """Give the file back. What waits stays in it."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_rows(self, rows: list[OutboxRow]) -> list[tuple[OutboxRow, OutboxAnswer]]:
        answers: list[tuple[OutboxRow, OutboxAnswer]] = []
        for row in rows:
            message = _message_of(row)
            try:
                answer = OutboxAnswer(message, self._client.send(**vars(message)), None)
            except ImrayError as e:
                answer = OutboxAnswer(message, None, e)
            answers.append((row, answer))
            if not answer.is_final:
                break
            self._store.remove(row)
        return answers


def _environment() -> Environment:
    return environment(1.0, None, time.monotonic, lambda: time.time_ns() // 1_000_000)


def _put(store: OutboxStore, message: Outgoing, env: Environment) -> OutboxRow:
    """Keep a message, with an id. What the server could only refuse is refused here."""
    fields = fields_of(message, env)
    return store.put(message.conv_id, str(fields["client_msg_id"]), fields)


def _message_of(row: OutboxRow) -> Outgoing:
    return Outgoing(**row.fields)  # type: ignore[arg-type]


def _answer_for(
    row: OutboxRow,
    answers: list[tuple[OutboxRow, OutboxAnswer]],
    on_answer: Callable[[OutboxAnswer], object] | None,
) -> Ack:
    """A row's own answer, out of those of all rows that were sent with it; the others are told to `on_answer`."""
    own: OutboxAnswer | None = None
    for sent, answer in answers:
        if sent.n == row.n:
            own = answer
        elif on_answer is not None and answer.is_final:
            on_answer(answer)
    if own is None:  # an earlier one has no answer, or another call has sent this one and told its own caller
        before = answers[-1][1].error if answers else None
        raise UnavailableError(f"kept in the outbox, behind an earlier message: {before or 'it was sent elsewhere'}")
    if own.ack is None:
        assert own.error is not None
        raise own.error
    return own.ack
