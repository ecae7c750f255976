"""Asks and their answers over one TCP connection for each partition, beside Ray.

Measured: a Ray call costs the actor that answers it 1 to 4 ms of CPU here, whatever is in it; the work of an ask is a
tenth of that, and the home shard's CPU bounds a hot group. So Ray says where the home shard listens, and asks go there
directly. Frames are pickles between processes of one deployment; who connects proves first that it knows the key which
Ray gave it (the challenge of `multiprocessing.connection`). Each connection takes a thread, so there are few, and one
that has not proved it makes room for a new one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

log = logging.getLogger("imray.asks")

_BACKLOG = 128
_ACCEPT_AGAIN_S = 0.05
_HANDSHAKE_S = 10.0
_CONNECTIONS_MAX = 256
"""One for each partition of a shard, and those of their predecessors."""
_LOOKS_A_HANDSHAKE = 4


@dataclass(frozen=True)
class Door:
    """Where a home shard takes asks, and the key."""

    host: str
    port: int
    key: bytes


class AskServer:
    """Answers asks, each connection in a thread of its own."""

    def __init__(
        self,
        host: str,
        answer: Callable[..., Any],
        handshake_s: float = _HANDSHAKE_S,
        connections_max: int = _CONNECTIONS_MAX,
    ) -> None:
        """`answer` is called with what a client sent, in the connection's thread; an error ends the connection."""
        self._answer = answer
        self._handshake_s = handshake_s
        self._connections_max = connections_max
        # the challenge is each connection's own business: one that stops in the middle must not hold up the others
        self._listener = socket.create_server((host, 0), backlog=_BACKLOG)
        self._listener.settimeout(handshake_s / _LOOKS_A_HANDSHAKE)
        self.door = Door(host, self._listener.getsockname()[1], secrets.token_bytes(32))
        self._connections: set[Connection] = set()
        self._strangers: dict[Connection, float] = {}
        """Connections that have not shown the key yet, oldest first, and when they must have."""
        self._lock = threading.Lock()
        self._ended = False
        self.answered = 0
        self.cpu_s = 0.0
        """What the answering threads have used, from the first byte of an ask to the last of its answer."""
        threading.Thread(target=self._accept, name="asks", daemon=True).start()

    def _accept(self) -> None:
        while not self._ended:
            self._close_late()
            try:
                accepted, _ = self._listener.accept()
            except TimeoutError:
                continue  # a look at those that are late is due
            except OSError as e:
                if self._ended:
                    return
                # out of descriptors, say, or the other end is gone already: the next one may fare better
                log.warning("a connection for asks failed: %s", e)
                time.sleep(_ACCEPT_AGAIN_S)
                continue
            accepted.setblocking(True)
            connection = Connection(accepted.detach())
            if not self._admit(connection):
                connection.close()
                continue
            _at_once(connection)
            threading.Thread(target=self._serve, args=(connection,), name="ask", daemon=True).start()

    def _admit(self, connection: Connection) -> bool:
        """Take a connection in; one too many takes the place of the oldest that has not shown the key."""
        with self._lock:
            if self._ended:
                return False
            if len(self._connections) >= self._connections_max:
                if not self._strangers:
                    log.warning("more than %d connections for asks: one was refused", self._connections_max)
                    return False
                self._put_out(next(iter(self._strangers)))
            self._connections.add(connection)
            self._strangers[connection] = time.monotonic() + self._handshake_s
            return True

    def _close_late(self) -> None:
        """Close those that have not shown the key in time."""
        now = time.monotonic()
        with self._lock:
            for connection in [c for c, until in self._strangers.items() if until < now]:
                self._put_out(connection)

    def _put_out(self, connection: Connection) -> None:
        """Its thread sees the end and closes it: closing it here would pull it away under a read."""
        self._connections.discard(connection)
        self._strangers.pop(connection, None)
        _shut(connection)

    def _serve(self, connection: Connection) -> None:
        try:
            deliver_challenge(connection, self.door.key)
            answer_challenge(connection, self.door.key)
            with self._lock:
                self._strangers.pop(connection, None)
            while True:
                before = time.thread_time()
                connection.send(self._answer(*connection.recv()))
                used = time.thread_time() - before
                with self._lock:
                    self.answered += 1
                    self.cpu_s += used
        except AuthenticationError:
            log.warning("a connection without the key was refused")
        except (EOFError, OSError):
            pass  # the partition is gone, or we are; it asks again
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._strangers.pop(connection, None)
                # under the lock: nobody may shut down what has its number next
                connection.close()

    def end(self) -> None:
        """Close every connection: who asked has no answer."""
        self._ended = True
        # accept() does not notice that its socket was closed: a connection wakes it
        with contextlib.suppress(OSError):
            socket.create_connection((self.door.host, self.door.port), timeout=1).close()
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                _shut(connection)


def _socket(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))


def _shut(connection: Connection) -> None:
    with contextlib.suppress(OSError), _socket(connection) as same:
        same.shutdown(socket.SHUT_RDWR)


def _bound_waits(connection: Connection, timeout_s: float) -> None:
    """Every single read and write takes so long at most; 0: any time."""
    seconds = int(timeout_s)
    value = struct.pack("ll", seconds, int((timeout_s - seconds) * 1_000_000))
    with _socket(connection) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def _at_once(connection: Connection) -> None:
    """A frame is two writes: without this the second waits for the first's acknowledgement (Nagle), up to 40 ms."""
    with _socket(connection) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class NoAnswerError(Exception):
    """The connection broke, or nothing came in time: whether the ask was looked at is unknown."""


class AskClient:
    """One connection. Not thread-safe."""

    def __init__(self, door: Door, handshake_s: float = _HANDSHAKE_S) -> None:
        """NoAnswerError where nobody listens there any more, or does so without a word."""
        try:
            made = socket.create_connection((door.host, door.port), timeout=handshake_s)
        except OSError as e:
            raise NoAnswerError(f"no connection: {e}") from e
        made.setblocking(True)
        self._connection = Connection(made.detach())
        try:
            _bound_waits(self._connection, handshake_s)
            answer_challenge(self._connection, door.key)
            deliver_challenge(self._connection, door.key)
            _bound_waits(self._connection, 0)
        except (OSError, EOFError, AuthenticationError) as e:
            self.close()
            raise NoAnswerError(f"no connection: {e}") from e
        _at_once(self._connection)

    def ask(self, timeout_s: float, *what: Any) -> Any:
        """The answer. After NoAnswerError the connection is closed: a late answer must not be taken for the next."""
        try:
            self._connection.send(what)
            if self._connection.poll(timeout_s):
                return self._connection.recv()
        except (OSError, EOFError) as e:
            self.close()
            raise NoAnswerError(str(e) or "the connection was closed") from e
        self.close()
        raise NoAnswerError(f"no answer within {timeout_s:.1f} s")

    def close(self) -> None:
        """Close it."""
        self._connection.close()
