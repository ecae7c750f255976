"""Heat: thresholds with hysteresis, the clock passed in."""

from __future__ import annotations

import numpy as np

from imray.core.heat import Heat


def _add(heat: Heat, *counts: tuple[int, int]) -> None:
    heat.add(np.array([c for c, _ in counts], np.int32), np.array([n for _, n in counts], np.int64))


def test_over_the_threshold_for_long_enough() -> None:
    heat = Heat(100.0, 25.0, ticks=2)
    assert heat.tick(0.0, set()) == ([], [])
    _add(heat, (3, 150), (4, 99))
    assert heat.tick(1.0, set()) == ([], [])
    _add(heat, (3, 60), (4, 99))
    _add(heat, (3, 40))
    assert heat.tick(2.0, set()) == ([3], [])
    assert heat.rates == {3: 100.0}


def test_one_slow_tick_begins_the_count_anew() -> None:
    heat = Heat(100.0, 25.0, ticks=2)
    heat.tick(0.0, set())
    for now, n in [(1.0, 100), (2.0, 99), (3.0, 100)]:
        _add(heat, (3, n))
        assert heat.tick(now, set()) == ([], [])
    _add(heat, (3, 100))
    assert heat.tick(4.0, set()) == ([3], [])


def test_the_rate_is_per_second_not_per_tick() -> None:
    heat = Heat(100.0, 25.0, ticks=1)
    heat.tick(0.0, set())
    _add(heat, (3, 199))
    assert heat.tick(2.0, set()) == ([], [])
    _add(heat, (3, 50))
    assert heat.tick(2.5, set()) == ([3], [])


def test_hot_ones_cool_between_the_thresholds_only_below_the_lower() -> None:
    heat = Heat(100.0, 25.0, ticks=2)
    heat.tick(0.0, {3})
    for now in (1.0, 2.0, 3.0):
        _add(heat, (3, 30))
        assert heat.tick(now, {3}) == ([], [])
    _add(heat, (3, 24))
    assert heat.tick(4.0, {3}) == ([], [])
    assert heat.tick(5.0, {3}) == ([], [3])
    assert heat.rates == {3: 0.0}


def test_what_is_hot_is_not_said_to_turn_hot() -> None:
    heat = Heat(100.0, 25.0, ticks=1)
    heat.tick(0.0, {3})
    _add(heat, (3, 1000))
    assert heat.tick(1.0, {3}) == ([], [])


def test_zero_turns_nothing_hot_by_itself() -> None:
    heat = Heat(0.0, 0.0, ticks=1)
    heat.tick(0.0, set())
    _add(heat, (3, 10**9))
    assert heat.tick(1.0, set()) == ([], [])


def test_a_clock_that_stands_or_goes_back_says_nothing() -> None:
    heat = Heat(1.0, 0.5, ticks=1)
    heat.tick(5.0, set())
    _add(heat, (3, 1000))
    assert heat.tick(5.0, set()) == ([], [])
    _add(heat, (3, 1000))
    assert heat.tick(4.0, {9}) == ([], [])
    _add(heat, (3, 1000))
    assert heat.tick(5.0, set()) == ([3], [])
