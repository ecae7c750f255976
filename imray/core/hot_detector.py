"""Which conversations turn hot or cold by their rate: thresholds with hysteresis. Pure: the clock is passed in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from imray.kernels.arrays import I32, I64


@dataclass
class HotDetector:
    """Counts a shard's new messages by conversation and says who crossed a threshold, and stayed there.

    Costs what was touched since the last tick, not what there is."""

    hot_rate_per_s: float
    """0: nothing turns hot by itself."""
    cold_rate_per_s: float
    ticks: int
    """Consecutive ticks over (under) the threshold before anything is said."""
    _touched: list[tuple[I32, I64]] = field(default_factory=list)
    _last: float | None = None
    _over: dict[int, int] = field(default_factory=dict)
    _under: dict[int, int] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    """Messages a second in the last tick, of the hot and of those over the threshold."""

    def add(self, conv: I32, count: I64) -> None:
        """New messages of some conversations."""
        self._touched.append((conv, count))

    def tick(self, now_s: float, hot: set[int]) -> tuple[list[int], list[int]]:
        """Those of the not hot that should be, and those of `hot` that turned hot by rate and should not be any more.

        The first tick only starts the clock."""
        touched = self._touched
        self._touched = []
        last = self._last
        self._last = now_s
        if last is None or now_s <= last:
            return [], []
        conv, total = _sums(touched)
        rate = total / (now_s - last)
        over = {int(c) for c in conv[rate >= self.hot_rate_per_s]} - hot if self.hot_rate_per_s > 0 else set()
        known = dict(zip(conv.tolist(), rate.tolist(), strict=True))
        under = {c for c in hot if known.get(c, 0.0) < self.cold_rate_per_s}
        self._over = {c: self._over.get(c, 0) + 1 for c in over}
        self._under = {c: self._under.get(c, 0) + 1 for c in under}
        self.rates = {c: known.get(c, 0.0) for c in hot | over}
        return (
            sorted(c for c, n in self._over.items() if n >= self.ticks),
            sorted(c for c, n in self._under.items() if n >= self.ticks),
        )


def _sums(touched: list[tuple[I32, I64]]) -> tuple[I32, I64]:
    if not touched:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    conv, at = np.unique(np.concatenate([c for c, _ in touched]), return_inverse=True)
    total = np.zeros(len(conv), np.int64)
    np.add.at(total, at, np.concatenate([n for _, n in touched]))
    return conv, total
