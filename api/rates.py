"""How much one caller may ask for: token buckets, one a caller, and few enough of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from api.problems import ProblemError
from imray.settings import Settings


class Buckets:
    """`per_s` on average and `burst` at once, for each caller. Pure: who calls passes the time.

    Whoever finds its bucket full may take more than there is in it, and waits the longer for it: a large batch passes
    under a low limit, but not often. Of `callers_max` callers the one that was silent longest is forgotten; it comes
    back with a full bucket."""

    def __init__(self, per_s: float, burst: float, callers_max: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._callers_max = callers_max
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What each has left, and when that was."""

    def __len__(self) -> int:
        return len(self._left)

    def take(self, caller: str, cost: float, now_s: float) -> float:
        """0.0: it is taken. Else how many seconds to wait before the next try; nothing is taken then."""
        left, at = self._left.get(caller, (self._burst, now_s))
        left = min(self._burst, left + max(0.0, now_s - at) * self._per_s)
        missing = min(cost, self._burst) - left
        if missing <= 0:
            left -= cost
        self._left[caller] = (left, now_s)
        self._left.move_to_end(caller)
        if len(self._left) > self._callers_max:
            self._left.popitem(last=False)
        return max(0.0, missing / self._per_s)


class Rates:
    """The limits that an operator has set. Services have none: they speak for many."""

    def __init__(self, settings: Settings, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._requests = _buckets(settings.caller_requests_per_s, settings)
        self._messages = _buckets(settings.caller_messages_per_s, settings)
        self._subscribes: Buckets | None = None
        if settings.live_subscribes_per_s > 0:
            burst = max(1.0, settings.live_subscribes_burst)
            self._subscribes = Buckets(settings.live_subscribes_per_s, burst, settings.callers_remembered_max)

    def request(self, sender: str, service: bool, count: int = 1) -> None:
        """So many more requests; ProblemError 429 where that is too many."""
        if self._requests is not None and not service:
            self._take(self._requests, sender, count, "requests")

    def subscribe(self, sender: str, service: bool) -> None:
        """One more subscription is made; ProblemError 429 where that is too many."""
        if self._subscribes is not None and not service:
            self._take(self._subscribes, sender, 1, "subscriptions")

    def messages(self, sender: str, service: bool, count: int) -> None:
        """So many more messages; ProblemError 429 where that is too many."""
        if self._messages is not None and not service:
            self._take(self._messages, sender, count, "messages")

    def _take(self, buckets: Buckets, sender: str, count: int, what: str) -> None:
        wait_s = buckets.take(sender, count, self._clock_s())
        if wait_s > 0:
            raise ProblemError(429, "too-many", f"too many {what} of this caller: retry after {wait_s:.1f} s", wait_s)


def _buckets(per_s: float, settings: Settings) -> Buckets | None:
    if per_s <= 0:
        return None
    return Buckets(per_s, max(1.0, per_s * settings.caller_burst_s), settings.callers_remembered_max)
