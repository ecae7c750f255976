"""Heat: thresholds with hysteresis, the clock passed in."""

from __future__ import annotations

import numpy as np

from imray.core.hot_detector import HotDetector


def _add(make_hot: HotDetector, *counts: tuple[int, int]) -> None:
    make_hot.add(np.array([c for c, _ in counts], np.int32), np.array([n for _, n in counts], np.int64))


def test_over_the_threshold_for_long_enough() -> None:
    make_hot = HotDetector(100.0, 25.0, ticks=2)
    assert make_hot.tick(0.0, set()) == ([], [])
    _add(make_hot, (3, 150), (4, 99))
    assert make_hot.tick(1.0, set()) == ([], [])
    _add(make_hot, (3, 60), (4, 99))
    _add(make_hot, (3, 40))
    assert make_hot.tick(2.0, set()) == ([3], [])
    assert make_hot.rates == {3: 100.0}


def test_one_slow_tick_begins_the_count_anew() -> None:
    make_hot = HotDetector(100.0, 25.0, ticks=2)
    make_hot.tick(0.0, set())
    for now, n in [(1.0, 100), (2.0, 99), (3.0, 100)]:
        _add(make_hot, (3, n))
        assert make_hot.tick(now, set()) == ([], [])
    _add(make_hot, (3, 100))
    assert make_hot.tick(4.0, set()) == ([3], [])


def test_the_rate_is_per_second_not_per_tick() -> None:
    make_hot = HotDetector(100.0, 25.0, ticks=1)
    make_hot.tick(0.0, set())
    _add(make_hot, (3, 199))
    assert make_hot.tick(2.0, set()) == ([], [])
    _add(make_hot, (3, 50))
    assert make_hot.tick(2.5, set()) == ([3], [])


def test_hot_ones_cool_between_the_thresholds_only_below_the_lower() -> None:
    make_hot = HotDetector(100.0, 25.0, ticks=2)
    make_hot.tick(0.0, {3})
    for now in (1.0, 2.0, 3.0):
        _add(make_hot, (3, 30))
        assert make_hot.tick(now, {3}) == ([], [])
    _add(make_hot, (3, 24))
    assert make_hot.tick(4.0, {3}) == ([], [])
    assert make_hot.tick(5.0, {3}) == ([], [3])
    assert make_hot.rates == {3: 0.0}


def test_what_is_hot_is_not_said_to_turn_hot() -> None:
    make_hot = HotDetector(100.0, 25.0, ticks=1)
    make_hot.tick(0.0, {3})
    _add(make_hot, (3, 1000))
    assert make_hot.tick(1.0, {3}) == ([], [])


def test_zero_turns_nothing_hot_by_itself() -> None:
    make_hot = HotDetector(0.0, 0.0, ticks=1)
    make_hot.tick(0.0, set())
    _add(make_hot, (3, 10**9))
    assert make_hot.tick(1.0, set()) == ([], [])


def test_a_clock_that_stands_or_goes_back_says_nothing() -> None:
    make_hot = HotDetector(1.0, 0.5, ticks=1)
    make_hot.tick(5.0, set())
    _add(make_hot, (3, 1000))
    assert make_hot.tick(5.0, set()) == ([], [])
    _add(make_hot, (3, 1000))
    assert make_hot.tick(4.0, {9}) == ([], [])
    _add(make_hot, (3, 1000))
    assert make_hot.tick(5.0, set()) == ([3], [])
