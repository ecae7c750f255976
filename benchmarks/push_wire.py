"""A WebSocket client (RFC 6455) on a raw asyncio protocol, light enough that a process has a thousand of them.

Owns the handshake and frames. Does not own what is in them, nor when to connect. It masks with zeros, so a frame is
made once for all connections; it is no client for anything but measuring and testing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from dataclasses import dataclass
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

JSON: Final = "imray.v1.json"
MSGPACK: Final = "imray.v1.msgpack"
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
_CONTINUATION: Final = 0x0
_PING: Final = 0x9
_PONG: Final = 0xA
_CONTROL: Final = 0x8
_FIN: Final = 0x80
_MASKED: Final = 0x80
_NO_MASK: Final = bytes(4)
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEAD_BYTES_MAX: Final = 16 * 1024
_FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
_NO_STATUS: Final = 1005
_ABNORMAL: Final = 1006


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame as a client sends it."""
    size = len(payload)
    first = bytes([_FIN | opcode])
    if size < 126:
        head = first + bytes([_MASKED | size])
    elif size < 1 << 16:
        head = first + bytes([_MASKED | 126]) + size.to_bytes(2, "big")
    else:
        head = first + bytes([_MASKED | 127]) + size.to_bytes(8, "big")
    return head + _NO_MASK + payload


@dataclass(frozen=True)
class Door:
    """Where connections go, and what they say first."""

    host: str
    port: int
    token: str
    subprotocol: str = JSON

    @classmethod
    def of(cls, url: str, token: str, subprotocol: str = JSON) -> Door:
        """Of a system's URL."""
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, token, subprotocol)

    def request(self, key: bytes) -> bytes:
        """The handshake's request."""
        return (
            f"GET /v1/ws HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {self.subprotocol}\r\nAuthorization: Bearer {self.token}\r\n\r\n"
        ).encode()


class Owner(Protocol):
    """Who has a connection."""

    def opened(self, wire: PushWire) -> None:
        """The handshake is done."""

    def frame(self, wire: PushWire, payload: bytes) -> None:
        """A whole text or binary message came."""

    def lost(self, wire: PushWire, code: int, why: str) -> None:
        """It is over, once; `code` is that of the close frame, 1006 where there was none."""


class PushWire(asyncio.Protocol):
    """One connection. Answers pings by itself."""

    def __init__(self, door: Door, owner: Owner) -> None:
        self._door = door
        self._owner = owner
        self._key = base64.b64encode(os.urandom(16))
        self._rest = b""
        self._parts: list[bytes] = []
        self._opened = False
        self._close_code = _ABNORMAL
        self._why = ""
        self.transport: asyncio.Transport | None = None
        self.bytes_in = 0
        self.frames_in = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        made = self.transport.get_extra_info("socket")
        if made is not None:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport.write(self._door.request(self._key))

    def data_received(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self._rest:
            data = self._rest + data
        at = 0
        if not self._opened:
            at = self._shake_hands(data)
            if not self._opened:
                self._rest = b"" if self._why else data
                return
            self._owner.opened(self)
        self._rest = data[self._frames(data, at) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self, self._close_code, self._why or (str(exc) if exc else "closed"))

    def write(self, data: bytes) -> None:
        """Frames of `client_frame`."""
        assert self.transport is not None
        self.transport.write(data)

    def close(self, code: int = 1000) -> None:
        """With a close frame, and without waiting for its answer."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(client_frame(CLOSE, code.to_bytes(2, "big")))
            self.transport.close()

    def cut(self) -> None:
        """As when the network goes: no close frame, a reset."""
        if self.transport is not None:
            self.transport.abort()

    def _fail(self, why: str) -> None:
        self._why = why
        self.cut()

    def _shake_hands(self, data: bytes) -> int:
        """Where frames begin, once the answer is whole; `_why` where it is no yes."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _HEAD_BYTES_MAX:
                self._fail("the head of the answer does not end")
            return 0
        head = data[:end]
        accept = base64.b64encode(hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest())
        if not head.startswith(b"HTTP/1.1 101"):
            self._fail(f"refused: {data[:300]!r}")
        elif accept not in head:
            self._fail("the answer is not to this handshake")
        elif self._door.subprotocol.encode() not in head:
            self._fail("another sub-protocol")
        else:
            self._opened = True
        return end + 4

    def _frames(self, data: bytes, at: int) -> int:
        """Take the whole frames from `at` on; where the rest begins."""
        have = len(data)
        while have - at >= 2:
            size = data[at + 1]
            start = at + 2
            if size == 126:
                start = at + 4
                size = int.from_bytes(data[at + 2 : start], "big")
            elif size == 127:
                start = at + 10
                size = int.from_bytes(data[at + 2 : start], "big")
            if have < start or have < start + size:
                if have >= start and size > _FRAME_BYTES_MAX:
                    self._fail(f"a frame of {size} bytes")
                return at
            self._frame(data[at], data[start : start + size])
            at = start + size
        return at

    def _frame(self, first: int, payload: bytes) -> None:
        self.frames_in += 1
        opcode = first & 0x0F
        if opcode & _CONTROL:
            self._control(opcode, payload)
        elif first & _FIN and opcode != _CONTINUATION:
            self._owner.frame(self, payload)
        else:
            self._parts.append(payload)
            if first & _FIN:
                whole = b"".join(self._parts)
                self._parts = []
                self._owner.frame(self, whole)

    def _control(self, opcode: int, payload: bytes) -> None:
        assert self.transport is not None
        if opcode == _PING:
            self.transport.write(client_frame(_PONG, payload))
        elif opcode == CLOSE:
            self._close_code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else _NO_STATUS
            self._why = payload[2:].decode(errors="replace") or "closed"
            self.close()


async def connect(door: Door, owner: Owner) -> PushWire:
    """A connection whose handshake is under way; OSError where nobody listens."""
    loop = asyncio.get_running_loop()
    _, wire = await loop.create_connection(lambda: PushWire(door, owner), door.host, door.port)
    return wire
