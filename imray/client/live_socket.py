"""One WebSocket of a live connection: the handshake, frames out of items, items out of frames.

Owns a socket and what waits to be written to it. Does not own what items mean, nor when a connection is made
(`imray.client.live_driver`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from imray.client.live_wire import FORMATS, JSON, PATH, READ_ERRORS, LiveFormat, Welcome
from imray.client.wire import USER_AGENT
from imray.core.errors import InvalidError

_FRAME_BYTES_MAX = 16 * 1024 * 1024
"""Of a frame of the server: a page of large bodies. A larger one is not imray's."""
_CLOSE_TIMEOUT_S = 2.0
_PROTOCOL_ERROR = 1002
WAITING_BYTES_MAX = 4 * 1024 * 1024
"""What may wait to be written before signals are dropped."""


@dataclass(frozen=True)
class SocketEnd:
    """How a connection ended. `status`: the handshake was answered with it."""

    code: int | None
    reason: str
    status: int | None = None
    retry_after_s: float = 0.0


class LiveSocket:
    """A socket from its handshake to its end."""

    def __init__(self) -> None:
        self.is_welcomed = False
        self._socket: ClientConnection | None = None
        self._format: LiveFormat = JSON
        self._items_max = 1
        self._frame_bytes_max = 1
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._more = asyncio.Event()

    async def open(self, base: httpx.URL, token: str | None, timeout_s: float) -> SocketEnd | None:
        """Connect; None: it is open, else why not."""
        uri = str(base.copy_with(scheme={"http": "ws", "https": "wss"}[base.scheme], path=_path_of(base)))
        try:
            self._socket = await connect(
                uri,
                subprotocols=[Subprotocol(name) for name in FORMATS],
                additional_headers={"Authorization": f"Bearer {token}"} if token else None,
                user_agent_header=USER_AGENT,
                ssl=httpx.create_ssl_context() if base.scheme == "https" else None,  # who is trusted over HTTP
                compression=None,
                open_timeout=timeout_s,
                ping_interval=None,  # the session pings, as every client can
                close_timeout=_CLOSE_TIMEOUT_S,
                max_size=_FRAME_BYTES_MAX,
            )
        except InvalidStatus as e:
            response = e.response
            detail = _detail_of(bytes(response.body or b"")) or response.reason_phrase
            return SocketEnd(None, detail, response.status_code, _seconds(response.headers.get("Retry-After")))
        except InvalidURI as e:
            raise InvalidError(f"the url cannot be connected to: {e}") from e
        except (OSError, InvalidHandshake, TimeoutError, EOFError) as e:
            return SocketEnd(None, f"{type(e).__name__}: {e}".rstrip(": "))
        self._format = FORMATS.get(self._socket.subprotocol or "", JSON)
        return None

    async def frames(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The items of every frame; it ends with the connection."""
        assert self._socket is not None
        try:
            async for frame in self._socket:
                yield self._format.items_of(frame)
        except ConnectionClosed:
            return
        except READ_ERRORS as e:
            await self.close(_PROTOCOL_ERROR, f"not understood: {type(e).__name__}")

    @property
    def end(self) -> SocketEnd:
        """How it ended."""
        assert self._socket is not None
        return SocketEnd(self._socket.close_code, self._socket.close_reason or "the connection was lost")

    def be_welcomed(self, welcome: Welcome) -> None:
        """The server's bounds for what is written."""
        self.is_welcomed = True
        self._items_max = welcome.items_max
        self._frame_bytes_max = welcome.frame_bytes_max

    def put(self, item: Mapping[str, Any]) -> None:
        """Write an item, after what waits. InvalidError: it can never be written."""
        encoded = self._format.encoded(item)
        if len(encoded) + self._format.head_bytes_max > self._frame_bytes_max:
            raise InvalidError(f"{len(encoded)} bytes are too much for one frame of {self._frame_bytes_max}")
        self._waiting.append(encoded)
        self._waiting_bytes += len(encoded)
        self._more.set()

    @property
    def is_crowded(self) -> bool:
        """Whether much waits: what may be lost is not written."""
        return self._waiting_bytes > WAITING_BYTES_MAX

    async def write(self) -> None:
        """Write what waits, as long as the connection holds."""
        assert self._socket is not None
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._waiting:
                    await self._socket.send(self._next_frame())
        except ConnectionClosed:
            return  # whoever reads is told, too

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say good-bye, within a time."""
        if self._socket is not None:
            await self._socket.close(code, reason)

    def _next_frame(self) -> str | bytes:
        taken: list[bytes] = []
        room = self._frame_bytes_max - self._format.head_bytes_max
        while self._waiting and len(taken) < self._items_max and len(self._waiting[0]) < room:
            taken.append(self._waiting.popleft())
            room -= len(taken[-1]) + 1
        if not taken:  # one that fills a frame alone
            taken.append(self._waiting.popleft())
        self._waiting_bytes -= sum(map(len, taken))
        return self._format.frame_of(taken)


def _path_of(base: httpx.URL) -> str:
    return base.path.rstrip("/") + PATH


def _detail_of(body: bytes) -> str:
    """What a problem document says."""
    try:
        problem = JSON.decode(body)
    except READ_ERRORS:
        return ""
    return str(problem.get("detail") or problem.get("title") or "") if isinstance(problem, dict) else ""


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0  # a date: nobody sends one here
