"""One timer for the deadlines of all connections: none is set or cleared in the way of a request."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections import OrderedDict
from typing import Protocol

from imray.settings import Settings

_SPARE_CONNECTIONS = 64
"""Beyond the bounds: each may say what it wants, and gets health or a refusal. The oldest makes room for the newest."""
_LOOK_S_MAX = 1.0
_LOOKS_A_DEADLINE = 5


class Watched(Protocol):
    """A connection."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def look(self, now: float) -> None:
        """Refuse or close what is late."""

    def __hash__(self) -> int: ...


class Watch:
    """Looks at the deadlines of all connections of a gateway."""

    def __init__(self, settings: Settings) -> None:
        deadlines = (settings.header_deadline_s, settings.request_deadline_s, settings.write_deadline_s)
        shortest = min(*deadlines, settings.live_ping_interval_s)
        self._every_s = min(_LOOK_S_MAX, shortest / _LOOKS_A_DEADLINE)
        self._connections: set[Watched] = set()
        self._spare: OrderedDict[Watched, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def join(self, connection: Watched) -> None:
        """Watch a connection, until it leaves."""
        self._connections.add(connection)
        if self._timer is None:
            self._timer = connection.loop.call_later(self._every_s, self._look, connection.loop)

    def join_spare(self, connection: Watched) -> None:
        """One beyond the bounds; closes the oldest of these where there are too many."""
        self._spare[connection] = None
        if len(self._spare) > _SPARE_CONNECTIONS:
            oldest, _ = self._spare.popitem(last=False)
            oldest.transport.abort()

    def leave(self, connection: Watched) -> None:
        """It is closed."""
        self._connections.discard(connection)
        self._spare.pop(connection, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for connection in list(self._connections):
            connection.look(now)
        if self._connections:
            self._timer = loop.call_later(self._every_s, self._look, loop)


class ReadingPace:
    """Whether a client takes what is written to it, at a least rate."""

    __slots__ = ("_began", "_taken")

    def __init__(self) -> None:
        self._began: float | None = None
        self._taken = 0

    def reset(self) -> None:
        """It has read all that waited."""
        self._began = None

    def keeps_up(self, now: float, taken: int, settings: Settings) -> bool:
        """False: of what waits for it, it took less than it must. `taken`: bytes, counted from anywhere."""
        if self._began is None:
            self._began = now
            self._taken = taken
            return True
        if now - self._began < settings.write_deadline_s:
            return True
        before = self._taken
        self._began = now
        self._taken = taken
        return taken - before >= settings.write_bytes_per_s_min * settings.write_deadline_s


def unsent(transport: asyncio.Transport) -> int:
    """What the kernel holds of an answer: it takes more only when much of that is read, and a client that reads slowly
    but steadily would seem to read nothing."""
    try:
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError, AttributeError):
        return 0  # it is being closed, or it is no socket of the kernel's
    return int.from_bytes(queued, sys.byteorder)
