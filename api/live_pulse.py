"""When a live connection is pinged, warned or closed: a machine without a clock or a connection.

Owns the moments. Does not own what is written then (`api.live_connection`). Whoever has the connection looks at it a
few times a second at most, and passes the time.
"""

from __future__ import annotations

from enum import Enum

_WARNING_S = 60.0
"""Before a token expires its client is told."""
_CLOSING_S_MAX = 2.0
"""A client answers a close frame at once, or it is gone."""
_PINGS_UNANSWERED = 2
"""Intervals of silence after which a connection is given up."""


class Due(Enum):
    """What is to be done now."""

    NOTHING = "nothing"
    PING = "ping"
    WARN = "warn"
    """The token expires soon."""
    EXPIRED = "expired"
    """The token is not taken any more."""
    NO_TOKEN = "no token"
    """It has not said who it is in time."""
    GONE = "gone"
    """It gave no sign of life, or did not answer a close frame."""


class Pulse:
    """The moments of one connection."""

    __slots__ = (
        "_alive_at",
        "_auth_by",
        "_closing_at",
        "_expires_at",
        "_ping_interval_s",
        "_pinged",
        "_warned",
        "heard",
    )

    def __init__(self, now: float, header_deadline_s: float, ping_interval_s: float) -> None:
        self._ping_interval_s = ping_interval_s
        self._alive_at = now
        self._auth_by: float | None = now + header_deadline_s
        self._expires_at = float("inf")
        self._warned = False
        self._pinged = False
        self._closing_at: float | None = None
        self.heard = False
        """Something came since the last look: no clock is read for what arrives."""

    @property
    def expires_at(self) -> float:
        """When the token is not taken any more."""
        return self._expires_at

    def known(self, expires_at: float) -> None:
        """A token was taken."""
        self._auth_by = None
        self._expires_at = expires_at
        self._warned = False

    def closing(self, now: float) -> None:
        """A close frame was written."""
        if self._closing_at is None:
            self._closing_at = now

    def look(self, now: float, excused: bool) -> Due:
        """What is due. `excused`: it took some of what waits for it, or it is we who do not read."""
        if self._closing_at is not None:
            return Due.GONE if now - self._closing_at >= _CLOSING_S_MAX else Due.NOTHING
        if self.heard or excused:
            self.heard = False
            self._alive_at = now
            self._pinged = False
        if self._auth_by is not None and now >= self._auth_by:
            return Due.NO_TOKEN
        if now >= self._expires_at:
            return Due.EXPIRED
        silent_s = now - self._alive_at
        if silent_s >= _PINGS_UNANSWERED * self._ping_interval_s:
            return Due.GONE
        if silent_s >= self._ping_interval_s and not self._pinged:
            self._pinged = True
            return Due.PING
        if now >= self._expires_at - _WARNING_S and not self._warned:
            self._warned = True
            return Due.WARN
        return Due.NOTHING
