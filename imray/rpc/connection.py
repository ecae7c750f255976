"""One end of a connection: the handshake, then frames, between asyncio's transport and whoever uses them.

Owns reading, and when it stops. Does not own what frames mean: `imray.rpc.client` and `imray.rpc.server` do.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Generator
from typing import Any, cast

from imray.rpc.endpoint import Parts
from imray.rpc.frames import Frame, FrameError, FrameReader, Kind, writes_of
from imray.rpc.handshake import Step

log = logging.getLogger("imray.rpc")

_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A connection whose machine is gone is noticed after a minute. The system's own default is two hours."""


class Connection(asyncio.BufferedProtocol):
    """Reads straight from the socket into the buffer that the bytes belong to."""

    transport: asyncio.Transport

    def __init__(self, handshake: Generator[Step, bytes, Any], frame_bytes_max: int) -> None:
        """`frame_bytes_max`: content of a frame that comes in. Only after the handshake there is memory for frames."""
        self._handshake: Generator[Step, bytes, Any] | None = handshake
        self._frame_bytes_max = frame_bytes_max
        self._wanted = memoryview(b"")
        self._filled = 0
        self._frames: FrameReader | None = None
        self._reading = True
        self.closed = False
        """Nothing can be sent any more."""

    def on_authenticated(self, result: Any) -> None:
        """The handshake is done; `result` is what its generator returned."""
        raise NotImplementedError

    def on_frame(self, frame: Frame) -> None:
        """A frame came. FrameError ends the connection."""
        raise NotImplementedError

    def on_lost(self, reason: str) -> None:
        """The connection is gone; called once."""
        raise NotImplementedError

    def wants_frames(self) -> bool:
        """Whether `on_frame` may be called now; if not, reading stops until `read_on`."""
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        made = cast(asyncio.Transport, transport)
        self.transport = made
        if self.closed:  # it was given up while it was being made
            made.abort()
            return
        _set_options(transport.get_extra_info("socket"))
        self._step(None)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Of asyncio."""
        if self._frames is not None:
            return self._frames.get_buffer()
        return self._wanted[self._filled :]

    def buffer_updated(self, size: int) -> None:
        """Of asyncio."""
        if self._frames is not None:
            self._frames.received(size)
            self._take_frames()
            return
        self._filled += size
        if self._filled == len(self._wanted):
            self._step(bytes(self._wanted))

    def _step(self, said: bytes | None) -> None:
        """Go on with the handshake; what it wants next is read exactly, so that no frame is read with it."""
        assert self._handshake is not None
        try:
            step = next(self._handshake) if said is None else self._handshake.send(said)
        except StopIteration as end:
            self._handshake = None
            self._frames = FrameReader(self._frame_bytes_max)
            self.on_authenticated(end.value)
            return
        except FrameError as e:
            self.fail(str(e))
            return
        if step.write:
            self.transport.write(step.write)
        self._wanted = memoryview(bytearray(step.want))
        self._filled = 0

    def _take_frames(self) -> None:
        assert self._frames is not None
        try:
            while not self.closed and self.wants_frames():
                frame = self._frames.next_frame()
                if frame is None:
                    return
                self.on_frame(frame)
        except FrameError as e:
            self.fail(str(e))
            return
        if self._reading and not self.closed:
            self._reading = False
            self.transport.pause_reading()

    def read_on(self) -> None:
        """`wants_frames` may have become true: take what was read already, then read on."""
        if self._reading or self.closed or not self.wants_frames():
            return
        self._take_frames()
        # asked again: the frames that waited may have made it false, or ended the connection
        if not self.closed and self.wants_frames():
            self._reading = True
            self.transport.resume_reading()

    def send_frame(self, kind: Kind, method: int, log_number: int, call: int, content: Parts) -> None:
        """Send a frame, or nothing where the connection is gone. Errors as `writes_of`: then nothing was sent."""
        if self.closed or self.transport.is_closing():
            return
        for written in writes_of(kind, method, log_number, call, content):
            self.transport.write(written)

    def fail(self, reason: str) -> None:
        """End the connection, and tell why."""
        log.warning("a connection is closed: %s", reason)
        self._lose(reason)

    def abort(self) -> None:
        """End the connection at once, whatever is not sent yet."""
        self._lose("the connection was closed")

    def connection_lost(self, error: Exception | None) -> None:
        """Of asyncio."""
        self._lose(str(error or "the connection was closed"))

    def _lose(self, reason: str) -> None:
        if hasattr(self, "transport"):
            self.transport.abort()
        if not self.closed:
            self.closed = True
            self.on_lost(reason)


def _set_options(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # a frame of several writes must not wait for an acknowledgement between them (Nagle), up to 40 ms
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
