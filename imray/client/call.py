"""One call: what to ask, when to ask again, when to give up. No I/O: a driver carries the steps out.

A call is a generator. It yields an `HttpRequest` and is sent the `HttpResponse` or `NoAnswer`; it yields a `Pause`
and is sent None once it is over; it returns the call's result. The same calls serve the async and the sync client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

import orjson

from imray.client.errors import AuthError, ConflictError, Outcomes, ServerError, UnknownOutcomeError
from imray.core.errors import ImrayError, InvalidError, UnavailableError

R = TypeVar("R")
RETRIED_STATUS = frozenset({408, 429, 502, 503, 504})
_UNKNOWN_STATUS = frozenset({502, 504})
"""The server, or what stands before it, does not know whether the request was carried out."""
_DOUBLINGS_MAX = 30
_EXCERPT_CHARS_MAX = 200


@dataclass(frozen=True)
class RetryPolicy:
    """How a call is tried again until its deadline."""

    try_timeout_s: float = 10.0
    """One try's share of the deadline: a server that hangs must leave time for another."""
    pause_s_min: float = 0.05
    pause_s_max: float = 2.0
    """The pause before a retry is random between 0 and a ceiling that doubles from the minimum to the maximum, so
    that clients that failed together do not come back together. A Retry-After is waited for in full before it."""


@dataclass(frozen=True)
class HttpRequest:
    """Send this; wait for the answer `timeout_s` at most. `path` is percent-encoded."""

    method: str
    path: str
    timeout_s: float
    params: Mapping[str, str | int] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pause:
    """Wait."""

    pause_s: float


@dataclass(frozen=True)
class HttpResponse:
    """A whole answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class NoAnswer:
    """No whole answer came; the server may have done what was asked or not."""

    reason: str


Call = Generator[HttpRequest | Pause, HttpResponse | NoAnswer | None, R]


@dataclass(frozen=True)
class Environment:
    """What a call takes from outside, passed in so that tests decide it."""

    timeout_s: float
    policy: RetryPolicy
    clock_s: Callable[[], float]
    """A monotonic clock, for deadlines."""
    unix_ms: Callable[[], int]
    random: Callable[[], float]
    """Uniform in [0, 1)."""
    random_bytes: Callable[[int], bytes]


class Attempts:
    """The tries of one call up to its deadline, and what is known when they end.

    `open_ids` are the messages without a final outcome, `outcomes` what is known of all; `lost` is told of every
    try after which it is unknown whether the server wrote."""

    def __init__(
        self,
        env: Environment,
        open_ids: Callable[[], tuple[str, ...]] = tuple,
        outcomes: Callable[[], Outcomes] = lambda: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._env = env
        self._deadline_s = env.clock_s() + env.timeout_s
        self._open_ids = open_ids
        self._outcomes = outcomes
        self._lost = lost
        self._may_have_written = False
        self._tries = 0

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Call[HttpResponse]:
        """The first answer that is not a request to come back. Raises UnavailableError at the deadline."""
        while True:
            left_s = self._deadline_s - self._env.clock_s()
            reply = yield HttpRequest(
                method=method,
                path=path,
                timeout_s=min(left_s, self._env.policy.try_timeout_s),
                params=params or {},
                content=content,
                headers=headers or {},
            )
            if isinstance(reply, HttpResponse):
                if reply.status not in RETRIED_STATUS:
                    return reply
                if reply.status in _UNKNOWN_STATUS:
                    self._note_lost(method)
                yield from self.pause(problem_of(reply)[0], self._retry_after_s(reply))
            else:
                assert reply is not None, "the driver answers a request with a response or NoAnswer"
                self._note_lost(method)
                yield from self.pause(reply.reason, 0.0)

    def pause(self, reason: str, retry_after_s: float = 0.0) -> Call[None]:
        """Wait before the next try; raises UnavailableError at once where the deadline would pass meanwhile."""
        policy = self._env.policy
        ceiling_s = min(policy.pause_s_max, policy.pause_s_min * 2 ** min(self._tries, _DOUBLINGS_MAX))
        self._tries += 1
        pause_s = retry_after_s + self._env.random() * ceiling_s
        if self._env.clock_s() + pause_s >= self._deadline_s:
            self._give_up(f"no answer within {self._env.timeout_s:g} s, {self._tries} tries; the last: {reason}")
        yield Pause(pause_s)
        if self._env.clock_s() >= self._deadline_s:
            self._give_up(f"no answer within {self._env.timeout_s:g} s, {self._tries} tries; the last: {reason}")

    def refuse(self, reply: HttpResponse) -> NoReturn:
        """Raise what an answer other than success means.

        After a try that may have written, "nothing was written" is true only of the retry: the error says unknown.
        After one that settled a part of a batch, the error carries what became of it."""
        detail, problem = problem_of(reply)
        ids = self._open_ids()
        error: ImrayError
        match reply.status:
            case 409:
                seq = problem.get("conv_seq")
                raise ConflictError(detail, ids[0] if ids else "", seq if isinstance(seq, int) else None)
            case 401 | 403:
                error = AuthError(detail, is_about_request=reply.status == 403)
            case status if 400 <= status < 500:
                error = InvalidError(detail)
            case _:
                raise ServerError(detail, ids)
        outcomes = self._outcomes()
        if not self._may_have_written and outcomes is None:
            raise error
        why = f"a retry was refused ({detail}), which says nothing of the tries before it"
        if ids:
            raise UnknownOutcomeError(f"{why}; send again with the same ids", ids, outcomes) from error
        raise UnavailableError(f"{why}: what was asked may hold now or not") from error

    def read(self, reply: HttpResponse, of: Callable[[Any], R]) -> R:
        """`of` the answer's JSON; ServerError where it is not what the contract says."""
        try:
            return of(orjson.loads(reply.content))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise self.not_understood(reply, e) from e

    def not_understood(self, reply: HttpResponse, why: Exception) -> ServerError:
        """The error for a success whose content is not what the contract says."""
        return ServerError(
            f"the answer (status {reply.status}) is not that of an imray server: {type(why).__name__}: {why}; "
            "check the url and what stands between",
            self._open_ids(),
        )

    def _note_lost(self, method: str) -> None:
        if method != "GET":  # a read writes nothing, answered or not
            self._may_have_written = True
            self._lost()

    def _give_up(self, detail: str) -> NoReturn:
        ids = self._open_ids()
        if ids:
            raise UnknownOutcomeError(f"{detail}; send again with the same ids", ids, self._outcomes())
        raise UnavailableError(detail)

    def _retry_after_s(self, reply: HttpResponse) -> float:
        """Seconds of a Retry-After (RFC 9110, 10.2.3: a number or a date; fractions are taken as well)."""
        text = reply.headers.get("retry-after", "")
        try:
            seconds = float(text)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - self._env.unix_ms() / 1000
            except ValueError:
                return 0.0
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def problem_of(reply: HttpResponse) -> tuple[str, dict[str, Any]]:
    """What an error answer says, and its problem document (RFC 9457), empty where it has none."""
    try:
        problem = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        problem = None
    if not isinstance(problem, dict):
        excerpt = reply.content[:_EXCERPT_CHARS_MAX].decode("utf-8", "replace")
        return f"status {reply.status}: {excerpt}", {}
    return f"status {reply.status}: {problem.get('detail') or problem.get('title') or 'no detail'}", problem
