"""One live connection without a network: a transport that keeps what is written, and frames as a client makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN
from websockets.protocol import Protocol as WebSocket

from api.auth import Authenticator
from api.limits import Limits
from api.live_connection import LiveConnection
from api.live_formats import JSON, Format
from api.live_pages import LivePages
from api.live_wire import LiveEngine
from api.turns import Pulls
from api.watch import Watch
from imray.settings import Settings
from tests.support.api_system import KEY
from tests.support.live_system import LiveBackend, token_of


class FakeTransport(asyncio.Transport):
    """Takes everything, and says that so much of it is unsent as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()
        self.unsent = 0
        self.reading = True
        self.ended = False
        self.closed = False

    def write(self, data: Any) -> None:
        self.data += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class Peer:
    """A client, and the server's connection that it speaks with. Must be made inside an event loop."""

    def __init__(self, engine: LiveBackend, auth: dict[str, str], spoken: Format = JSON) -> None:
        self.format = spoken
        self.engine: Any = engine
        self.transport = FakeTransport()
        self.limits = Limits(engine.settings)
        account = self.limits.account("127.0.0.1")
        account.admit(self.transport.abort)
        live = LiveEngine(cast(Any, engine), Authenticator({**auth, "development": "1"}, engine.settings))
        pages = LivePages(cast(Any, engine), Pulls(1, engine.settings))
        self.siblings: set[Any] = set()
        self.server = LiveConnection(live, pages, account, Watch(engine.settings), self.siblings, spoken)
        self.server.connection_made(self.transport)
        self._socket = WebSocket(CLIENT, state=OPEN, max_size=None)
        self._read = 0
        self.frame_bytes_max = 0
        """Of the largest frame that was heard."""

    def frame(self, items: list[dict[str, Any]] | bytes) -> bytes:
        """What a client would send."""
        data = items if isinstance(items, bytes) else self.format.encode(items)
        return Frame(Opcode(self.format.opcode), data).serialize(mask=True)

    def say(self, *items: dict[str, Any]) -> None:
        """Send one frame."""
        self.server.data_received(self.frame(list(items)))

    async def heard(self) -> list[dict[str, Any]]:
        """Items since the last call, once the event loop has nothing to do at once any more."""
        for _ in range(20):
            await asyncio.sleep(0)
        new = bytes(self.transport.data[self._read :])
        self._read = len(self.transport.data)
        self._socket.receive_data(new)
        items: list[dict[str, Any]] = []
        for frame in self._socket.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG):
                continue
            assert frame.opcode == self.format.opcode
            assert isinstance(frame.data, bytes | bytearray)
            self.frame_bytes_max = max(self.frame_bytes_max, len(frame.data))
            items += (msgspec.json if self.format is JSON else msgspec.msgpack).decode(bytes(frame.data))
        return items

    @property
    def close_code(self) -> int | None:
        """With which the server closed; None: it has not."""
        received = self._socket.close_rcvd
        return None if received is None else received.code


def peer_maker(folder: Path) -> Callable[..., Peer]:
    """Makes peers, with settings by name."""
    (folder / "key").write_bytes(KEY)

    def make(spoken: Format = JSON, **settings: Any) -> Peer:
        engine = LiveBackend(replace(Settings(), **settings))
        return Peer(engine, {"key_file": str(folder / "key")}, spoken)

    return make


async def known(peer: Peer, sender: str = "ada") -> Peer:
    """Whose token was taken."""
    peer.say({"t": "auth", "token": token_of(sender)})
    (welcome,) = await peer.heard()
    assert (welcome["t"], welcome["sender"]) == ("welcome", sender)
    return peer
