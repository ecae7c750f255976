"""The opening handshake of a WebSocket, and what makes a live connection of a connection that asked for one.

Owns who may upgrade. Does not own HTTP's connection (`api.connections`), nor what comes after (`api.live_connection`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from websockets.datastructures import Headers
from websockets.exceptions import NegotiationError
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from api.auth import Caller
from api.limits import Account
from api.live_connection import LiveConnection
from api.live_formats import FORMATS, JSON
from api.live_pages import LivePages
from api.live_wire import LiveEngine
from api.problems import ProblemError
from api.watch import Watch

PATH: Final = b"/v1/ws"


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A request to become a live connection: its headers, with names in small letters, and what the connection has."""

    headers: Sequence[tuple[bytes, bytes]]
    transport: asyncio.Transport
    account: Account
    watch: Watch
    siblings: set[Any]


class LiveDoor:
    """Makes live connections. One a gateway."""

    def __init__(self, live: LiveEngine, pages: LivePages) -> None:
        self._live = live
        self._pages = pages

    def open(self, upgrade: Upgrade) -> LiveConnection:
        """Answer the handshake; the protocol that has the transport from now on. ProblemError: it is refused, and
        nothing was written."""
        caller = self._caller(upgrade.headers)
        answer, subprotocol = shake_hands(upgrade.headers)
        spoken = JSON if subprotocol is None else FORMATS[subprotocol]
        made = LiveConnection(self._live, self._pages, upgrade.account, upgrade.watch, upgrade.siblings, spoken)
        upgrade.transport.write(answer)
        made.connection_made(upgrade.transport)
        if caller is None:
            upgrade.account.rest()  # as good as new, until it says who it is
        else:
            made.admit(caller)
        return made

    def _caller(self, headers: Sequence[tuple[bytes, bytes]]) -> Caller | None:
        for name, value in headers:
            if name == b"authorization":
                auth = self._live.auth
                caller = auth.verify(value.decode("latin-1"))
                auth.rates.request(caller.sender, caller.service)
                return caller
        return None


def shake_hands(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, str | None]:
    """The answer to a handshake, and the sub-protocol that it names. ProblemError 400 or 426: it is refused."""
    known = Headers()
    for name, value in headers:
        known[name.decode("latin-1")] = value.decode("latin-1")
    machine = ServerProtocol(subprotocols=[Subprotocol(name) for name in FORMATS], select_subprotocol=_select)
    response = machine.accept(Request(PATH.decode(), known))
    if response.status_code != 101:
        detail = response.body.decode().strip().partition("\n")[0]
        raise ProblemError(426 if response.status_code == 426 else 400, "invalid", detail)
    return response.serialize(), machine.subprotocol


def _select(_machine: ServerProtocol, asked: Sequence[Subprotocol]) -> Subprotocol | None:
    """The first of the client's that is known; None where it names none."""
    for name in asked:
        if name in FORMATS:
            return name
    if asked:
        raise NegotiationError(f"no known sub-protocol: {' or '.join(FORMATS)}")
    return None
