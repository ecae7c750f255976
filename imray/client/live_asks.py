"""What is asked over a live connection and waits for its answer: sends, pulls, read marks.

Owns which asks are open, that an ask without an answer is asked again over the next connection with the same content,
and what a refusal means. Does not own connections (`imray.client.live_driver`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from imray.client.call import Environment
from imray.client.errors import AuthError, ConflictError, ServerError, UnknownOutcomeError
from imray.core.delivery_conversation import jittered_pause_ms
from imray.core.delivery_items import ErrorHeard
from imray.core.errors import ImrayError, InvalidError, UnavailableError

_RETRIED_STATUS = frozenset({408, 425, 429, 502, 503, 504})
_UNKNOWN_STATUS = frozenset({502, 504})
ASKS_MAX = 1_000
"""Asks in flight over one connection; half of what a gateway takes. More wait for their turn, within their deadline."""


@dataclass(eq=False)
class LiveAsk:
    """One question: `item` without its ref."""

    item: dict[str, Any]
    ref: int
    answer: asyncio.Future[Mapping[str, Any]]
    msg_ids: tuple[str, ...] = ()
    """Of a send: the message, whose outcome is unknown as long as it is not answered."""
    writes: bool = True
    """False: it changes nothing, answered or not."""
    is_written: bool = False
    """It went out over the connection that counts."""
    may_be_stored: bool = False
    """An earlier try may have done what was asked."""
    tries: int = 0
    last: str = "no connection"
    """Why the last try came to nothing."""
    again: asyncio.TimerHandle | None = field(default=None, repr=False)


class Asks:
    """The open asks of one session. `write` puts one on the wire, where a connection is up; else it does nothing."""

    def __init__(self, env: Environment, new_ref: Callable[[], int], write: Callable[[LiveAsk], None]) -> None:
        self._env = env
        self._new_ref = new_ref
        self._write = write
        self._open: dict[int, LiveAsk] = {}
        self._room = asyncio.Semaphore(ASKS_MAX)
        self._over: ImrayError | None = None

    def __iter__(self) -> Iterator[LiveAsk]:
        """In the order in which they were asked."""
        return iter(list(self._open.values()))

    async def ask(self, item: dict[str, Any], msg_ids: tuple[str, ...] = (), writes: bool = True) -> Mapping[str, Any]:
        """The answer's item. Raises what a refusal means, and UnavailableError (of a send UnknownOutcomeError) where
        none came in time."""
        ask = LiveAsk(item, self._new_ref(), asyncio.get_running_loop().create_future(), msg_ids, writes)
        try:
            async with asyncio.timeout(self._env.timeout_s):
                async with self._room:
                    return await self._answer_to(ask)
        except TimeoutError as e:
            detail = f"no answer within {self._env.timeout_s:g} s, {ask.tries} tries; the last: {ask.last}"
            raise _given_up(ask, detail) from e

    def answered(self, ref: int, item: Mapping[str, Any]) -> bool:
        """An answer came; whether somebody waits for it."""
        ask = self._open.pop(ref, None)
        if ask is None or ask.answer.done():
            return False
        ask.answer.set_result(item)
        return True

    def refused(self, error: ErrorHeard, item: Mapping[str, Any]) -> bool:
        """A refusal came; whether it is of an ask. One that is only for now is asked again."""
        ask = self._open.get(error.ref) if error.ref is not None else None
        if ask is None:
            return False
        ask.last = f"status {error.status}: {error.detail}"
        ask.is_written = False
        if error.status in _RETRIED_STATUS:
            ask.may_be_stored |= ask.writes and error.status in _UNKNOWN_STATUS
            policy = self._env.policy
            pause_ms = jittered_pause_ms(
                int(policy.pause_s_min * 1000), int(policy.pause_s_max * 1000), ask.tries, self._env.random()
            )
            pause_s = (error.retry_after_ms + pause_ms) / 1000
            ask.again = asyncio.get_running_loop().call_later(pause_s, self._write_again, ask)
        elif not ask.answer.done():
            ask.answer.set_exception(refusal_of(ask, error, item.get("conv_seq")))
        return True

    def disconnected(self) -> None:
        """What was written and has no answer may have been done or not."""
        for ask in self:
            if ask.is_written:
                ask.is_written = False
                ask.may_be_stored |= ask.writes
                ask.last = "the connection was lost"

    def unreachable(self, reason: str) -> None:
        """No connection could be made, or it has ended: that is why nothing was answered."""
        for ask in self:
            if not ask.is_written:
                ask.last = reason

    def connected(self) -> None:
        """Everything that is open goes out, in its order; what waits for a moment of its own waits on."""
        for ask in self:
            if ask.again is None:
                self._write(ask)

    def fail(self, error: ImrayError) -> None:
        """The session is over: for what is open, and for what is asked from now on."""
        self._over = error
        for ask in self:
            if not ask.answer.done():
                ask.answer.set_exception(_cut_short(ask, error))

    def _write_again(self, ask: LiveAsk) -> None:
        ask.again = None
        self._write(ask)

    async def _answer_to(self, ask: LiveAsk) -> Mapping[str, Any]:
        if self._over is not None:
            raise _cut_short(ask, self._over)
        self._open[ask.ref] = ask
        try:
            self._write(ask)
            return await ask.answer
        finally:
            self._open.pop(ask.ref, None)
            if ask.again is not None:
                ask.again.cancel()


def _given_up(ask: LiveAsk, detail: str) -> UnavailableError:
    if ask.msg_ids:
        return UnknownOutcomeError(f"{detail}; send again with the same ids", ask.msg_ids)
    return UnavailableError(detail)


def _cut_short(ask: LiveAsk, error: ImrayError) -> ImrayError:
    """What the end of the session means for an ask. It is no refusal of what was asked."""
    if isinstance(error, ServerError):
        return ServerError(str(error), ask.msg_ids)
    return _given_up(ask, str(error)) if ask.may_be_stored or (ask.writes and ask.is_written) else error


def refusal_of(ask: LiveAsk, error: ErrorHeard, conv_seq: object) -> ImrayError:
    """What a final refusal means: as over HTTP (`imray.client.call.Attempts.refuse`)."""
    detail = f"status {error.status}: {error.detail}"
    if error.status == 409 and ask.msg_ids:
        return ConflictError(detail, ask.msg_ids[0], conv_seq if isinstance(conv_seq, int) else None)
    refusal: ImrayError
    if error.status in (401, 403):
        refusal = AuthError(detail, is_about_request=error.status == 403)
    elif 400 <= error.status < 500:
        refusal = InvalidError(detail)
    else:
        return ServerError(detail, ask.msg_ids)
    if ask.may_be_stored:
        return _given_up(ask, f"a retry was refused ({detail}), which says nothing of the tries before it")
    return refusal
