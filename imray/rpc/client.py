"""The calling end of a connection.

Owns calls that wait for their answers. Does not own where to connect, nor when to connect again: `imray.rpc.channel`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable
from typing import Any, TypeAlias

from imray.rpc.connection import Connection
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.frames import Frame, FrameError, Kind, size_of
from imray.rpc.handshake import NONCE_BYTES, client_handshake
from imray.rpc.methods import Method

log = logging.getLogger("imray.rpc")

OnPush: TypeAlias = Callable[[int, Method, memoryview], None]
"""Gets log, method and content of what a server sends unasked; must not block."""

ANSWER_BYTES_MAX = 256 * 1024 * 1024
"""Content of one frame from a server. It has proved that it knows the key: this only stops one that is broken."""


class RpcClient(Connection):
    """One connection, for one event loop."""

    def __init__(self, endpoint: Endpoint, on_push: OnPush | None, answer_bytes_max: int) -> None:
        """Use `connect`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        super().__init__(client_handshake(endpoint.key, nonce), answer_bytes_max)
        self._loop = asyncio.get_running_loop()
        self.on_push = on_push
        self.on_gone: Callable[[], None] | None = None
        """Called once, when nothing comes by this connection any more."""
        self._calls = 0
        self._waiting: dict[int, asyncio.Future[memoryview]] = {}
        self._ready: asyncio.Future[int] = self._loop.create_future()
        self._content_bytes_max = 0
        self.open = True
        """False: send nothing more here. It was lost, or an answer is late: who is late may be an incarnation that has
        a successor."""

    @classmethod
    async def connect(
        cls,
        endpoint: Endpoint,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        on_push: OnPush | None = None,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> RpcClient:
        """A connection that the server has accepted. NoAnswerError: nobody listens there any more, or another, or one
        of another version, or it has no room."""
        loop = asyncio.get_running_loop()
        made = cls(endpoint, on_push, answer_bytes_max)
        connected = False
        try:
            if timeout_s <= 0:
                raise TimeoutError
            encrypted: dict[str, Any] = {}
            if tls is not None:
                encrypted = {"ssl": tls, "ssl_handshake_timeout": timeout_s, "server_hostname": endpoint.host}
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: made, endpoint.host, endpoint.port, **encrypted)
                made._content_bytes_max = await made._ready
            connected = True
        except (OSError, TimeoutError, NoAnswerError) as e:
            where = f"{endpoint.host}:{endpoint.port}"
            raise NoAnswerError(f"no connection to {where}: {str(e) or 'no answer in time'}") from e
        finally:
            if not connected:
                made.close()
        return made

    async def call(self, log_number: int, method: Method, content: Parts, timeout_s: float) -> memoryview:
        """The answer's content, whose memory is the caller's own. `content` must not change before.

        NoAnswerError: whether it was executed is unknown. After a time-out `open` is False; calls that were sent before
        still get their answers."""
        if not self.open:
            raise NoAnswerError("the connection was closed")
        if timeout_s <= 0:
            raise NoAnswerError("no time was left for the call: it was not sent")
        size = size_of(content)
        if size > self._content_bytes_max:
            # the server would end the connection, with all the other calls in it
            raise NoAnswerError(f"{size} bytes were not sent: the most in one call is {self._content_bytes_max}")
        self._calls += 1
        call = self._calls
        waiting: asyncio.Future[memoryview] = self._loop.create_future()
        self._waiting[call] = waiting
        timer = self._loop.call_later(timeout_s, self._late, waiting, timeout_s)
        try:
            self.send_frame(Kind.CALL, method, log_number, call, content)
            return await waiting
        finally:
            timer.cancel()
            self._waiting.pop(call, None)
            self._close_if_over()

    def _late(self, waiting: asyncio.Future[memoryview], timeout_s: float) -> None:
        if not waiting.done():
            self.open = False
            waiting.set_exception(NoAnswerError(f"no answer within {timeout_s:.1f} s"))

    def _close_if_over(self) -> None:
        if not self.open and not self._waiting:
            self.abort()

    def retire(self) -> None:
        """Send nothing more here; close it once nothing waits for an answer any more."""
        self.open = False
        self._close_if_over()

    def close(self) -> None:
        """Close it; what waits gets NoAnswerError."""
        self.abort()

    def on_authenticated(self, result: Any) -> None:
        """Of `Connection`."""
        if not self._ready.done():
            self._ready.set_result(result)

    def on_frame(self, frame: Frame) -> None:
        """Of `Connection`."""
        if frame.kind == Kind.PUSH:
            self._pushed(frame)
            return
        if frame.kind not in (Kind.ANSWER, Kind.ERROR):
            raise FrameError(f"a server sent a frame of kind {frame.kind}")
        waiting = self._waiting.pop(frame.call, None)
        if waiting is None or waiting.done():
            return  # nobody waits any more
        if frame.kind == Kind.ANSWER:
            waiting.set_result(frame.content)
        else:
            waiting.set_exception(NoAnswerError(bytes(frame.content).decode(errors="replace")))

    def _pushed(self, frame: Frame) -> None:
        if self.on_push is None:
            return
        try:
            method = Method(frame.method)
        except ValueError:
            raise FrameError(f"a server sent method {frame.method} unasked") from None
        try:
            self.on_push(frame.log, method, frame.content)
        except Exception:  # a bug of one listener must not cost the calls of the connection their answers
            log.exception("what a server sent unasked was not handled")

    def on_lost(self, reason: str) -> None:
        """Of `Connection`: whether what waits was executed is unknown."""
        self.open = False
        if not self._ready.done():
            self._ready.set_exception(NoAnswerError(reason))
            self._ready.exception()  # seen: `connect` may have ended by its time-out
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(NoAnswerError(reason))
        self._waiting.clear()
        if self.on_gone is not None:
            self.on_gone()
