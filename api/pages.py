"""A page of history on its way to its caller: encoded part by part as the client takes it.

A page may have 32 MB of bodies. Encoded whole it would take six times that at worst, and stop everything else in the
process meanwhile; a client that reads slowly would keep all of it here."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from imray.core.ids import format_client_msg_id
from imray.log.schema import MS

PART_BYTES = 256 * 1024
_PART_ROWS = 500
_COLUMNS = ("conv_seq", "client_msg_id", "sender", "topic", "content_type", "client_ts", "server_ts", "body")


def slices(table: pa.Table) -> Iterator[pa.Table]:
    """The page's messages in parts that each take a few milliseconds to encode."""
    if not table.num_rows:
        return
    sizes = pc.fill_null(pc.binary_length(table.column("body")), 0).to_numpy()
    ends = np.cumsum(sizes)
    start = 0
    while start < table.num_rows:
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + PART_BYTES, side="right"))
        end = min(max(end, start + 1), start + _PART_ROWS)
        yield table.slice(start, end - start)
        start = end


def encode(part: pa.Table) -> bytes:
    """The messages of a part as JSON, without the brackets of a list."""
    return orjson.dumps(_messages(part))[1:-1]


class PageResponse(Response):
    """Streams `head`, the messages, and `tail`; calls `done` when nothing of the page is needed any more.

    A client that does not take it within `timeout_s` is left: the server closes the connection."""

    def __init__(
        self,
        request: Request,
        table: pa.Table,
        ends: tuple[bytes, bytes],
        encoders: ThreadPoolExecutor,
        timeout_s: float,
        done: Callable[[], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self._request = request
        self._table: pa.Table | None = table
        self._head, self._tail = ends
        self._encoders = encoders
        self._timeout_s = timeout_s
        self._done = done
        # no length: it is not known before all of it is encoded
        self.raw_headers = [(b"content-type", b"application/json")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._stream(send)
        except TimeoutError:
            return  # an answer without an end: the server closes the connection
        finally:
            self._table = None
            self._done()

    async def _stream(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        lead = self._head
        assert self._table is not None
        for part in slices(self._table):
            data = await loop.run_in_executor(self._encoders, encode, part)
            if await self._request.is_disconnected():
                return
            await send({"type": "http.response.body", "body": lead + data, "more_body": True})
            lead = b","
        if lead is self._head:
            self._tail = self._head + self._tail
        await send({"type": "http.response.body", "body": self._tail, "more_body": False})


def _messages(table: pa.Table) -> list[dict[str, Any]]:
    """`api.schemas.Message` for each row."""
    columns = []
    for name in _COLUMNS:
        column = table.column(name)
        columns.append((column.cast(MS).cast(pa.int64()) if name.endswith("_ts") else column).to_pylist())
    messages = []
    for seq, raw, sender, topic, content_type, client_ts, server_ts, body in zip(*columns, strict=True):
        message = {
            "conv_seq": seq,
            "client_msg_id": format_client_msg_id(raw),
            "sender": sender,
            "topic": topic,
            "content_type": content_type,
            "client_ts": client_ts,
            "server_ts": server_ts,
        }
        try:
            message["body"] = body.decode()
        except UnicodeDecodeError:
            message["body_base64"] = base64.b64encode(body).decode()
        messages.append(message)
    return messages
