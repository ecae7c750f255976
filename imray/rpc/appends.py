"""Batches and their answers over TCP, beside Ray: the way of a message from a gateway to the process that numbers it.

Measured: a Ray call costs caller and actor 1 ms of CPU each here and a large argument some milliseconds more, which was
half of a commit. So Ray says where an actor listens (`Door`), and batches go there directly, as `imray.rpc.asks`
does for partitions. Both ends prove first that they know the key which Ray gave them.

Wire: a handshake (the client's nonce; the server's nonce and proof; the client's proof, each an HMAC-SHA256 of both
nonces under the key), then frames of `<QI` (number, bytes) and content: batches one way, as the Arrow IPC streams that
they are, pickled answers the other, in any order.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import pickle
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import numpy as np

from imray.core.replies import Appended, Refusal, Refused
from imray.rpc.asks import Door, NoAnswerError

log = logging.getLogger("imray.appends")

Append = Callable[[memoryview], Awaitable[Appended | Refusal]]
Script = Generator[int, memoryview, None]
"""Yields how many bytes it wants next, and is sent just these."""

_HEAD = struct.Struct("<QI")
_NONCE_BYTES = _PROOF_BYTES = 32
_JOINED_BYTES_MAX = 16 * 1024
"""Below it head and content go in one packet; above, a copy would cost more."""
_HANDSHAKE_S = 10.0
"""For who connects to prove that it knows the key."""
_UNANSWERED_MAX = 256
"""Batches of one connection; no more are read until some have their answer."""


class _Frames(asyncio.BufferedProtocol):
    """Bytes straight from the socket into the buffer of the frame that they belong to."""

    transport: asyncio.Transport

    def script(self) -> Script:
        """What comes, in its order. ConnectionError ends the connection."""
        raise NotImplementedError

    def _want(self, size: int) -> None:
        self._buffer = np.empty(size, np.uint8).data
        self._filled = 0

    def connection_made(self, transport: Any) -> None:
        """Of asyncio."""
        self.transport = transport
        self._script = self.script()
        self._want(next(self._script))

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Of asyncio."""
        return self._buffer[self._filled :]

    def buffer_updated(self, size: int) -> None:
        """Of asyncio."""
        self._filled += size
        try:
            while self._filled == len(self._buffer):  # again for a frame without content
                self._want(self._script.send(self._buffer))
        except ConnectionError as e:
            log.warning("a connection is closed: %s", e)
            self.transport.abort()

    def say(self, number: int, content: bytes | memoryview) -> None:
        """Send a frame."""
        head = _HEAD.pack(number, len(content))
        if len(content) < _JOINED_BYTES_MAX:
            self.transport.write(head + content)
        else:
            self.transport.write(head)
            self.transport.write(content)


def _proof(key: bytes, who: bytes, nonces: bytes) -> bytes:
    return hmac.new(key, who + nonces, hashlib.sha256).digest()


class _Taker(_Frames):
    """The server's end of a connection."""

    def __init__(self, server: AppendServer) -> None:
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        """Of asyncio."""
        self._stranger = asyncio.get_running_loop().call_later(_HANDSHAKE_S, transport.abort)
        # one whose machine is gone would stay for ever
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        super().connection_made(transport)

    def script(self) -> Script:
        """Handshake, then batches."""
        key, mine = self._server.door.key, secrets.token_bytes(_NONCE_BYTES)
        nonces = bytes((yield _NONCE_BYTES)) + mine
        self.transport.write(mine + _proof(key, b"server", nonces))
        if not hmac.compare_digest((yield _PROOF_BYTES), _proof(key, b"client", nonces)):
            raise ConnectionError("it does not know the key")
        self._stranger.cancel()
        self._server.connections.add(self)
        while True:
            number, size = _HEAD.unpack((yield _HEAD.size))
            if size > self._server.batch_bytes_max:
                raise ConnectionError(f"a batch of {size} bytes: the most is {self._server.batch_bytes_max}")
            task = asyncio.get_running_loop().create_task(self._answer(number, (yield size)))
            self._tasks.add(task)
            task.add_done_callback(self._done)
            if len(self._tasks) == _UNANSWERED_MAX:
                self.transport.pause_reading()

    async def _answer(self, number: int, data: memoryview) -> None:
        answer: Appended | Refusal
        try:
            answer = await self._server.append(data)
        except Exception as e:  # a bug of ours must not cost the other batches of the connection their answers
            log.exception("a batch failed")
            answer = Refusal(Refused.UNAVAILABLE, f"{type(e).__name__}: {e}")
        self.say(number, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if len(self._tasks) == _UNANSWERED_MAX - 1 and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        """Of asyncio. What is being written goes on: the other end asks again."""
        self._stranger.cancel()
        self._server.connections.discard(self)


class AppendServer:
    """Answers batches, for as long as the process lives or until it is closed."""

    door: Door

    def __init__(self, append: Append, batch_bytes_max: int) -> None:
        """`append` gets each batch; what it returns is the answer."""
        self.append, self.batch_bytes_max = append, batch_bytes_max
        self.connections: set[_Taker] = set()
        self._listening: asyncio.Server | None = None

    async def open(self, host: str) -> Door:
        """Listen on a free port of an address."""
        self._listening = await asyncio.get_running_loop().create_server(lambda: _Taker(self), host, 0)
        port = self._listening.sockets[0].getsockname()[1]
        self.door = Door(host, port, secrets.token_bytes(32))
        return self.door

    def close(self) -> None:
        """Close every connection: who waits has no answer."""
        if self._listening is not None:
            self._listening.close()
        for connection in list(self.connections):
            connection.transport.abort()


class AppendClient(_Frames):
    """The sender's end of a connection, for one event loop."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0
        self._waiting: dict[int, asyncio.Future[Appended | Refusal]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open = True
        """False: send nothing more here."""

    @classmethod
    async def connect(cls, door: Door, timeout_s: float) -> AppendClient:
        """NoAnswerError where nobody listens there any more, or another."""
        loop = asyncio.get_running_loop()
        made = cls(door.key)
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: made, door.host, door.port)
                await made._ready
        except (OSError, TimeoutError, NoAnswerError) as e:
            made.close()
            raise NoAnswerError(f"no connection to {door.host}:{door.port}: {e or 'no answer in time'}") from e
        return made

    def script(self) -> Script:
        """Handshake, then answers."""
        mine = secrets.token_bytes(_NONCE_BYTES)
        self.transport.write(mine)
        nonces = mine + bytes((yield _NONCE_BYTES))
        if not hmac.compare_digest((yield _PROOF_BYTES), _proof(self._key, b"server", nonces)):
            raise ConnectionError("it does not know the key")
        self.transport.write(_proof(self._key, b"client", nonces))
        self._ready.set_result(None)
        while True:
            number, size = _HEAD.unpack((yield _HEAD.size))
            answer = pickle.loads((yield size))
            waiting = self._waiting.pop(number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)
            if not self.open and not self._waiting:
                self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Of asyncio: whether what waits was executed is unknown."""
        self.open = False
        ended: list[asyncio.Future[Any]] = [self._ready, *self._waiting.values()]
        for waiting in ended:
            if not waiting.done():
                waiting.set_exception(NoAnswerError(str(error or "the connection was closed")))
        self._waiting.clear()

    async def append(self, data: bytes | memoryview, timeout_s: float) -> Appended | Refusal:
        """The answer to a batch, which must not change until then. NoAnswerError: whether it was executed is unknown.

        After a time-out `open` is False: who is late may be an incarnation that has a successor."""
        if not self.open:
            raise NoAnswerError("the connection was closed")
        self._count = number = self._count + 1
        waiting: asyncio.Future[Appended | Refusal] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        self.say(number, data)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        except TimeoutError:
            self.open = False
            raise NoAnswerError(f"no answer within {timeout_s:.1f} s") from None
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Close it; what waits gets NoAnswerError."""
        self.open = False
        if hasattr(self, "transport"):
            self.transport.abort()
