"""What callers may hold of a gateway: connections, and bytes in flight. Counts only; `api.connections` acts on it.

Bytes in flight are request bodies that arrive and answers that are not read yet. Each is charged to the peer's address,
and to the token's subject instead as soon as that is known and matters.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Protocol

from starlette.types import Receive, Scope, Send

from api.problems import ProblemError
from imray.settings import Settings

SMALL_BYTES = 64 * 1024
"""An answer of this size is not counted: a single send stays cheap. What that leaves out is bounded by the number of
connections."""
CALLING: ContextVar[Account | None] = ContextVar("CALLING", default=None)
"""The account of the connection whose request is in work."""

_IPV6_PREFIX = 64
"""Who has one IPv6 address has 2^64 of them."""
_RETRY_AFTER_S = 1.0

Newcomers = dict["Account", Callable[[], None]]
"""Idle connections that have not made a request with a valid token yet, oldest first, and how to close each."""


class Stream(Protocol):
    """An answer without an end, as its connection sees it."""

    written: int
    """Bytes so far."""

    def end(self) -> None:
        """Nothing more: the connection is lost, or the server ends."""


class Usage:
    """What one peer or one subject holds."""

    __slots__ = ("accounts", "bytes", "connections", "key", "newcomers")

    def __init__(self, key: str) -> None:
        self.key = key
        self.connections = 0
        self.accounts = 0
        """How often an account names it, as its peer or as who pays."""
        self.bytes = 0
        self.newcomers: Newcomers = {}


class Limits:
    """One gateway's counts. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connections = 0
        self.bytes = 0
        self.newcomers: Newcomers = {}
        self._usages: dict[str, Usage] = {}

    def account(self, host: str) -> Account:
        """A new connection's."""
        return Account(self, self.usage(f"peer {_network(host)}"))

    def usage(self, key: str) -> Usage:
        """What a caller holds; nothing yet where it is not known."""
        found = self._usages.get(key)
        if found is None:
            found = Usage(key)
            self._usages[key] = found
        return found

    def forget(self, usage: Usage) -> None:
        """Leave out a caller that holds nothing, and whom no account could charge any more."""
        if not usage.accounts:
            self._usages.pop(usage.key, None)

    def callers(self) -> list[str]:
        """Who holds something."""
        return list(self._usages)

    @property
    def full(self) -> bool:
        """All bytes in flight are given away."""
        return self.bytes >= self.settings.flight_bytes_max


class Account:
    """What one connection holds, and who pays for it."""

    __slots__ = (
        "_asked",
        "_close",
        "_counted",
        "_ended",
        "_limits",
        "_making",
        "_payer",
        "_peer",
        "_streams_over",
        "_written",
        "blocked",
        "known",
        "stream",
        "subject",
    )

    def __init__(self, limits: Limits, peer: Usage) -> None:
        self._limits = limits
        self._peer = peer
        self._payer = peer
        self._asked = 0
        self._making = 0
        self._written = 0
        self._ended = False
        self._streams_over = False
        self.blocked = False
        """The client does not read as fast as it is written to."""
        self.subject: str | None = None
        """Whom the request's token speaks for, as soon as it was checked."""
        self.known = False
        """A request with a valid token was made."""
        self.stream: Stream | None = None
        """An answer without an end that is being given."""
        self._counted = False
        self._close: Callable[[], None] | None = None
        peer.accounts += 2

    @property
    def asked(self) -> int:
        """Bytes of the request's body, as far as they came."""
        return self._asked

    def admit(self, close: Callable[[], None]) -> ProblemError | None:
        """Take the connection in, or say why it is one too many.

        The oldest that has not made a request yet makes room for it: silence keeps nobody out."""
        settings = self._limits.settings
        if self._peer.connections >= settings.connections_per_peer_max:
            if not self._peer.newcomers:
                detail = f"more than {settings.connections_per_peer_max} connections from one address: close some"
                return ProblemError(429, "too-many", detail, _RETRY_AFTER_S)
            _make_room(self._peer.newcomers)
        elif self._limits.connections >= settings.connections_max:
            if not self._limits.newcomers:
                return ProblemError(503, "busy", "too many connections: come back later", _RETRY_AFTER_S)
            _make_room(self._limits.newcomers)
        self._counted = True
        self._close = close
        self._peer.connections += 1
        self._limits.connections += 1
        self._wait(close)
        return None

    def _wait(self, close: Callable[[], None]) -> None:
        self._peer.newcomers[self] = close
        self._limits.newcomers[self] = close

    def rest(self) -> None:
        """A request is answered. Without a valid token the connection is as good as a new one while it is idle."""
        self.known = self.known or self.subject is not None
        if not self.known and self._counted and self._close is not None:
            self._wait(self._close)

    def arrive(self) -> None:
        """A request is here."""
        self._peer.newcomers.pop(self, None)
        self._limits.newcomers.pop(self, None)

    def leave(self) -> None:
        """Give the place back."""
        self.arrive()
        if self._counted:
            self._counted = False
            self._peer.connections -= 1
            self._limits.connections -= 1

    def begin(self) -> None:
        """A request: until its subject is known the peer pays."""
        self.subject = None
        if self._payer is not self._peer and not (self._asked or self._making or self._written):
            self._pay(self._peer)

    def identify(self) -> None:
        """Let the request's subject pay, if it is known."""
        if self.subject is not None and not self._ended:
            self.known = True
            self._pay(self._limits.usage(f"subject {self.subject}"))
            self.subject = None

    def take_asked(self, size: int) -> bool:
        """Charge a part of a body; False where that is over a bound (it is charged all the same)."""
        if self._ended:
            return True
        self._asked += size
        self._payer.bytes += size
        self._limits.bytes += size
        settings = self._limits.settings
        return (
            self._payer.bytes <= settings.flight_bytes_per_caller_max
            and self._limits.bytes <= settings.flight_bytes_max
        )

    def take_answer(self, size: int, always: bool) -> bool:
        """Charge an answer; False where that is over a bound: it is not charged, and must not be sent.

        A caller that holds nothing else gets its answer however large it is; `always`: any caller."""
        if self._ended:
            return True
        settings = self._limits.settings
        others = self._payer.bytes - self._asked
        over = others > 0 and others + size > settings.flight_bytes_per_caller_max
        if not always and (over or self._limits.bytes + size > settings.flight_bytes_max):
            return False
        self._making += size
        self._change(size)
        return True

    def answer_written(self, size: int) -> None:
        """The answer is with the transport: it counts on while the client does not read."""
        if self._ended:
            return
        self._making -= size
        if self.blocked:
            self._written += size
        else:
            self._change(-size)

    def charge_asked(self, size: int) -> None:
        """A request is answered: so many bytes of body are gone."""
        if not self._ended:
            self._asked -= size
            self._change(-size)

    def begin_stream(self, stream: Stream) -> None:
        """An answer without an end begins; it ends at once where nobody is there for it any more."""
        self.stream = stream
        if self._streams_over:
            stream.end()

    def end_stream(self) -> None:
        """The connection is lost, or the server ends: what streams ends, and what would begin to."""
        self._streams_over = True
        if self.stream is not None:
            self.stream.end()

    def charge_written(self) -> None:
        """The client has read everything."""
        if self._written:
            self._change(-self._written)
            self._written = 0

    def end(self) -> None:
        """The connection is closed."""
        if self._ended:
            return
        self._change(-(self._asked + self._making + self._written))
        self._ended = True
        self._asked = 0
        self.leave()
        self._payer.accounts -= 1
        self._peer.accounts -= 1
        self._limits.forget(self._payer)
        self._limits.forget(self._peer)

    def _change(self, size: int) -> None:
        self._payer.bytes += size
        self._limits.bytes += size

    def _pay(self, payer: Usage) -> None:
        held = self._asked + self._making + self._written
        before = self._payer
        before.bytes -= held
        before.accounts -= 1
        payer.bytes += held
        payer.accounts += 1
        self._payer = payer
        self._limits.forget(before)


def _make_room(newcomers: Newcomers) -> None:
    oldest = next(iter(newcomers))
    close = newcomers[oldest]
    oldest.leave()
    close()


def over_budget() -> ProblemError:
    """The refusal for bytes in flight."""
    detail = "too many bytes of requests and unread answers are in flight: read answers, send less at once, come back"
    return ProblemError(503, "busy", detail, _RETRY_AFTER_S)


def _network(host: str) -> str:
    """The address, or for IPv6 the network that one customer gets."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _IPV6_PREFIX), strict=False))


def announces_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body follows these headers, whose names are in small letters."""
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)


def body_behind_upgrade() -> ProblemError:
    """A wish for another protocol (Upgrade), with a body: the parser would take the body for that protocol's bytes, and
    what comes later for a request of its own."""
    return ProblemError(400, "invalid", "an Upgrade is not answered here: send the body without that header")


async def refuse_crowded(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in the app's place where too many requests are in work."""
    problem = ProblemError(503, "busy", "too many requests at once: come back later", _RETRY_AFTER_S)
    await problem.response()(scope, receive, send)
