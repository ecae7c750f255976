"""Whose pull of history is next: fair turns between callers, and a bound for the pages that are on their way.

The next turn goes to who had least of late, what is asked for now included: one who asks for little waits for one pull
of the others, not for all. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from api.problems import ProblemError
from imray.settings import Settings

SMALL_BYTES = 64 * 1024
"""A page of that size is not counted among those on their way: it passes even where there is no room for a larger one.
Any pull costs about as much as one."""
_MESSAGE_BYTES = 1024
"""What a message is taken to have before its page is there."""
_HALF_LIFE_S = 10.0
_SHARE = 4
"""One caller may hold such a part of all pages."""


class Accounts:
    """How much each caller had of late: it counts half after `_HALF_LIFE_S`. Pure: who calls passes the time."""

    def __init__(self, callers_max: int) -> None:
        self._callers_max = callers_max
        self._had: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._had)

    def had(self, caller: str, now_s: float) -> float:
        """Bytes, about."""
        found = self._had.get(caller)
        if found is None:
            return 0.0
        amount, at_s = found
        share: float = 0.5 ** ((now_s - at_s) / _HALF_LIFE_S)
        return amount * share

    def charge(self, caller: str, amount: float, now_s: float) -> None:
        """The caller got so much more."""
        self._had[caller] = (self.had(caller, now_s) + amount, now_s)
        self._had.move_to_end(caller)
        if len(self._had) > self._callers_max:
            self._had.popitem(last=False)


class Pulls:
    """The turns of each shard: one that does not answer holds up its own pulls only."""

    def __init__(self, shards: int, settings: Settings, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._bytes_max = settings.history_pages_bytes_max
        self._accounts = Accounts(settings.callers_remembered_max)
        self._pages: dict[str, int] = {}
        """Bytes of the pages that each caller has not taken yet."""
        self.bytes = 0
        self._turns = [_Turns(settings, self._had, self._may) for _ in range(shards)]

    @asynccontextmanager
    async def turn(self, shard: int, caller: str, limit: int) -> AsyncIterator[None]:
        """Wait for a turn to read at most `limit` messages, and hold it. ProblemError 429 or 503 where too many wait,
        or too long."""
        turns = self._turns[shard]
        await turns.take(caller, limit * _MESSAGE_BYTES)
        try:
            yield
        finally:
            turns.give(caller)

    def hold_page(self, caller: str, size: int) -> bool:
        """A page is there. True: it counts as on its way until `taken` says that it has gone; False: it is small.
        ProblemError 503: there is no room for it."""
        self._accounts.charge(caller, SMALL_BYTES + size, self._clock_s())
        if size <= SMALL_BYTES:
            return False
        if self.bytes + size > self._bytes_max:
            raise ProblemError(503, "busy", "the gateway holds too many large pages: retry later, or ask for less", 2.0)
        self._pages[caller] = self._pages.get(caller, 0) + size
        self.bytes += size
        return True

    def taken(self, caller: str, size: int) -> None:
        """A page has gone, or nobody wants it any more."""
        self.bytes -= size
        left = self._pages.pop(caller) - size
        if left > 0:
            self._pages[caller] = left
        for turns in self._turns:
            turns.grant()

    def _had(self, caller: str) -> float:
        return self._accounts.had(caller, self._clock_s())

    def _may(self, caller: str) -> bool:
        """Not while it holds its share of all pages: it takes those first."""
        return self._pages.get(caller, 0) < self._bytes_max // _SHARE


@dataclass(frozen=True, eq=False)
class _Asked:
    """A pull that waits: about how much it asks for, and its turn."""

    size: int
    turn: asyncio.Future[None]


class _Turns:
    """The turns of one shard."""

    def __init__(self, settings: Settings, had: Callable[[str], float], may: Callable[[str], bool]) -> None:
        self._settings = settings
        self._had = had
        self._may = may
        self._free = settings.history_turns_max
        self._active: dict[str, int] = {}
        self._waiting: dict[str, deque[_Asked]] = {}
        """By caller, in the order in which their first came; no queue is empty."""
        self._count = 0

    async def take(self, caller: str, size: int) -> None:
        """Wait for a turn of the caller."""
        self._check(caller)
        asked = _Asked(size, asyncio.get_running_loop().create_future())
        mine = asked.turn
        self._waiting.setdefault(caller, deque()).append(asked)
        self._count += 1
        self.grant()
        if mine.done():
            return
        try:
            async with asyncio.timeout(self._settings.history_wait_s):
                await mine
        except (TimeoutError, asyncio.CancelledError) as e:
            if mine.done() and not mine.cancelled():
                self.give(caller)  # the turn came with the end of the wait
            else:
                self._forget(caller, asked)
            if isinstance(e, TimeoutError):
                raise ProblemError(503, "busy", "too many pulls of history at once: retry later", 1.0) from None
            raise

    def give(self, caller: str) -> None:
        """A turn of the caller has ended."""
        self._free += 1
        left = self._active.pop(caller) - 1
        if left:
            self._active[caller] = left
        self.grant()

    def grant(self) -> None:
        """Give the free turns to those that had least; of those that had the same to who waits longest."""
        while self._free and self._waiting:
            able = [caller for caller in self._waiting if self._able(caller)]
            if not able:
                return
            caller = min(able, key=self._with_next)
            first = self._waiting[caller][0]
            self._forget(caller, first)
            if first.turn.done():
                continue  # its request has ended
            self._free -= 1
            self._active[caller] = self._active.get(caller, 0) + 1
            first.turn.set_result(None)

    def _with_next(self, caller: str) -> float:
        return self._had(caller) + self._waiting[caller][0].size

    def _able(self, caller: str) -> bool:
        return self._active.get(caller, 0) < self._settings.history_turns_per_caller_max and self._may(caller)

    def _check(self, caller: str) -> None:
        if len(self._waiting.get(caller, ())) >= self._settings.history_waiting_per_caller_max:
            raise ProblemError(429, "too-many", "too many pulls of this caller wait already: retry later", 1.0)
        if self._count >= self._settings.history_waiting_max:
            raise ProblemError(503, "busy", "too many pulls of history wait already: retry later", 1.0)

    def _forget(self, caller: str, one: _Asked) -> None:
        queue = self._waiting.get(caller)
        if queue is None or one not in queue:
            return
        queue.remove(one)
        self._count -= 1
        if not queue:
            del self._waiting[caller]
