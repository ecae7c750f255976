"""What a client says over a WebSocket: bytes in any pieces become whole messages of the right kind.

Owns the protocol's machine (`websockets.protocol`, without I/O), the parts of a message that comes in several frames,
how much of one is here, and for how long. Does not own the transport (`api.live_connection`), nor what messages say
(`api.live_formats`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as WebSocket

from api.limits import Account
from api.live_formats import Payload

_SLICE_BYTES: Final = 16 * 1024
"""Read at once: 2,700 of the smallest frames, which take 10 ms. One read of a socket holds sixteen times that."""
_EMPTY_FRAMES_MAX: Final = 1000
_TINY_BYTES: Final = 16


class TooManyFramesError(Exception):
    """Too many frames that say nothing."""


class WrongKindError(Exception):
    """A text frame where binary ones are spoken, or the other way round."""


class LiveReader:
    """The reading half of one connection."""

    __slots__ = ("_kind", "_parts", "empty_frames", "machine", "messages")

    def __init__(self, kind: int, bytes_max: int) -> None:
        """`kind`: the opcode of the frames that are spoken."""
        self._kind = kind
        self.machine = WebSocket(SERVER, state=OPEN, max_size=bytes_max)
        """Also what control frames and the end are asked of."""
        self._parts: bytearray | None = None
        """Of a message that comes in several frames."""
        self.messages = 0
        """How many have come."""
        self.empty_frames = 0
        """Pings, pongs and tiny parts since somebody set this to 0: nothing else bounds what they cost."""

    @property
    def is_open(self) -> bool:
        """Nobody has closed, and the client has kept to the protocol."""
        return self.machine.state is OPEN

    @property
    def held_bytes(self) -> int:
        """Of a message that is not complete."""
        size = len(self.machine.reader.buffer)
        return size if self._parts is None else size + len(self._parts)

    def read(self, data: bytes) -> Iterator[Payload]:
        """The messages that are complete with these bytes. WrongKindError: one is not what is spoken.
        TooManyFramesError: `empty_frames` is too high.

        Pings are answered by the machine, and so is a close frame: look at `is_open` afterwards."""
        for at in range(0, len(data), _SLICE_BYTES):
            self.machine.receive_data(data[at : at + _SLICE_BYTES])
            yield from self._complete()
            if self.empty_frames > _EMPTY_FRAMES_MAX:
                raise TooManyFramesError

    def _complete(self) -> Iterator[Payload]:
        for frame in self.machine.events_received():
            assert isinstance(frame, Frame)
            opcode = frame.opcode
            if opcode is Opcode.CLOSE:
                return  # it is the last one
            if opcode is Opcode.PING or opcode is Opcode.PONG:
                self.empty_frames += 1
                continue
            if not frame.fin and len(frame.data) < _TINY_BYTES:
                self.empty_frames += 1
            if opcode is Opcode.CONT:
                assert self._parts is not None  # the machine takes no other one
                self._parts += frame.data
            elif opcode != self._kind:
                raise WrongKindError
            elif not frame.fin:
                self._parts = bytearray(frame.data)
            if frame.fin:
                payload = frame.data if self._parts is None else self._parts
                self._parts = None
                self.messages += 1
                yield payload


class HalfMessage:
    """What a message that is not complete costs: it counts as the body of a request does, and has as long to come."""

    __slots__ = ("_account", "_charged", "_reader", "_seen_at", "_seen_messages")

    def __init__(self, reader: LiveReader, account: Account, now: float) -> None:
        self._reader = reader
        self._account = account
        self._charged = 0
        self._seen_messages = 0
        self._seen_at = now
        """When the last look was that found none, or another one than before."""

    def charge(self) -> bool:
        """Something was read. False: the caller holds too much, or all do."""
        held = self._reader.held_bytes
        more = held - self._charged
        if not more:
            return True
        self._charged = held
        if more < 0:
            self._account.charge_asked(-more)
            return True
        return self._account.take_asked(more)

    def is_late(self, now: float, excused: bool, deadline_s: float) -> bool:
        """Whether one has been here for too long. `excused`: it is we who do not read."""
        if not self._charged or excused or self._reader.messages != self._seen_messages:
            self._seen_messages = self._reader.messages
            self._seen_at = now
            return False
        return now - self._seen_at > deadline_s
