"""The other ends that the tests of the RPC need: a handler that echoes, and a client that keeps to no protocol."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from imray.core.errors import InvalidError
from imray.rpc.client import RpcClient
from imray.rpc.endpoint import Endpoint, Parts
from imray.rpc.handshake import client_handshake
from imray.rpc.methods import Method
from imray.rpc.server import ServerConnection

BYTES_MAX = 1_000_000
LOG = 3


class Echo:
    """Answers with what it got; b"wait..." when told to, b"fail..." and b"invalid..." never."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.arrived = asyncio.Event()
        self.got: list[int] = []

    async def append(self, content: memoryview, _caller: ServerConnection) -> Parts:
        self.got.append(len(content))
        self.arrived.set()
        if content[:4] == b"wait":
            await self.gate.wait()
        if content[:4] == b"fail":
            raise RuntimeError("a bug")
        if content[:7] == b"invalid":
            raise InvalidError("malformed")
        return (content,)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, five seconds at most."""
    for _ in range(2_500):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come true within 5 s")


async def echoed(client: RpcClient, *content: bytes, log: int = LOG, timeout_s: float = 5.0) -> bytes:
    return bytes(await client.call(log, Method.APPEND, content, timeout_s))


async def raw_connection(endpoint: Endpoint) -> socket.socket:
    """A connection that has proved its key, and sends what it likes."""
    loop = asyncio.get_running_loop()
    raw = socket.create_connection((endpoint.host, endpoint.port))
    raw.setblocking(False)
    handshake = client_handshake(endpoint.key, b"n" * 32)
    step = next(handshake)
    while True:
        await loop.sock_sendall(raw, step.write)
        said = b""
        while len(said) < step.want:
            said += await loop.sock_recv(raw, step.want - len(said))
        try:
            step = handshake.send(said)
        except StopIteration:
            return raw


async def end_of(raw: socket.socket) -> bytes:
    """What comes before the connection ends."""
    loop = asyncio.get_running_loop()
    said = b""
    async with asyncio.timeout(5):
        while True:
            try:
                part = await loop.sock_recv(raw, 1000)
            except ConnectionResetError:
                part = b""
            said += part
            if not part:
                raw.close()
                return said
