"""The connection of a delivery session: which one counts, when the next is made, whether it is alive.

Owns connection numbers, pauses between connections, pings. Pure. Does not own what is said over a connection
(`imray.core.delivery`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from imray.core.delivery_conversation import DeliveryConfig, jittered_pause_ms

_RETRIED_STATUS = frozenset({408, 425, 429})
_CODE_TOKEN = 4401
_CODE_MALFORMED = 4400
_CODE_WRONG_KIND = 1003
_SLOWER_CODES = frozenset({1013, 4429})


def may_be_retried(status: int) -> bool:
    """Whether a refusal may be another answer later."""
    return status in _RETRIED_STATUS or status >= 500


class LinkPhase(Enum):
    """What the session's connection is."""

    NEW = "none was made yet"
    CONNECTING = "on its way, up to the welcome"
    OPEN = "up"
    WAITING = "none, until the pause is over"
    ENDED = "none, for good"


class Link:
    """The connections of one session, one after the other."""

    def __init__(self, config: DeliveryConfig, random: Callable[[], float]) -> None:
        self.phase = LinkPhase.NEW
        self.conn = 0
        """The number of the connection that counts, or of the last one."""
        self.tries = 0
        """Connections in a row that did not hold."""
        self.refusal = ""
        """Why the server says that it closes the connection."""
        self._refusal_status: int | None = None
        self._config = config
        self._random = random
        self._ping_interval_ms = config.ping_interval_ms
        self._connect_at_ms = 0
        self._not_before_ms = 0
        self._began_at_ms = 0
        self._heard_at_ms = 0
        self._pinged = False
        self._drain_at_ms: int | None = None

    @property
    def is_up(self) -> bool:
        """Whether something can be sent."""
        return self.phase is LinkPhase.OPEN

    def is_current(self, conn: int) -> bool:
        """Whether an event is of the connection that counts."""
        return conn == self.conn and self.phase in (LinkPhase.CONNECTING, LinkPhase.OPEN)

    @property
    def timer_at_ms(self) -> int | None:
        """When the connection is to be looked at."""
        match self.phase:
            case LinkPhase.WAITING:
                return self._connect_at_ms
            case LinkPhase.CONNECTING:
                return self._began_at_ms + self._config.connect_timeout_ms
            case LinkPhase.OPEN:
                silent_ms = self._ping_interval_ms * (2 if self._pinged else 1)
                at_ms = self._heard_at_ms + silent_ms
                return at_ms if self._drain_at_ms is None else min(at_ms, self._drain_at_ms)
        return None

    def connect(self, now_ms: int) -> int:
        """A connection is made now; its number."""
        self.conn += 1
        self.phase = LinkPhase.CONNECTING
        self.refusal = ""
        self._refusal_status = None
        self._began_at_ms = now_ms
        self._drain_at_ms = None
        return self.conn

    def welcome(self, ping_interval_ms: int, now_ms: int) -> None:
        """The welcome came."""
        self.phase = LinkPhase.OPEN
        self._ping_interval_ms = min(
            max(ping_interval_ms, self._config.ping_interval_ms_min), self._config.ping_interval_ms_max
        )
        self._began_at_ms = now_ms
        self.hear(now_ms)

    def hear(self, now_ms: int) -> None:
        """Something came."""
        self._heard_at_ms = now_ms
        self._pinged = False

    def ping(self) -> None:
        """A ping goes out."""
        self._pinged = True

    def drain(self, reconnect_in_ms: int, now_ms: int) -> None:
        """The gateway ends; its moment for this connection is exact, since each one has another."""
        self._drain_at_ms = now_ms + self._bounded_ms(reconnect_in_ms)

    def refuse(self, status: int, detail: str) -> None:
        """The server says why it is about to close the connection."""
        self.refusal = detail
        self._refusal_status = status

    def hold_off(self, pause_ms: int, now_ms: int) -> None:
        """No connection is to be made for so long."""
        self._not_before_ms = max(self._not_before_ms, now_ms + self._bounded_ms(pause_ms))

    def is_drained(self, now_ms: int) -> bool:
        """Whether the moment has come that `drain` named."""
        return self._drain_at_ms is not None and now_ms >= self._drain_at_ms

    def is_silent(self, now_ms: int) -> bool:
        """Whether the connection is dead: nothing came, not even the answer to a ping."""
        return now_ms - self._heard_at_ms >= 2 * self._ping_interval_ms

    def lose(self, now_ms: int, code: int | None = None) -> None:
        """The connection is gone: the next one is made after a pause."""
        if code not in _SLOWER_CODES and self._has_held(now_ms):
            self.tries = 0
        config = self._config
        pause_ms = jittered_pause_ms(config.backoff_ms_min, config.backoff_ms_max, self.tries, self._random())
        self.tries += 1
        at_ms = now_ms + pause_ms if self._drain_at_ms is None else self._drain_at_ms
        self._connect_at_ms = max(at_ms, self._not_before_ms)
        self.phase = LinkPhase.WAITING

    def verdict(self, code: int | None) -> int | None:
        """The status that a close code stands for where another connection would end the same; None: try again."""
        if code == _CODE_TOKEN and self.phase is LinkPhase.CONNECTING:
            return 401  # one that was welcomed before has expired: the next connection brings another
        if code == _CODE_MALFORMED and self.phase is LinkPhase.CONNECTING:
            return 400  # nothing was asked yet, and the next one begins the same
        return 400 if code == _CODE_WRONG_KIND else None

    def is_malformed(self, code: int | None) -> bool:
        """Whether a close code says that something asked over this connection cannot be read, now or later."""
        is_for_now = self._refusal_status is not None and may_be_retried(self._refusal_status)
        return code == _CODE_MALFORMED and not is_for_now

    def _has_held(self, now_ms: int) -> bool:
        return self.phase is LinkPhase.OPEN and now_ms - self._began_at_ms >= self._config.hold_ms

    def _bounded_ms(self, pause_ms: int) -> int:
        return max(0, min(pause_ms, self._config.reconnect_ms_max))
