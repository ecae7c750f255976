"""What a client says over a WebSocket: bytes in any pieces become whole messages of the right kind.

Owns the protocol's machine (`websockets.protocol`, without I/O), how much is read in one step, the parts of a message
that comes in several frames, how much of one is here, and for how long. Does not own the transport
(`api.live_connection`), nor what messages say (`api.live_formats`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as WebSocket

from api.limits import Account
from api.live_formats import Payload
from api.live_talk import SmallTalk

_SLICE_BYTES: Final = 4 * 1024
"""Given to the machine at once: up to 680 of the smallest frames, which take 3 ms."""
_STEP_FRAMES: Final = 128
_STEP_BYTES: Final = 64 * 1024
"""Read in one step of the event loop, and what one slice has more: others get their turn after a few milliseconds,
whatever comes. Half as many frames cost a sender of single messages 8 % more CPU; 64 KB are 2,000 of the smallest
items. One read of a socket holds 43,000 of the smallest frames, and a socket is read many times in a step."""
_TINY_BYTES: Final = 16


class TooManyFramesError(Exception):
    """Too many frames that say nothing."""


class WrongKindError(Exception):
    """A text frame where binary ones are spoken, or the other way round."""


class LiveReader:
    """The reading half of one connection."""

    __slots__ = ("_at", "_data", "_frames", "_kind", "_parts", "_talk", "machine", "messages", "stopped")

    def __init__(self, kind: int, bytes_max: int, talk: SmallTalk) -> None:
        """`kind`: the opcode of the frames that are spoken. `talk` counts pings, pongs and tiny parts."""
        self._kind = kind
        self._talk = talk
        self.stopped = False
        self._data = b""
        self._at = 0
        """What came before it is with the machine."""
        self._frames = 0
        self.machine = WebSocket(SERVER, state=OPEN, max_size=bytes_max)
        """Also what control frames and the end are asked of."""
        self._parts: bytearray | None = None
        """Of a message that comes in several frames."""
        self.messages = 0
        """How many have come."""

    @property
    def is_open(self) -> bool:
        """Nobody has closed, and the client has kept to the protocol."""
        return self.machine.state is OPEN

    @property
    def waiting(self) -> bool:
        """Something came that is not read yet: nothing more should be taken from the socket."""
        return self._at < len(self._data)

    @property
    def held_bytes(self) -> int:
        """Of messages that are not complete, or not read yet."""
        size = len(self.machine.reader.buffer) + len(self._data) - self._at
        return size if self._parts is None else size + len(self._parts)

    def add(self, data: bytes) -> None:
        """So much came."""
        if self.stopped:
            return
        self._data = self._data[self._at :] + data if self.waiting else data
        self._at = 0

    def drop(self) -> None:
        """Nothing of what waits will be read."""
        self._data = b""
        self._at = 0

    def stop(self) -> None:
        """Nothing is read any more, not even a close frame: who floods is not listened to."""
        self.stopped = True
        self.drop()

    def step(self) -> Iterator[Payload]:
        """The messages that are complete with the next bytes of what came, which are few enough for one step of the
        event loop. WrongKindError: one is not what is spoken. TooManyFramesError: too many say nothing.

        Pings are answered by the machine, and so is a close frame: look at `is_open` afterwards."""
        frames_max = self._frames + _STEP_FRAMES
        bytes_left = _STEP_BYTES
        while self.waiting and self._frames < frames_max and bytes_left > 0:
            piece = self._data[self._at : self._at + _SLICE_BYTES]
            self._at += len(piece)
            bytes_left -= len(piece)
            if not self.waiting:
                self.drop()
            self.machine.receive_data(piece)
            yield from self._complete()

    def _complete(self) -> Iterator[Payload]:
        for frame in self.machine.events_received():
            assert isinstance(frame, Frame)
            opcode = frame.opcode
            self._frames += 1
            if opcode is Opcode.CLOSE:
                return  # it is the last one
            control = opcode is Opcode.PING or opcode is Opcode.PONG
            if (control or (not frame.fin and len(frame.data) < _TINY_BYTES)) and not self._talk.more():
                raise TooManyFramesError
            if control:
                continue
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
