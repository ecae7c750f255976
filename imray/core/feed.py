"""One conversation as a gateway tells it: whatever its logs publish, and when, comes out in the order of numbers.

Owns what is told next, what is held back, and when a hole is pulled. Pure: the caller passes the time in, feeds events,
and carries out what is returned. Works on runs of consecutive numbers, never on single messages.
Does not own who listens, pages, or what was told before (`imray.engine.live_feed`).

What is published is a hint, and may be lost; `stable_seq` of the home shard alone says what is complete.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, Self, TypeVar

HOLE_MS = 50
"""A hole at or below `stable_seq` is pulled when it is open for so long: a publication is mostly faster."""
RETRY_MS_MIN = 100
RETRY_MS_MAX = 2_000
"""The pause after a pull that failed; it doubles from the minimum to the maximum."""
HELD_BYTES_MAX = 8 * 1024 * 1024
"""Held back: a commit of the largest. More is dropped, the highest first, and pulled later."""


class Sliceable(Protocol):
    """Messages in the order of their numbers: a list, say."""

    def __getitem__(self, which: slice, /) -> Self:
        """Some of them."""


RowsT = TypeVar("RowsT", bound=Sliceable)


@dataclass(frozen=True, slots=True)
class Stretch(Generic[RowsT]):
    """Messages with the numbers first, first + 1, ... last."""

    first: int
    last: int
    rows: RowsT
    size: int = 0
    """Bytes of memory, about."""

    def cut(self, first: int, last: int) -> Stretch[RowsT]:
        """Those with numbers first..last."""
        if first == self.first and last == self.last:
            return self
        rows = self.rows[first - self.first : last - self.first + 1]
        return Stretch(first, last, rows, self.size * (last - first + 1) // (self.last - self.first + 1))


@dataclass(frozen=True, slots=True)
class Tell(Generic[RowsT]):
    """Everything above `after` up to `upto`: all of it is in these runs, or in `holes` (first, last, reason)."""

    after: int
    upto: int
    runs: Sequence[Stretch[RowsT]]
    holes: Sequence[tuple[int, int, str]] = ()


@dataclass(frozen=True, slots=True)
class PullHole:
    """Ask the history for after < number <= upto; then call `pulled` or `pull_failed`, once."""

    after: int
    upto: int


Action = Tell[RowsT] | PullHole

_first = attrgetter("first")


class Feed(Generic[RowsT]):
    """The order of one conversation. Times are monotonic milliseconds, and decide no order."""

    def __init__(self, stable: int) -> None:
        """`stable`: all up to it is told by others; what lies above is told here."""
        self.position = stable
        """Everything up to it was told."""
        self.stable = stable
        """The highest that was heard of the home shard."""
        self.timer_at_ms: int | None = None
        """When `tick` is due; None: no timer."""
        self._held: list[Stretch[RowsT]] = []
        """Ascending, without overlaps."""
        self.held_bytes = 0
        self._pull: PullHole | None = None
        """The one that has no answer yet."""
        self._failures = 0

    def published(self, runs: Iterable[Stretch[RowsT]], stable: int, now_ms: int) -> list[Action[RowsT]]:
        """Rows that are durable, and what the home shard said of `stable_seq` (0: nothing)."""
        for run in runs:
            self._hold(run)
        self.stable = max(self.stable, stable)
        return self._finish([], now_ms)

    def pulled(
        self, runs: Iterable[Stretch[RowsT]], holes: Sequence[tuple[int, int, str]], upto: int, now_ms: int
    ) -> list[Action[RowsT]]:
        """The pull's answer: every number above its `after` up to `upto` is in a run or in a hole."""
        asked = self._pull
        self._pull = None
        self._failures = 0
        self.stable = max(self.stable, upto)
        actions: list[Action[RowsT]] = []
        at = self.position
        if asked is not None and asked.after <= at < upto:
            told = [
                run.cut(max(run.first, at + 1), min(run.last, upto))
                for run in runs
                if at < run.last and run.first <= upto
            ]
            explained = [(max(a, at + 1), min(b, upto), why) for a, b, why in holes if b > at and a <= upto]
            actions.append(Tell(at, upto, told, explained))
            self._move_to(upto)
        return self._finish(actions, now_ms, at_once=True)

    def pull_failed(self, now_ms: int) -> list[Action[RowsT]]:
        """The pull has no answer."""
        self._pull = None
        pause_ms = min(RETRY_MS_MAX, RETRY_MS_MIN << min(self._failures, 10))
        self._failures += 1
        self.timer_at_ms = now_ms + pause_ms
        return []

    def tick(self, now_ms: int) -> list[Action[RowsT]]:
        """The timer fired."""
        if self.timer_at_ms is None or now_ms < self.timer_at_ms:
            return []
        self.timer_at_ms = None
        return self._finish([], now_ms, at_once=True)

    def _hold(self, run: Stretch[RowsT]) -> None:
        """Keep the numbers of a run that are neither told nor held already."""
        first = max(run.first, self.position + 1)
        at = bisect_left(self._held, first, key=_first)
        if at and self._held[at - 1].last >= first:
            first = self._held[at - 1].last + 1
        while first <= run.last:
            following = self._held[at] if at < len(self._held) else None
            last = run.last if following is None else min(run.last, following.first - 1)
            if first <= last:
                part = run.cut(first, last)
                insort(self._held, part, key=_first)
                self.held_bytes += part.size
                at += 1
            if following is None:
                break
            first = following.last + 1
            at += 1
        while self.held_bytes > HELD_BYTES_MAX and len(self._held) > 1:
            self.held_bytes -= self._held.pop().size

    def _advance(self) -> Tell[RowsT] | None:
        """What follows without a hole, up to `stable`."""
        runs: list[Stretch[RowsT]] = []
        at = self.position
        for run in self._held:
            if run.first != at + 1 or at >= self.stable:
                break
            last = min(run.last, self.stable)
            runs.append(run.cut(run.first, last))
            at = last
        if not runs:
            return None
        told = Tell(self.position, at, runs)
        self._move_to(at)
        return told

    def _move_to(self, position: int) -> None:
        self.position = position
        gone = 0
        for run in self._held:
            if run.first > position:
                break
            gone += 1
            self.held_bytes -= run.size
            last = run
        rest = self._held[gone:]
        if gone and last.last > position:
            kept = last.cut(position + 1, last.last)
            rest.insert(0, kept)
            self.held_bytes += kept.size
        self._held = rest

    def _finish(self, actions: list[Action[RowsT]], now_ms: int, at_once: bool = False) -> list[Action[RowsT]]:
        """Tell what can be told; look after the hole behind it. `at_once`: it has been open for long enough."""
        told = self._advance()
        if told is not None:
            actions.append(told)
        if self.position >= self.stable:
            self.timer_at_ms = None
        elif self._pull is not None:
            pass  # its answer decides
        elif at_once:
            self.timer_at_ms = None
            self._pull = PullHole(self.position, self._hole_end())
            actions.append(self._pull)
        elif self.timer_at_ms is None or told is not None:
            self.timer_at_ms = now_ms + HOLE_MS
        return actions

    def _hole_end(self) -> int:
        return min(self.stable, self._held[0].first - 1) if self._held else self.stable
