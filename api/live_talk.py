"""Small talk: frames and items of a live connection that say nothing, and cost nobody but the gateway.

Owns how many there may be. Pure: whoever has the connection looks at it now and then, and passes the time.
"""

from __future__ import annotations

from typing import Final

_PER_S: Final = 100.0
_BURST: Final = 200
"""Of who has shown a token. A client pings a few times a minute."""
_STRANGERS_BURST: Final = 10


class SmallTalk:
    """Of one connection: a count that runs out at a fixed rate."""

    __slots__ = ("_count", "_max", "_seen_at")

    def __init__(self, now: float) -> None:
        self._count = 0.0
        self._max = _STRANGERS_BURST
        self._seen_at = now

    def known(self) -> None:
        """A token was taken."""
        self._max = _BURST

    def more(self) -> bool:
        """One more; False: that is one too many."""
        self._count += 1
        return self._count <= self._max

    def look(self, now: float) -> None:
        """Time has passed."""
        self._count = max(0.0, self._count - (now - self._seen_at) * _PER_S)
        self._seen_at = now
