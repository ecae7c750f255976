"""Frames of sends made beforehand, and what is read out of the server's frames without decoding them. No sockets.

A generator that decoded all it gets would be what is measured. What is read is checked: every ack is one of a new
message, and every item of messages follows the one before it.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks.push_wire import BINARY, JSON, MSGPACK, TEXT, client_frame
from benchmarks.workload import BODY_BYTES, ID_BYTES, text

_ID: Final = b"#" * (2 * ID_BYTES)
_STAMP_BYTES: Final = 20
_STAMP: Final = b"@" * _STAMP_BYTES
_FIRST_REF: Final = 10_000
"""So that all refs of a frame take the same bytes, in either format."""
_STAMPS = re.compile(rb'"body":"(\d{20})')
_MESSAGES = re.compile(rb'\[\{"t":"messages","conv_id":"[^"]*","after":(\d+),"upto":(\d+)')
_ACKS: Final = {
    JSON: (b'"t":"ack"', b'"duplicate":false'),
    MSGPACK: (b"\xa1t\xa3ack", b"\xa9duplicate\xc2"),
}


class BadFrameError(Exception):
    """The server said what it must not."""


class SendFrame:
    """A frame of so many sends into one conversation, with ids that were never used each time."""

    def __init__(
        self, subprotocol: str, conv_id: str, count: int, body_bytes: int = BODY_BYTES, sender: str | None = None
    ) -> None:
        """`sender`: for whom a service sends; None: for itself."""
        self.count = count
        source = text()
        starts = np.random.default_rng().integers(0, len(source) - body_bytes, count).tolist()
        items = [
            {
                "t": "send",
                "ref": _FIRST_REF + i,
                "conv_id": conv_id,
                "client_msg_id": _ID.decode(),
                "body": (_STAMP + source[at : at + body_bytes - _STAMP_BYTES]).decode(),
            }
            for i, at in enumerate(starts)
        ]
        if sender is not None:
            items = [item | {"sender": sender} for item in items]
        packed = subprotocol == MSGPACK
        payload = msgspec.msgpack.encode(items) if packed else msgspec.json.encode(items)
        self._frame = bytearray(client_frame(BINARY if packed else TEXT, payload))
        self._ids = _column(self._frame, _ID, count)
        self._stamps = _column(self._frame, _STAMP, count)

    def next(self, now: float) -> bytes:
        """The frame, to be sent; `now` (time.perf_counter) is what the time to the push is counted from."""
        ids = os.urandom(ID_BYTES * self.count).hex().encode()
        self._ids[:] = np.frombuffer(ids, np.uint8).reshape(self.count, -1)
        self._stamps[:] = np.frombuffer(b"%020d" % int(now * 1e9), np.uint8)
        return bytes(self._frame)


def _column(frame: bytearray, mark: bytes, count: int) -> np.ndarray:
    """Where `mark` stands in each message, as a matrix that writes into the frame."""
    first = frame.index(mark)
    stride = frame.index(mark, first + len(mark)) - first if count > 1 else len(mark)
    whole = np.frombuffer(frame, np.uint8)
    made = np.lib.stride_tricks.as_strided(whole[first:], (count, len(mark)), (stride, 1))
    if not (made == np.frombuffer(mark, np.uint8)).all():
        raise ValueError("messages of a frame differ in length")
    return made


def acks_in(subprotocol: str, payload: bytes) -> int:
    """How many sends a frame acks; BadFrameError where one is no ack of a new message."""
    ack, new = _ACKS[subprotocol]
    count = payload.count(ack)
    if payload.count(new) != count or b"error" in payload:
        raise BadFrameError(f"a send was not acked as new: {payload[:300]!r}")
    return count


def span_of(payload: bytes) -> tuple[int, int] | None:
    """(after, upto) of a JSON frame that is an item of messages; None where it is none."""
    found = _MESSAGES.match(payload)
    return None if found is None else (int(found[1]), int(found[2]))


def latencies_of(payload: bytes, now: float) -> list[float]:
    """How long ago the messages of a JSON frame were sent (seconds)."""
    return [now - int(stamp) / 1e9 for stamp in _STAMPS.findall(payload)]


def items_of(payload: bytes) -> list[dict[str, Any]]:
    """A JSON frame, decoded."""
    return msgspec.json.decode(payload, type=list[dict[str, Any]])
