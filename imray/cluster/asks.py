"""Asks and their answers over one TCP connection for each sub-topic, beside Ray.

Measured: a Ray call costs the actor that answers it 1 to 4 ms of CPU here, whatever is in it; the work of an ask is a
tenth of that, and the home shard's CPU bounds a hot group. So Ray says where the home shard listens, and asks go there
directly. Frames are pickles between processes of one deployment; who connects proves first that it knows the key which
Ray gave it (the challenge of `multiprocessing.connection`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

log = logging.getLogger("imray.asks")

_BACKLOG = 128
_ACCEPT_AGAIN_S = 0.05


@dataclass(frozen=True)
class Door:
    """Where a home shard takes asks, and the key."""

    host: str
    port: int
    key: bytes


class AskServer:
    """Answers asks, each connection in a thread of its own."""

    def __init__(self, host: str, answer: Callable[..., Any]) -> None:
        """`answer` is called with what a client sent, in the connection's thread; an error ends the connection."""
        self._answer = answer
        key = secrets.token_bytes(32)
        # the challenge is each connection's own business: one that stops in the middle must not hold up the others
        self._listener = Listener((host, 0), "AF_INET", _BACKLOG)
        self.door = Door(host, self._listener.address[1], key)
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._ended = False
        self.answered = 0
        self.cpu_s = 0.0
        """What the answering threads have used, from the first byte of an ask to the last of its answer."""
        threading.Thread(target=self._accept, name="asks", daemon=True).start()

    def _accept(self) -> None:
        while not self._ended:
            try:
                connection = self._listener.accept()
            except OSError as e:
                if self._ended:
                    return
                # out of descriptors, say, or the other end is gone already: the next one may fare better
                log.warning("a connection for asks failed: %s", e)
                time.sleep(_ACCEPT_AGAIN_S)
                continue
            _at_once(connection)
            with self._lock:
                if self._ended:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="ask", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        try:
            deliver_challenge(connection, self.door.key)
            answer_challenge(connection, self.door.key)
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
            pass  # the sub-topic is gone, or we are; it asks again
        finally:
            with self._lock:
                self._connections.discard(connection)
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
                # its thread sees the end and closes it: closing it here would pull it away under a read
                with contextlib.suppress(OSError), _socket(connection) as same:
                    same.shutdown(socket.SHUT_RDWR)


def _socket(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))


def _at_once(connection: Connection) -> None:
    """A frame is two writes: without this the second waits for the first's acknowledgement (Nagle), up to 40 ms."""
    with _socket(connection) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class NoAnswerError(Exception):
    """The connection broke, or nothing came in time: whether the ask was looked at is unknown."""


class AskClient:
    """One connection. Not thread-safe."""

    def __init__(self, door: Door) -> None:
        """NoAnswerError where nobody listens there any more."""
        try:
            self._connection = Client((door.host, door.port), authkey=door.key)
        except (OSError, EOFError, AuthenticationError) as e:
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
