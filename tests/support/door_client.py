"""A client of `door_server` over bare sockets: it can be late, silent and wrong."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import orjson

from tests.support.door_server import PATH, DoorServer

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()
MB = 1024 * 1024


def get(size: int = 2, who: str = "ada") -> bytes:
    return f"GET {PATH}?bytes={size} HTTP/1.1\r\nHost: x\r\nAuthorization: {who}\r\n\r\n".encode()


def post(body: bytes, length: int | None = None, who: str = "ada") -> bytes:
    head = HEAD + f"Authorization: {who}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode()
    return head + body


def read_all(raw: socket.socket) -> bytes:
    """Until the server closes."""
    chunks = []
    while chunk := raw.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def answer(raw: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer with a known length, and nothing of the next."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        chunk = raw.recv(1)
        assert chunk, f"closed after {data!r}"
        data += chunk
    first, *lines = data[:-4].decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = bytearray()
    missing = int(headers["content-length"])
    while missing:
        chunk = raw.recv(missing)
        assert chunk, f"{missing} bytes are missing"
        body += chunk
        missing -= len(chunk)
    return int(first.split()[1]), headers, bytes(body)


def refused(raw: socket.socket) -> dict[str, Any]:
    """The problem that a refused connection is told; then it is closed."""
    status, headers, body = answer(raw)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    problem = orjson.loads(body)
    assert problem["status"] == status
    assert read_all(raw) == b""
    return problem


def push(raw: socket.socket, data: bytes, times: int) -> int:
    """Send again and again, until the server is tired of it; how often."""
    for at in range(times):
        try:
            raw.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return at
    return times


def healthy(running: DoorServer) -> bool:
    return all(httpx.get(f"http://127.0.0.1:{running.port}{p}", timeout=5).is_success for p in ("/livez", "/readyz"))
