"""What is asked over a live connection and waits for its answer: sends, pulls, read marks.

Owns which asks are open, that an ask without an answer is asked again over the next connection with the same content,
which one is to blame where the server could not read a frame, and what a refusal means. Does not own connections
(`imray.client.live_driver`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from imray.client.call import Environment
from imray.client.errors import AuthError, ConflictError, ServerError, UnknownOutcomeError, fresh
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
    last: str = "no turn or no connection yet"
    """Why the last try came to nothing."""
    again: asyncio.TimerHandle | None = field(default=None, repr=False)


class Asks:
    """The open asks of one session. `write` puts one on the wire, where a connection is up; else it does nothing.
    `is_subscribing`: whether a subscribe is out.

    Who is to blame for a frame that the server could not read it does not say, and the connection is gone. What was out
    goes out again, one ask at a time and beside nothing else: the one that ends a connection alone is refused. Until
    then everything else waits."""

    def __init__(
        self,
        env: Environment,
        new_ref: Callable[[], int],
        write: Callable[[LiveAsk], None],
        is_subscribing: Callable[[], bool],
    ) -> None:
        self._env = env
        self._new_ref = new_ref
        self._write = write
        self._open: dict[int, LiveAsk] = {}
        self._room = asyncio.Semaphore(ASKS_MAX)
        self._is_subscribing = is_subscribing
        self._suspects: list[LiveAsk] = []
        self.is_careful = False
        """A frame was malformed, and it is not found out yet why."""
        self._is_clean = True
        """Over this connection nothing of what was written was given up without an answer."""
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
            tries = max(1, ask.tries)  # the first connection may still be on its way
            detail = f"no answer within {self._env.timeout_s:g} s, {tries} tries; the last: {ask.last}"
            raise _given_up(ask, detail) from e

    def answered(self, ref: int, item: Mapping[str, Any]) -> bool:
        """An answer came; whether somebody waits for it."""
        ask = self._open.pop(ref, None)
        if ask is None or ask.answer.done():
            return False
        ask.answer.set_result(item)
        self._clear(ask)
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
        self._clear(ask)
        return True

    def called_malformed(self, detail: str) -> None:
        """The server could not read something of what is out, and closes the connection. Before `disconnected`."""
        out = [ask for ask in self if ask.is_written and not ask.answer.done()]
        if self.is_careful and self._is_clean and len(out) == 1 and not self._is_subscribing():
            out[0].answer.set_exception(InvalidError(f"the server cannot read it: {detail}"))
            self._suspects.remove(out[0])
            return
        self.is_careful = True
        self._suspects += [ask for ask in out if ask not in self._suspects]

    def disconnected(self) -> None:
        """What was written and has no answer may have been done or not."""
        self._is_clean = True
        for ask in self:
            if ask.is_written:
                ask.is_written = False
                ask.may_be_stored |= ask.writes
                ask.last = "the connection was lost"

    def unreachable(self, reason: str, was_up: bool) -> None:
        """No connection could be made, or (`was_up`) it has ended: that is why nothing was answered."""
        for ask in self:
            if not ask.is_written:
                ask.last = reason
                ask.tries += not was_up  # what was written was counted then

    def go_on(self) -> None:
        """A connection is up, or something of it was answered. Everything that is open goes out, in its order; what
        waits for a moment of its own waits on."""
        if self.is_careful:
            if self._is_subscribing():
                return
            if self._suspects:
                self._put(self._suspects[0])
                return
            self.is_careful = False
        for ask in self:
            self._put(ask)

    def fail(self, error: ImrayError) -> None:
        """The session is over: for what is open, and for what is asked from now on."""
        self._over = error
        for ask in self:
            if not ask.answer.done():
                ask.answer.set_exception(_cut_short(ask, error))

    def _put(self, ask: LiveAsk) -> None:
        if ask.again is None and not ask.is_written and not ask.answer.done():
            self._write(ask)

    def _clear(self, ask: LiveAsk) -> None:
        """The server has read it, or nobody waits for it any more: the next one."""
        if ask in self._suspects:
            self._suspects.remove(ask)
            self.go_on()

    def _write_again(self, ask: LiveAsk) -> None:
        ask.again = None
        if not self.is_careful:
            self._put(ask)

    async def _answer_to(self, ask: LiveAsk) -> Mapping[str, Any]:
        if self._over is not None:
            raise _cut_short(ask, self._over)
        self._open[ask.ref] = ask
        try:
            if not self.is_careful:
                self._put(ask)
            return await ask.answer
        finally:
            self._open.pop(ask.ref, None)
            if ask.is_written and ask.answer.cancelled():
                self._is_clean = False
            self._clear(ask)
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
    return _given_up(ask, str(error)) if ask.may_be_stored or (ask.writes and ask.is_written) else fresh(error)


def end_of(status: int, detail: str, url: str) -> ImrayError:
    """The error for a connection, or what goes over it, that will not come back by itself."""
    if status in (401, 403):
        return AuthError(detail)
    return ServerError(f"{url}: {detail}; is there an imray server, with live delivery?")


def end_of_conversation(status: int, detail: str, url: str) -> ImrayError:
    """The error for a conversation that the server does not let be followed."""
    is_callers = 400 <= status < 500 and status not in (401, 403)
    return InvalidError(detail) if is_callers else end_of(status, detail, url)


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
