"""A listener of a peer on a raw asyncio protocol: it counts whole bodies in what comes, whatever stands around them.

A body of these measurements says who sent it, which one it is and when it was sent, so that it is found without
decoding the protocol: a library for each would be what is measured. Owns bodies and their check. Does not own what a
system wants to be told first, or answered (the classes that inherit from `Ear`).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from typing import Final, Protocol, cast

import numpy as np

from benchmarks.peers.work import Batch
from benchmarks.workload import BODY_BYTES, ID_BYTES, text

_MARK_BYTES: Final = 10
"""Two digits of the sender, eight of the message."""
_STAMP_BYTES: Final = 20
_TEXT_BYTES: Final = BODY_BYTES - _MARK_BYTES - _STAMP_BYTES - 2
_BODY: Final = re.compile(rb"<(\d{%d})(\d{%d})[ -~]{%d}>" % (_MARK_BYTES, _STAMP_BYTES, _TEXT_BYTES))
_REST_BYTES_MAX: Final = 1 << 20
"""What may lie there without a whole body in it: far above any head, notice or answer."""


class Hearing(Protocol):
    """The crowd, as its listeners see it."""

    split: Split

    def told(self, ear: Ear, marks: list[bytes], stamps: list[bytes]) -> None:
        """Whole bodies came; stamps only where the listener's times are looked at."""

    def changed(self) -> None:
        """It got further."""

    def fail(self, why: str) -> None:
        """Something came that must not."""


class Bodies:
    """What one sender sends: bodies with its number, theirs, and the moment."""

    def __init__(self, sender: int) -> None:
        self._sender = sender
        self._next = 0
        self._text = text()

    def batch(self, rows: int, now_s: float) -> Batch:
        """So many new messages, sent now (time.perf_counter)."""
        first = self._next
        self._next += rows
        stamp = b"%020d" % int(now_s * 1e9)
        at = first * _TEXT_BYTES % (len(self._text) - rows * _TEXT_BYTES)
        made = [
            b"<%02d%08d%b%b>"
            % (self._sender, first + i, stamp, self._text[at + i * _TEXT_BYTES : at + (i + 1) * _TEXT_BYTES])
            for i in range(rows)
        ]
        ids = np.frombuffer(os.urandom(ID_BYTES * rows), np.uint8).reshape(rows, ID_BYTES)
        return Batch(ids, made, 0, np.zeros(0, np.uint8))


Found = tuple[list[bytes], list[bytes], int]


class Split:
    """Finds bodies. Many listeners get the same bytes one after the other: those are looked at once."""

    def __init__(self) -> None:
        self._data = b""
        self._found: Found = ([], [], 0)

    def __call__(self, data: bytes) -> Found:
        """(marks, stamps) of the whole bodies in it, and where the last one ends."""
        if data != self._data:
            found = _BODY.findall(data)
            marks = [mark for mark, _ in found]
            at = data.rfind(b"<" + marks[-1]) + BODY_BYTES if marks else 0
            self._data = data
            self._found = (marks, [stamp for _, stamp in found], at)
        return self._found


class Ear(asyncio.Protocol):
    """One listener, one connection."""

    def __init__(self, crowd: Hearing, sampled: bool) -> None:
        self._crowd = crowd
        self._rest = b""
        self.sampled = sampled
        self.live = False
        """From now on nothing is missed."""
        self.heard = 0
        """Messages so far."""
        self.last: dict[bytes, int] = {}
        """The last message of each sender, where senders are looked at one by one."""
        self.closing = False
        self.transport: asyncio.Transport | None = None

    def greeting(self) -> bytes:
        """What is said first."""
        return b""

    def greeted(self, data: bytes) -> bool:
        """Whether the answers so far say that it listens; what else is to be said goes out here."""
        raise NotImplementedError

    def around(self, data: bytes, at: int) -> int:
        """What came besides bodies, which end at `at`; where the part that was not looked at begins."""
        return at

    def write(self, data: bytes) -> None:
        """To the server."""
        assert self.transport is not None
        self.transport.write(data)

    def close(self) -> None:
        """Let it go."""
        self.closing = True
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if greeting := self.greeting():
            self.write(greeting)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        if not self.live:
            self._rest = data
            if self.greeted(data):
                self._rest = b""
                self.live = True
                self._crowd.changed()
            return
        marks, stamps, at = self._crowd.split(data)
        if marks:
            self.heard += len(marks)
            self._crowd.told(self, marks, stamps if self.sampled else [])
        self._rest = data[self.around(data, at) :]
        if len(self._rest) > _REST_BYTES_MAX:
            self._crowd.fail(f"no message in {len(self._rest)} bytes: {self._rest[:200]!r}")
            self._rest = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closing:
            self._crowd.fail(f"a listener's connection was lost: {exc}: {self._rest[-200:]!r}")
