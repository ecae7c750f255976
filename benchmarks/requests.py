"""Requests made beforehand, ids new each time, and the check of their answers. No sockets (`benchmarks.load`)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.workload import BODY_BYTES, ID_BYTES, Batches, conversation_names, text

ARROW_TYPE = "application/vnd.apache.arrow.stream"
_JSON_TYPE = "application/json"
_SEQ = re.compile(rb'"conv_seq":[1-9]')
_ID_TEXT = 2 * ID_BYTES
_PARSED_EVERY = 50
"""So many JSON batches are counted for each one that is parsed whole: the generator must not be what is measured."""


class BadAnswerError(Exception):
    """An answer that is no ack of every message."""


class Source(Protocol):
    """Makes the requests of one connection; a request is valid until the next one is made."""

    rows: int
    """Messages in a request."""

    def next(self) -> bytes | bytearray:
        """A whole HTTP request with ids that were never used."""

    def check(self, status: int, body: bytes) -> None:
        """BadAnswerError where the answer does not give every message a number."""


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    host: str
    token: str


def _head(target: Target, path: str, kind: str, size: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: {target.host}\r\nAuthorization: Bearer {target.token}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    ).encode()


def _slices(count: int, rng: np.random.Generator) -> list[bytes]:
    source = text()
    starts = rng.integers(0, len(source) - BODY_BYTES, count).tolist()
    return [source[at : at + BODY_BYTES] for at in starts]


class Single:
    """One message a request."""

    rows = 1

    def __init__(self, target: Target, name: str) -> None:
        path = f"/v1/conversations/{name}/messages"
        (body,) = _slices(1, np.random.default_rng())
        before, after = b'{"client_msg_id":"', b'","body":"' + body + b'"}'
        self._before = _head(target, path, _JSON_TYPE, len(before) + _ID_TEXT + len(after)) + before
        self._after = after

    def next(self) -> bytes:
        return self._before + os.urandom(ID_BYTES).hex().encode() + self._after

    def check(self, status: int, body: bytes) -> None:
        if status != 201 or not _SEQ.search(body):
            raise BadAnswerError(f"status {status}: {body[:300]!r}")


class JsonBatch:
    """Many messages in a JSON request; all have one length, so the ids are a column of a matrix of bytes."""

    def __init__(self, target: Target, names: list[str], rows: int) -> None:
        self.rows = rows
        rng = np.random.default_rng()
        chosen = [names[i].encode() for i in rng.integers(0, len(names), rows)]
        before = [b'{"conv_id":"' + n + b'","client_msg_id":"' for n in chosen]
        after = [b'","body":"' + body + b'"},' for body in _slices(rows, rng)]
        lines = [b + b"0" * _ID_TEXT + a for b, a in zip(before, after, strict=True)]
        assert len({len(line) for line in lines}) == 1, "names of one length"
        content = b'{"messages":[' + b"".join(lines)[:-1] + b"]}"
        head = _head(target, "/v1/messages:batch", _JSON_TYPE, len(content))
        self._request = bytearray(head + content)
        start = len(head) + len(b'{"messages":[')
        # the last line has no comma: the closing "]" stands in its place
        matrix = np.frombuffer(self._request, np.uint8)[start : start + rows * len(lines[0])]
        at = len(before[0])
        self._ids = matrix.reshape(rows, -1)[:, at : at + _ID_TEXT]
        self._rng, self._checked = rng, 0

    def next(self) -> bytearray:
        ids = self._rng.bytes(ID_BYTES * self.rows).hex().encode()
        self._ids[:] = np.frombuffer(ids, np.uint8).reshape(self.rows, _ID_TEXT)
        return self._request

    def check(self, status: int, body: bytes) -> None:
        tail = b'"created":%d,"duplicates":0,"failed":0}' % self.rows
        if status != 200 or not body.endswith(tail) or body.count(b'"conv_seq":') != self.rows:
            raise BadAnswerError(f"status {status}: {body[:300]!r} ... {body[-100:]!r}")
        self._checked += 1
        if self._checked % _PARSED_EVERY == 1:
            import orjson

            results = orjson.loads(body)["results"]
            if len({(r["conv_id"], r["conv_seq"]) for r in results if r["conv_seq"] >= 1}) != self.rows:
                raise BadAnswerError("numbers are missing or stand there twice")


class ArrowBatch:
    """Many messages as an Arrow IPC stream."""

    _TEMPLATES = 2

    def __init__(self, target: Target, names: list[str], rows: int, topic: str | None = None) -> None:
        self.rows = rows
        self._batches = Batches(rows, names, int.from_bytes(os.urandom(8)), self._TEMPLATES, topic)
        self._target = target

    def next(self) -> bytes:
        stream = self._batches.next()
        return _head(self._target, "/v1/messages:batch", ARROW_TYPE, len(stream)) + stream.tobytes()

    def check(self, status: int, body: bytes) -> None:
        import pyarrow as pa

        if status != 200:
            raise BadAnswerError(f"status {status}: {body[:300]!r}")
        table = pa.ipc.open_stream(body).read_all()
        statuses, seqs = table.column("status").to_numpy(), table.column("conv_seq").to_numpy()
        if len(table) != self.rows or (statuses != 201).any() or (seqs < 1).any():
            raise BadAnswerError(f"{np.count_nonzero(statuses != 201)} of {len(table)} messages were not stored")


def sources(kind: str, target: Target, connections: int, conversations: int, rows: int) -> list[Source]:
    """One source for each connection. Single sends: connection i speaks in conversation i modulo `conversations`."""
    names = conversation_names(conversations)
    make: dict[str, Callable[[int], Source]] = {
        "single": lambda i: Single(target, names[i % conversations]),
        "json": lambda _: JsonBatch(target, names, rows),
        "arrow": lambda _: ArrowBatch(target, names, rows),
    }
    return [make[kind](i) for i in range(connections)]
