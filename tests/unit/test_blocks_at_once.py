"""Grants in one pass over the rows: as the way of columns, or nothing at all."""

from __future__ import annotations

import numpy as np
import pytest

from imray.core.dedup import IdTable
from imray.core.fold import freeze
from tests.support.batches import rows_of
from tests.unit.test_blocks import HomeShard, _m


def test_one_pass_and_the_way_of_columns_do_the_same() -> None:
    one, other = HomeShard(), HomeShard()
    batches = [[_m(3), _m(4)], [_m(4)], [_m(5), _m(5)], [_m(6, conv="else")], [_m(7)], [_m(8)], [_m(9), _m(2)]]
    for ask, batch in enumerate(batches, 1):
        assert str(one.ask(1, ask, *batch)) == str(other.ask(1, ask, *batch, at_once=False))
        assert one.blocks.outstanding.keys() == other.blocks.outstanding.keys()
        a, b = one.state.recent, other.state.recent
        assert a.slots.tolist() == b.slots.tolist()
        for column in (*IdTable._COLUMNS, "segment_ts"):
            x, y = getattr(a, column, None), getattr(b, column, None)
            assert x is None or x[: a.count].tolist() == y[: b.count].tolist(), column
    assert one.state.conversations.heads[0] == other.state.conversations.heads[0] == 7


@pytest.mark.parametrize("again", [0, 3, 7])
def test_one_pass_that_meets_a_known_id_leaves_nothing(again: int) -> None:
    home = HomeShard()
    home.granted(1, 1, *(_m(n) for n in range(10, 30)))
    slots, count = home.state.recent.slots.tolist(), home.state.recent.count
    batch = [_m(n) for n in range(40, 48)]
    batch[again] = _m(17)
    assert home.blocks.grant_at_once(1, 2, rows_of(batch), 0.0) is None
    assert home.blocks.grant_at_once(1, 2, rows_of([_m(50), _m(51), _m(52), _m(50 + again % 3)]), 0.0) is None
    assert (home.state.recent.slots.tolist(), home.state.recent.count) == (slots, count)


def test_one_pass_looks_at_frozen_and_at_sealed_ids() -> None:
    class Sealed:
        def maybe(self, fps: np.ndarray) -> np.ndarray | None:
            return None if len(fps) > 1 else np.ones(1, np.bool_)

    home = HomeShard()
    freeze(home.state)
    assert home.blocks.grant_at_once(1, 1, rows_of([_m(2)]), 0.0) is None
    assert home.blocks.grant_at_once(1, 1, rows_of([_m(3)]), 0.0) is not None
    home.state.sealed = [Sealed()]
    assert home.blocks.grant_at_once(1, 2, rows_of([_m(4)]), 0.0) is None
    assert home.blocks.grant_at_once(1, 2, rows_of([_m(4), _m(5)]), 0.0) is not None
