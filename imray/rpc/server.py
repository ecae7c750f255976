"""The answering end: one listener a process, for all the logs that the process has.

Owns who is let in, how many, and what is bounded for each. Does not own what the calls do: handlers are registered by
log, and come and go with the logs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeAlias

from imray.core.errors import ImrayError
from imray.rpc.connection import Connection
from imray.rpc.endpoint import Endpoint, Parts
from imray.rpc.frames import HEAD, Frame, FrameError, Kind, size_of
from imray.rpc.handshake import NONCE_BYTES, Verdict, server_handshake
from imray.rpc.methods import Method

log = logging.getLogger("imray.rpc")

PUSH_BYTES_MAX = 8 * 1024 * 1024
UNANSWERED_MAX = 256
"""Calls of one connection; no more are read until some have their answer."""
_ANSWER_BYTES = 1024 * 1024
"""Unsent answers of one connection, beside what is pushed; above it no more calls are read until they are sent."""
_ERROR_CHARS_MAX = 2000
_BACKLOG = 128
_ACCEPT_AGAIN_S = 0.05


class ServerConnection(Connection):
    """The connection that a call came by. For the event loop of its server."""

    def __init__(self, server: RpcServer, push_bytes_max: int) -> None:
        """Made by its server."""
        super().__init__(
            server_handshake(server.key, secrets.token_bytes(NONCE_BYTES), server.frame_bytes_max),
            server.frame_bytes_max,
        )
        self._server = server
        self._push_bytes_max = push_bytes_max
        self._unanswered = 0
        self._writing_paused = False
        self._close_callbacks: list[Callable[[], None]] = []
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is over, one way or the other."""

    def push(self, log_number: int, method: Method, content: Parts) -> bool:
        """Send something unasked. Never blocks. False: nothing was sent, since with it more than `push_bytes_max`
        would wait to be sent, or since the connection is gone."""
        if self.closed or self.transport.is_closing():
            return False
        waiting = self.transport.get_write_buffer_size()
        if waiting + HEAD.size + size_of(content) > self._push_bytes_max:
            return False
        self.send_frame(Kind.PUSH, method, log_number, 0, content)
        return True

    def add_close_callback(self, callback: Callable[[], None]) -> None:
        """Call this once when the connection is gone; at once if it is gone already."""
        if self.closed:
            callback()
        else:
            self._close_callbacks.append(callback)

    def on_authenticated(self, _result: Any) -> None:
        """Of `Connection`."""
        accepted = self._server.admit(self)
        verdict = Verdict.ACCEPTED if accepted else Verdict.FULL
        self.transport.set_write_buffer_limits(high=self._push_bytes_max + _ANSWER_BYTES)
        self.transport.write(bytes((verdict,)))
        if not accepted:
            log.warning("a connection was refused: there are as many as there may be")
            self.transport.close()
        if not self.admitted.done():
            self.admitted.set_result(None)

    def wants_frames(self) -> bool:
        """Of `Connection`: a caller that is not answered, or does not read its answers, is not read from."""
        return self._unanswered < UNANSWERED_MAX and not self._writing_paused

    def on_frame(self, frame: Frame) -> None:
        """Of `Connection`."""
        if frame.kind != Kind.CALL:
            raise FrameError(f"a client sent a frame of kind {frame.kind}")
        handler = self._server.handler(frame.log, frame.method)
        if handler is None:
            self._no_answer(frame, f"nobody answers method {frame.method} for log {frame.log} in this process")
            return
        try:
            answer = handler(frame.content, self)
            if not isinstance(answer, Awaitable):
                self._send_answer(frame, answer)
                return
        except Exception as e:  # noqa: BLE001 a bug of one handler must not cost the other calls their answers
            self._failed(frame, e)
            return
        self._unanswered += 1
        # one task, which sends the answer, too: a callback for that would be one more turn of the event loop
        self._server.run(self._answer(answer, frame))

    async def _answer(self, answer: Awaitable[Parts], call: Frame) -> None:
        try:
            self._send_answer(call, await answer)
        except asyncio.CancelledError:
            self._no_answer(call, "the call was cancelled in the process that had it")
            raise
        except Exception as e:  # noqa: BLE001 as above
            self._failed(call, e)
        finally:
            self._unanswered -= 1
            self.read_on()

    def _send_answer(self, call: Frame, answer: Parts) -> None:
        self.send_frame(Kind.ANSWER, call.method, call.log, call.call, answer)

    def _failed(self, call: Frame, error: Exception) -> None:
        known = isinstance(error, ImrayError)
        level = logging.WARNING if known else logging.ERROR
        log.log(level, "method %d of log %d failed: %s", call.method, call.log, error, exc_info=not known and error)
        self._no_answer(call, f"{type(error).__name__}: {error}")

    def _no_answer(self, call: Frame, text: str) -> None:
        content = text[:_ERROR_CHARS_MAX].encode(errors="replace")
        self.send_frame(Kind.ERROR, call.method, call.log, call.call, (content,))

    def pause_writing(self) -> None:
        """Of asyncio: too much is unsent."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Of asyncio."""
        self._writing_paused = False
        self.read_on()

    def on_lost(self, _reason: str) -> None:
        """Of `Connection`. Calls that are being executed go on: whoever called asks again."""
        self._server.gone(self)
        if not self.admitted.done():
            self.admitted.set_result(None)
        callbacks = self._close_callbacks
        self._close_callbacks = []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # the others must hear of it, too
                log.exception("a callback for the end of a connection failed")


Handler: TypeAlias = Callable[[memoryview, ServerConnection], Parts | Awaitable[Parts]]
"""Gets a call's content, whose memory is its own, and returns the answer's: at once, or by something to await, which
costs a task. An error: the caller gets NoAnswerError."""


class RpcServer:
    """Answers calls for as long as the process lives, or until it is closed."""

    def __init__(
        self,
        frame_bytes_max: int,
        tls: ssl.SSLContext | None = None,
        handshake_s: float = 10.0,
        strangers_max: int = 64,
        connections_max: int = 1024,
        push_bytes_max: int = PUSH_BYTES_MAX,
    ) -> None:
        """`frame_bytes_max`: content of one call. `handshake_s`: for a stranger to prove that it knows the key.
        `strangers_max`: one more puts out the oldest stranger. `connections_max`: of those that know the key; one more
        is refused. `push_bytes_max`: unsent bytes of one connection above which nothing is pushed."""
        self.frame_bytes_max = frame_bytes_max
        self._tls = tls
        self._handshake_s = handshake_s
        self._strangers_max = strangers_max
        self._connections_max = connections_max
        self._push_bytes_max = push_bytes_max
        self.key = b""
        self._handlers: dict[int, dict[int, Handler]] = {}
        self._strangers: dict[ServerConnection, asyncio.Task[None]] = {}
        """Who has not proved yet that it knows the key, oldest first."""
        self.connections: set[ServerConnection] = set()
        """Who has."""
        self.running: set[asyncio.Task[None]] = set()
        """Calls that are being executed: asyncio itself holds its tasks by weak references only."""
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def open(self, host: str) -> Endpoint:
        """Listen on a free port of an address, under a fresh key."""
        if self._listener is not None:
            raise RuntimeError("the server is open already")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        self._listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.key = secrets.token_bytes(32)
        self._accepting = loop.create_task(self._accept(self._listener))
        return Endpoint(host, self._listener.getsockname()[1], self.key)

    def serve(self, log_number: int, handlers: Mapping[Method, Handler]) -> None:
        """Take calls for a log from now on, in place of what was registered for it."""
        self._handlers[log_number] = {int(method): handler for method, handler in handlers.items()}

    def forget(self, log_number: int) -> None:
        """Take no more calls for a log. Those that are being executed go on."""
        self._handlers.pop(log_number, None)

    def handler(self, log_number: int, method: int) -> Handler | None:
        """Who answers; None: nobody."""
        return self._handlers.get(log_number, {}).get(method)

    async def close(self) -> None:
        """Listen no more and cut every connection: who waits has no answer. Calls being executed go on."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        strangers = list(self._strangers.values())
        for task in strangers:
            task.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as e:
                # out of descriptors, say, or the other end is gone already: the next one may fare better
                log.warning("a connection failed: %s", e)
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            while len(self._strangers) >= self._strangers_max:
                oldest = next(iter(self._strangers))
                self._strangers.pop(oldest).cancel()
            caller = ServerConnection(self, self._push_bytes_max)
            self._strangers[caller] = loop.create_task(self._shake_hands(caller, accepted))
            # a crowd that connects must not keep the loop from everybody else
            await asyncio.sleep(0)

    async def _shake_hands(self, caller: ServerConnection, accepted: socket.socket) -> None:
        """Let it in, or close it. TLS counts: its handshake is under the same bounds."""
        encrypted: dict[str, Any] = {}
        if self._tls is not None:
            encrypted = {"ssl": self._tls, "ssl_handshake_timeout": self._handshake_s}
        try:
            async with asyncio.timeout(self._handshake_s):
                await asyncio.get_running_loop().connect_accepted_socket(lambda: caller, accepted, **encrypted)
                await caller.admitted
        except (OSError, TimeoutError) as e:
            log.warning("a connection did not get through the handshake: %s", str(e) or "it took too long")
        finally:
            self._strangers.pop(caller, None)
            if caller not in self.connections and not caller.closed and not _is_closing(caller):
                caller.abort()

    def admit(self, caller: ServerConnection) -> bool:
        """It knows the key. False: there is no room for it."""
        self._strangers.pop(caller, None)
        if len(self.connections) >= self._connections_max:
            return False
        self.connections.add(caller)
        return True

    def run(self, call: Coroutine[Any, Any, None]) -> None:
        """Execute a call, whatever becomes of its connection."""
        task = asyncio.get_running_loop().create_task(call)
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    def gone(self, caller: ServerConnection) -> None:
        """Its connection is lost."""
        self.connections.discard(caller)


def _is_closing(caller: ServerConnection) -> bool:
    return hasattr(caller, "transport") and caller.transport.is_closing()
