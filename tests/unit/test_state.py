"""What a shard's writer knows: positions, hot groups, and places as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imray.core.columns import Commit, Control
from imray.core.errors import FencedError, InvalidError
from imray.core.fold import check_sequencer, mark_durable
from imray.core.log_progress import LogProgress
from imray.core.routing import (
    PARTITIONS_MAX,
    home_of,
    log_of,
    log_position_of,
    offset_of,
    segment_of,
    slot_for,
    slot_of,
)
from imray.core.state import HotGroup, ShardState

_slots = st.integers(0, PARTITIONS_MAX)
_segments = st.integers(1, (1 << 40) - 1)


def test_a_position_goes_on_by_one_segment() -> None:
    progress = LogProgress()
    progress.advance(1, 1, b"a")
    progress.advance(2, 3, b"b")
    assert (progress.segment, progress.epoch, progress.digest) == (2, 3, b"b")
    assert [progress.epoch_of(n) for n in (1, 2, 3)] == [1, 3, 3]
    for segment, epoch in [(2, 3), (4, 3), (3, 2)]:
        with pytest.raises(InvalidError, match="cannot follow"):
            progress.advance(segment, epoch, b"c")
    assert LogProgress().epoch_of(1) == 0


def test_a_copy_stays_as_it_is() -> None:
    progress = LogProgress()
    progress.advance(1, 1, b"a")
    copy = progress.copy()
    progress.advance(2, 2, b"b")
    assert copy == LogProgress(1, 1, b"a", [(1, 1)])


def test_stable_stays_below_the_lowest_hole() -> None:
    group = HotGroup(2, 100, stable=10)
    group.mark_final(14, 15)
    group.mark_final(12, 13)
    assert (group.stable, group.holes(20)) == (10, [(11, 11), (16, 20)])
    group.mark_final(11, 11)
    assert (group.stable, group.done, group.holes(15)) == (15, [], [])


@pytest.mark.parametrize(("first", "last"), [(11, 12), (12, 13), (14, 16), (10, 20), (13, 14), (9, 11)])
def test_no_number_is_settled_twice(first: int, last: int) -> None:
    group = HotGroup(2, 100, stable=10)
    group.mark_final(12, 14)
    if (first, last) == (9, 11):
        group.mark_final(11, 11)
    with pytest.raises(InvalidError, match="written before"):
        group.mark_final(first, last)


def test_what_a_checkpoint_covers_is_left_alone() -> None:
    group = HotGroup(2, 100, stable=10)
    group.mark_final(3, 10)
    assert (group.stable, group.done) == (10, [])


def _control(state: ShardState, **fields: int) -> None:
    """One record in the shard's own log."""
    none = np.empty(0, np.int64)
    empty = np.empty(0, np.int32)
    control = Control(0, fields["partitions"], fields["number"], fields.get("ceiling", 0))
    commit = Commit(
        state.log.segment + 1, 1, 0, None, empty, empty, none, none, empty, none, none, (control,)  # type: ignore[arg-type]
    )  # fmt: skip
    mark_durable(state, commit, bytes(16))


def test_records_turn_hot_and_cold() -> None:
    state = ShardState(0)
    state.conversations.add(np.frombuffer(b"room", np.uint8), np.array([0, 4], np.int32), np.array([0], np.int32))
    state.conversations.heads[0] = state.conversations.stable[0] = 5
    _control(state, partitions=2, number=5, ceiling=50)
    assert (sorted(state.partitions), state.hot[0].stable, state.hot[0].ceiling) == ([1, 2], 5, 50)
    _control(state, partitions=3, number=7, ceiling=40)
    assert (sorted(state.partitions), state.hot[0].partitions, state.hot[0].ceiling) == ([1, 2, 3], 3, 50)
    _control(state, partitions=1, number=7, ceiling=60)
    assert (sorted(state.partitions), state.hot[0].partitions, state.hot[0].ceiling) == ([1, 2, 3], 1, 60)
    _control(state, partitions=0, number=9)
    assert not state.hot
    assert (state.conversations.heads[0], state.conversations.stable[0]) == (9, 9)


def test_which_epoch_of_its_home_shard_a_segment_may_name() -> None:
    state = ShardState(0, log=LogProgress(9, 5, b"", [(1, 2), (4, 5)]), partitions={1: LogProgress(sequencer=2)})
    for fine in (2, 5):
        check_sequencer(state, 1, fine)
    with pytest.raises(InvalidError, match="names epoch 2"):
        check_sequencer(state, 1, 1)
    with pytest.raises(InvalidError, match="no epoch 3"):
        check_sequencer(state, 1, 3)
    with pytest.raises(FencedError, match="took over"):
        check_sequencer(state, 1, 6)
    check_sequencer(ShardState(0, partitions={1: LogProgress()}), 1, 0)


@given(st.integers(0, 9_999), _slots)
def test_a_log_has_one_home_and_slot(home: int, slot: int) -> None:
    assert home_of(log_of(home, slot)) == (home, slot)


@given(st.lists(st.tuples(st.integers(0, 9_999), _slots), max_size=20, unique=True))
def test_logs_are_not_shared(all_of: list[tuple[int, int]]) -> None:
    assert len({log_of(*one) for one in all_of}) == len(all_of)


@given(_slots, _segments)
def test_a_place_is_slot_and_segment(slot: int, segment: int) -> None:
    log_position = log_position_of(slot, segment)
    assert (slot_of(log_position), segment_of(log_position)) == (slot, segment)
    assert 0 < log_position < 1 << 63


@given(st.integers(0, 9_999), st.lists(st.tuples(_slots, _segments), min_size=1, max_size=10))
def test_an_offset_is_log_and_segment_one_by_one_and_in_columns(
    home: int, log_positions: list[tuple[int, int]]
) -> None:
    expected = [(log_of(home, slot), segment) for slot, segment in log_positions]
    numbers = [log_position_of(*p) for p in log_positions]
    assert [offset_of(home, n) for n in numbers] == expected
    logs, segments = offset_of(home, np.array(numbers, np.int64))
    assert list(zip(logs.tolist(), segments.tolist(), strict=True)) == expected


@given(st.text(min_size=1, max_size=20), st.integers(1, PARTITIONS_MAX))
def test_a_key_has_one_slot(key: str, partitions: int) -> None:
    assert 1 <= slot_for(key, partitions) <= partitions
    assert slot_for(key, 1) == 1


def test_keys_spread_evenly_over_slots() -> None:
    for partitions in range(1, 9):
        slots = [slot_for(f"sender {n}", partitions) for n in range(8000)]
        counts = [slots.count(slot) for slot in range(1, partitions + 1)]
        assert min(counts) > 0.85 * 8000 / partitions
