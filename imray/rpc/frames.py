"""Frames: a fixed head (kind, method, log, call, bytes of content) and content. No networking: bytes in, frames out.

Owns how frames look on the wire and that nothing larger than agreed gets memory. Does not own what the content means
(`imray.rpc.messages`), nor who may send (`imray.rpc.handshake`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from imray.rpc.endpoint import Part, Parts

HEAD = struct.Struct("<BBHiQQ")
"""Kind, method, zero, log, call, bytes of content."""
_JOINED_BYTES_MAX = 16 * 1024
"""Up to here head and content are joined and go in one write; above, a copy costs more than a write."""
_SMALL_BYTES_MAX = 16 * 1024
"""Content up to here is copied out of the staging buffer; larger content is read straight into a buffer of its own."""
_STAGING_BYTES = 32 * 1024
"""One read takes head and content of a small frame, often several frames. Above `HEAD.size + _SMALL_BYTES_MAX`, or a
frame might never fit."""


class Kind(IntEnum):
    """What a frame is."""

    CALL = 1
    ANSWER = 2
    ERROR = 3
    """No answer to a call: its outcome is unknown, and the content is a text that says why."""
    PUSH = 4
    """Sent by a server unasked; its call number is 0."""


class FrameError(ConnectionError):
    """The other end does not keep to the protocol: the connection must end."""


class Frame(NamedTuple):
    """One frame. Nobody else has its `content`'s memory, which is aligned to 8 bytes at least and may be changed."""

    kind: int
    method: int
    log: int
    call: int
    content: memoryview


class FrameReader:
    """Takes what was read, at any boundaries, and gives frames."""

    def __init__(self, frame_bytes_max: int) -> None:
        """`frame_bytes_max`: content of one frame."""
        self._frame_bytes_max = frame_bytes_max
        self._staging = np.empty(_STAGING_BYTES, np.uint8).data
        self._begin = 0
        self._end = 0
        self._large: Frame | None = None
        """A frame whose content is being read straight into its own buffer."""
        self._filled = 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to be put; never empty unless a whole frame was not taken by `next_frame` yet."""
        if self._large is not None:
            return self._large.content[self._filled :]
        if self._begin:
            kept = self._end - self._begin
            self._staging[:kept] = self._staging[self._begin : self._end]
            self._begin = 0
            self._end = kept
        return self._staging[self._end :]

    def received(self, size: int) -> None:
        """So many bytes were put into the buffer."""
        if self._large is not None:
            self._filled += size
        else:
            self._end += size

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None: more must be read. FrameError: too large, or no head of a frame."""
        if self._large is not None:
            if self._filled < len(self._large.content):
                return None
            whole = self._large
            self._large = None
            return whole
        start = self._begin + HEAD.size
        if start > self._end:
            return None
        kind, method, zero, log, call, size = HEAD.unpack_from(self._staging, self._begin)
        if zero:
            raise FrameError("what came is not the head of a frame")
        if size > self._frame_bytes_max:
            raise FrameError(f"a frame of {size} bytes: the most is {self._frame_bytes_max}")
        if size > _SMALL_BYTES_MAX:
            return self._begin_large(kind, method, log, call, size)
        if start + size > self._end:
            return None
        self._begin = start + size
        return Frame(kind, method, log, call, memoryview(bytearray(self._staging[start : self._begin])))

    def _begin_large(self, kind: int, method: int, log: int, call: int, size: int) -> Frame | None:
        content = np.empty(size, np.uint8).data
        start = self._begin + HEAD.size
        here = min(size, self._end - start)
        content[:here] = self._staging[start : start + here]
        self._begin = start + here
        frame = Frame(kind, method, log, call, content)
        if here == size:
            return frame
        self._large = frame
        self._filled = here
        return None


def size_of(content: Parts) -> int:
    """Bytes of content. TypeError where a part is no buffer."""
    total = 0
    for part in content:
        total += memoryview(part).nbytes
    return total


def writes_of(kind: Kind, method: int, log: int, call: int, content: Parts) -> list[Part]:
    """What is to be written for a frame, one write each. TypeError, BufferError: a part is no contiguous buffer."""
    # all before the first is written: half a frame would take the connection with it
    return list(_writes_of(kind, method, log, call, content))


def _writes_of(kind: Kind, method: int, log: int, call: int, content: Parts) -> Iterator[Part]:
    size = size_of(content)
    head = HEAD.pack(kind, method, 0, log, call, size)
    if size <= _JOINED_BYTES_MAX:
        yield b"".join((head, *content))
        return
    small: list[Part] = [head]
    small_bytes = len(head)
    for part in content:
        view = memoryview(part)
        if small and small_bytes + view.nbytes > _JOINED_BYTES_MAX:
            yield b"".join(small)
            small = []
            small_bytes = 0
        if view.nbytes > _JOINED_BYTES_MAX:
            yield view.cast("B")
        else:
            small.append(part)
            small_bytes += view.nbytes
    if small:
        yield b"".join(small)
