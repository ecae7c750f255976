"""A keep-alive HTTP/1.1 connection with one request at a time: what every system here that speaks HTTP is driven with.

Any HTTP library for Python would cost more of the machine than the request that it sends.
"""

from __future__ import annotations

import asyncio
from typing import Self

import httptools

_READ_BYTES = 1 << 20


class HttpError(Exception):
    """An answer that is no success."""


class _Answer:
    """What the parser calls."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.complete = False

    def on_body(self, part: bytes) -> None:
        """A piece of the body."""
        self.parts.append(part)

    def on_message_complete(self) -> None:
        """That was all."""
        self.complete = True


class Connection:
    """One connection to a server on loopback."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, token: str) -> None:
        self._reader, self._writer = reader, writer
        self._common = f"Host: {host}\r\nAuthorization: Bearer {token}\r\n"

    @classmethod
    async def open(cls, port: int, token: str) -> Self:
        """Connect."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        return cls(reader, writer, f"127.0.0.1:{port}", token)

    async def ask(self, method: str, path: str, kind: str, body: bytes | memoryview) -> bytes:
        """The body of the answer; HttpError where it is not 2xx."""
        head = f"{method} {path} HTTP/1.1\r\n{self._common}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.writelines([head.encode(), body])
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        while not answer.complete:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise ConnectionError("the server closed the connection")
            parser.feed_data(data)
        content, status = b"".join(answer.parts), parser.get_status_code()
        if not 200 <= status < 300:
            raise HttpError(f"{status}: {content[:200]!r}")
        return content

    async def close(self) -> None:
        """Let it go."""
        self._writer.close()
