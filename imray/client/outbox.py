"""An outbox: a message that is given to it gets its number, whatever happens to this process in between.

Owns the rule: on disk before the first try, gone with the final answer, sent again with the same id until then, and in
the order of a conversation. Works over every client that has a `send`: `AsyncClient`, `AsyncLive`, `Client`, `Live`.
Does not own the file (`imray.client.outbox_store`) or the tries of one send.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self
from weakref import WeakValueDictionary

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
        self._callers = _Callers(on_answer)
        self._env = _environment()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By conversation, as long as somebody holds one or waits."""

    async def send(self, conv_id: str, body: str, **fields: Any) -> Ack:
        """As the client's `send`, after everything of the conversation that waits.

        UnavailableError, ServerError, AuthError about the token: the message is kept; so it is where this is cancelled.
        Other errors are final. BusyError: the outbox has no room, and nothing was sent."""
        message = fields_of(Outgoing(conv_id=conv_id, body=body, **fields), self._env)
        caller = self._callers.join(conv_id, str(message["client_msg_id"]))
        try:
            row = await asyncio.to_thread(self._store.put, *caller.key, message)
            async with self._turn_of(conv_id):
                if not caller.is_answered:
                    await self._send_rows(await asyncio.to_thread(self._store.rows, conv_id, row.n))
            return caller.ack()
        finally:
            self._callers.leave(caller)

    async def resend(self) -> list[OutboxAnswer]:
        """Send everything that waits: in order within a conversation, up to the first that gets no final answer. What
        became of each that was tried."""
        conversations = dict.fromkeys(row.conv_id for row in await asyncio.to_thread(self._store.rows))
        room = asyncio.Semaphore(_CONVERSATIONS_AT_ONCE)

        async def work(conv_id: str) -> list[OutboxAnswer]:
            async with room, self._turn_of(conv_id):
                answers = await self._send_rows(await asyncio.to_thread(self._store.rows, conv_id))
            return answers

        done = await asyncio.gather(*(work(conv_id) for conv_id in conversations))
        return [answer for answers in done for answer in answers]

    async def waiting(self) -> list[Outgoing]:
        """What has no final answer yet, in order."""
        return [_message_of(row) for row in await asyncio.to_thread(self._store.rows)]

    async def aclose(self) -> None:
        """Give the file back. What waits stays in it."""
        await asyncio.to_thread(self._store.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _turn_of(self, conv_id: str) -> asyncio.Lock:
        return self._turns.setdefault(conv_id, asyncio.Lock())

    async def _send_rows(self, rows: list[OutboxRow]) -> list[OutboxAnswer]:
        answers: list[OutboxAnswer] = []
        for row in rows:
            message = _message_of(row)
            try:
                answer = OutboxAnswer(message, await self._client.send(**vars(message)), None)
            except ImrayError as e:
                answer = OutboxAnswer(message, None, e)
            answers.append(answer)
            if answer.is_final:
                await asyncio.to_thread(self._store.remove, row)
            self._callers.tell(row, answer)
            if not answer.is_final:
                break
        return answers


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
        self._callers = _Callers(on_answer)
        self._env = _environment()
        self._turn = threading.Lock()
        """One thread sends at a time: the order of a conversation is that of its rows."""

    def send(self, conv_id: str, body: str, **fields: Any) -> Ack:
        """See `AsyncOutbox.send`."""
        message = fields_of(Outgoing(conv_id=conv_id, body=body, **fields), self._env)
        caller = self._callers.join(conv_id, str(message["client_msg_id"]))
        try:
            row = self._store.put(*caller.key, message)
            with self._turn:
                if not caller.is_answered:
                    self._send_rows(self._store.rows(conv_id, row.n))
            return caller.ack()
        finally:
            self._callers.leave(caller)

    def resend(self) -> list[OutboxAnswer]:
        """See `AsyncOutbox.resend`; one conversation after the other."""
        with self._turn:
            conversations = dict.fromkeys(row.conv_id for row in self._store.rows())
            answers = [self._send_rows(self._store.rows(conv_id)) for conv_id in conversations]
        return [answer for some in answers for answer in some]

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

    def _send_rows(self, rows: list[OutboxRow]) -> list[OutboxAnswer]:
        answers: list[OutboxAnswer] = []
        for row in rows:
            message = _message_of(row)
            try:
                answer = OutboxAnswer(message, self._client.send(**vars(message)), None)
            except ImrayError as e:
                answer = OutboxAnswer(message, None, e)
            answers.append(answer)
            if answer.is_final:
                self._store.remove(row)
            self._callers.tell(row, answer)
            if not answer.is_final:
                break
        return answers


class _Callers:
    """Who waits for the answer to which message, whoever sends it."""

    def __init__(self, on_answer: Callable[[OutboxAnswer], object] | None) -> None:
        self._on_answer = on_answer
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], list[_Caller]] = {}

    def join(self, conv_id: str, client_msg_id: str) -> _Caller:
        """Before the message is put: nobody can have sent it yet."""
        caller = _Caller((conv_id, client_msg_id))
        with self._lock:
            self._waiting.setdefault(caller.key, []).append(caller)
        return caller

    def leave(self, caller: _Caller) -> None:
        """It waits no more."""
        with self._lock:
            waiting = self._waiting[caller.key]
            waiting.remove(caller)
            if not waiting:
                del self._waiting[caller.key]

    def tell(self, row: OutboxRow, answer: OutboxAnswer) -> None:
        """An answer came."""
        with self._lock:
            waiting = list(self._waiting.get((row.conv_id, row.client_msg_id), ()))
        for caller in waiting:
            caller.answer = answer
        if not waiting and answer.is_final and self._on_answer is not None:
            self._on_answer(answer)


@dataclass(eq=False)
class _Caller:
    """One `send` that waits."""

    key: tuple[str, str]
    answer: OutboxAnswer | None = None

    @property
    def is_answered(self) -> bool:
        """Whether nothing is left to do."""
        return self.answer is not None and self.answer.is_final

    def ack(self) -> Ack:
        """What its `send` returns or raises."""
        if self.answer is None:
            raise UnavailableError("kept in the outbox, behind an earlier message that has no answer")
        if self.answer.ack is None:
            assert self.answer.error is not None
            raise self.answer.error
        return self.answer.ack


def _environment() -> Environment:
    return environment(1.0, None, time.monotonic, lambda: time.time_ns() // 1_000_000)


def _message_of(row: OutboxRow) -> Outgoing:
    return Outgoing(**row.fields)  # type: ignore[arg-type]
