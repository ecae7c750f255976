"""How a connection of HTTP becomes a live one: the request that asks for it, and the change of protocols.

Owns that moment. Does not own either protocol (`api.connections`, `api.live_connection`), nor who may upgrade
(`api.live_handshake`).
"""

from __future__ import annotations

import asyncio
import sys
from typing import ClassVar

import httptools

from api.connections import GuardedProtocol
from api.limits import Limits
from api.live_handshake import PATH, LiveDoor, Upgrade
from api.problems import ProblemError
from api.watch import Watch


class LiveProtocol(GuardedProtocol):
    """A connection that may become a WebSocket, or give an answer without an end."""

    live: ClassVar[LiveDoor]

    def connection_lost(self, exc: Exception | None) -> None:
        self.account.end_stream()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """See uvicorn: the server ends."""
        super().shutdown()
        self.account.end_stream()

    def _may_upgrade(self) -> bool:
        """Where no request before it waits for its answer, and the client has read what there was: two protocols cannot
        write at once, and the new one would never hear that the transport is blocked."""
        at_rest = (self._running is None or self._running.response_complete) and not self.flow.write_paused
        asked = self.url.partition(b"?")[0] == PATH and self.parser.get_method() == b"GET"
        modern = self.parser.get_http_version() == "1.1"
        return asked and modern and at_rest and self._get_upgrade() == b"websocket"

    def _should_upgrade(self) -> bool:
        return self._upgrades

    def handle_websocket_upgrade(self) -> None:
        """The parser has stopped behind the request, by an exception. What came after it is the new protocol's."""
        stopped = sys.exc_info()[1]
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        rest = self._fed[stopped.args[0] :]
        upgrade = Upgrade(self.headers, self.transport, self.account, self.watch, self.connections)
        try:
            made = self.live.open(upgrade)
        except ProblemError as e:
            self._upgrades = False
            self._refuse(e)
            return
        self.connections.discard(self)
        self.watch.leave(self)
        self.transport.set_protocol(made)
        if rest:
            made.data_received(rest)


def guarded(limits: Limits, live: LiveDoor | None = None) -> type[asyncio.Protocol]:
    """The protocol class of one gateway. `live` takes the connections that become WebSockets; None: none does."""
    made = {"limits": limits, "watch": Watch(limits.settings)}
    if live is None:
        return type("BoundProtocol", (GuardedProtocol,), made)
    return type("BoundProtocol", (LiveProtocol,), {**made, "live": live})
