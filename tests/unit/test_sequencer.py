"""Numbering: plan and apply against what is promised, and what replay refuses."""

from __future__ import annotations

import numpy as np
import pytest

from imray.core.columns import First, Plan, RowStatus
from imray.core.errors import InvalidError
from imray.core.fold import ReadBack, apply, commit_read_back, freeze, sealed
from imray.core.sequencer import commit_of, locate, plan
from imray.core.state import ShardState
from tests.support.batches import SEED, Msg, msg_id, rows_of


def _plan(state: ShardState, *messages: Msg) -> Plan:
    rows = rows_of(messages)
    return plan(state, rows, locate(state, rows), {})


def _commit(state: ShardState, *messages: Msg, epoch: int = 1, ts: int = 100) -> Plan:
    rows = rows_of(messages)
    planned = plan(state, rows, locate(state, rows), {})
    apply(state, commit_of(planned, rows, state.log.segment + 1, epoch, ts), bytes([state.log.segment]) * 16)
    return planned


def _m(conv: str, n: int, body: bytes = b"x") -> Msg:
    return Msg(conv, msg_id(n), body)


def test_each_conversation_counts_for_itself() -> None:
    state = ShardState(SEED)
    planned = _commit(state, _m("a", 1), _m("b", 1), _m("a", 2), _m("a", 3), _m("b", 2))
    assert planned.seq.tolist() == [1, 1, 2, 3, 2]
    assert planned.new_rows is None
    assert planned.row_in_segment.tolist() == [0, 1, 2, 3, 4]
    planned = _commit(state, _m("c", 1), _m("b", 3), _m("a", 4))
    assert planned.seq.tolist() == [1, 3, 4]
    assert [state.conversations.name(i) for i in range(3)] == ["a", "b", "c"]
    assert state.conversations.heads[:3].tolist() == [4, 3, 1]
    assert not state.conversations.scratch.any()


def test_plan_has_no_effect_on_numbers() -> None:
    state = ShardState(SEED)
    _commit(state, _m("a", 1))
    for _ in range(3):
        assert _plan(state, _m("a", 2), _m("new", 1)).seq.tolist() == [2, 1]
    assert (state.conversations.count, state.recent.count, state.log.segment) == (1, 1, 1)


def test_duplicates_and_conflicts_get_the_first_numbers() -> None:
    state = ShardState(SEED)
    _commit(state, _m("a", 1), _m("a", 2), epoch=3, ts=500)
    planned = _plan(state, _m("a", 9), _m("a", 2), _m("a", 1, b"other"), _m("b", 1), _m("a", 9), _m("a", 9, b"other"))
    assert planned.status.tolist() == [
        RowStatus.NEW,
        RowStatus.DUPLICATE,
        RowStatus.CONFLICT,
        RowStatus.NEW,
        RowStatus.DUPLICATE,
        RowStatus.CONFLICT,
    ]
    assert planned.seq.tolist() == [3, 2, 1, 1, 3, 3]
    assert planned.new_rows is not None
    assert planned.new_rows.tolist() == [0, 3]
    assert planned.row_in_segment.tolist() == [0, 1, 0, 1, 0, 0]
    assert planned.log_position is not None
    assert planned.log_position.tolist() == [-1, 1, 1, -1, -1, -1]
    assert planned.epoch is not None
    assert planned.epoch[[1, 2]].tolist() == [3, 3]
    assert planned.server_ts is not None
    assert planned.server_ts[[1, 2]].tolist() == [500, 500]


def test_the_same_id_in_another_conversation_is_another_message() -> None:
    state = ShardState(SEED)
    _commit(state, _m("a", 1))
    assert _plan(state, _m("b", 1)).status.tolist() == [RowStatus.NEW]


def test_old_ids_come_from_files() -> None:
    state, rows = ShardState(SEED), rows_of([_m("a", 1), _m("a", 1, b"other"), _m("a", 2)])
    first = First(7, int(rows.payload[0]), 3, 4, 5, 6)
    planned = plan(state, rows, locate(state, rows), {0: first, 1: first})
    assert planned.status.tolist() == [RowStatus.DUPLICATE, RowStatus.CONFLICT, RowStatus.NEW]
    assert planned.seq.tolist() == [7, 7, 1]
    assert planned.log_position is not None
    assert planned.log_position.tolist() == [3, 3, -1]


class _Everything:
    """A filter that always says maybe."""

    def maybe(self, fps: np.ndarray) -> np.ndarray:
        return np.ones(len(fps), np.bool_)


def test_only_what_memory_does_not_know_is_looked_up() -> None:
    state = ShardState(SEED)
    _commit(state, _m("a", 1))
    freeze(state)
    _commit(state, _m("a", 2))
    state.sealed = [_Everything()]
    rows = rows_of([_m("a", 1), _m("a", 2), _m("a", 3)])
    ((_, which),) = locate(state, rows).maybe
    assert which.tolist() == [2]


def test_frozen_ids_are_still_known_and_sealed_ones_forgotten() -> None:
    state = ShardState(SEED)
    _commit(state, _m("a", 1), epoch=1)
    freeze(state)
    _commit(state, _m("a", 2), epoch=2)
    planned = _plan(state, _m("a", 1), _m("a", 2))
    assert planned.seq.tolist() == [1, 2]
    assert planned.epoch is not None
    assert planned.epoch.tolist() == [1, 2]
    with pytest.raises(InvalidError):
        freeze(state)
    sealed(state, [])
    assert set(state.segment_ts) == {2}
    assert _plan(state, _m("a", 1)).status.tolist() == [RowStatus.NEW], "the sealed files would know"


@pytest.mark.parametrize(("segment", "epoch"), [(1, 2), (3, 2), (2, 1)])
def test_apply_refuses_what_does_not_follow(segment: int, epoch: int) -> None:
    state = ShardState(SEED)
    _commit(state, _m("a", 1), epoch=2)
    rows = rows_of([_m("a", 2)])
    planned = plan(state, rows, locate(state, rows), {})
    with pytest.raises(InvalidError, match="cannot follow"):
        apply(state, commit_of(planned, rows, segment, epoch, 0), bytes(16))


def _read_back(state: ShardState, seq: list[int], *messages: Msg, voids: tuple = ()) -> None:  # type: ignore[type-arg]
    row = np.arange(len(seq), dtype=np.uint32)
    rows = rows_of(messages)
    apply(
        state,
        commit_read_back(state, state.log.segment + 1, 1, 0, ReadBack(rows, np.array(seq), row, voids)),
        bytes(16),
    )


@pytest.mark.parametrize("seq", [[1, 1], [2, 3], [1, 3], [2, 1], [0, 1]])
def test_numbers_read_back_must_follow(seq: list[int]) -> None:
    with pytest.raises(InvalidError, match="conv_seq"):
        _read_back(ShardState(SEED), seq, _m("a", 1), _m("a", 2))


def test_read_back_equals_live() -> None:
    live, back = ShardState(SEED), ShardState(SEED)
    _commit(live, _m("a", 1), _m("b", 1), _m("a", 2))
    _read_back(back, [1, 1, 2], _m("a", 1), _m("b", 1), _m("a", 2))
    for name in ("fps", "conv", "seq", "payload", "log_position", "row"):
        assert np.array_equal(getattr(live.recent, name)[:3], getattr(back.recent, name)[:3])
    assert live.postings.spans(0, 1, 9) == back.postings.spans(0, 1, 9) == [(1, 1, 2)]


def test_numbers_may_jump_over_voids_only_up() -> None:
    state = ShardState(SEED)
    _read_back(state, [1], _m("a", 1))
    _read_back(state, [5], _m("a", 2), voids=((0, 2, 4),))
    assert state.conversations.heads[0] == 5
    with pytest.raises(InvalidError):
        _read_back(state, [5], _m("a", 3), voids=((0, 6, 7),))


def test_postings_tell_segments_of_a_range() -> None:
    state = ShardState(SEED)
    for n in range(0, 20, 2):
        _commit(state, _m("a", n), _m("b", n), _m("a", n + 1))
    spans = [(s + 1, 2 * s + 1, 2 * s + 2) for s in range(10)]
    assert state.postings.spans(0, 1, 20) == spans
    assert state.postings.spans(0, 4, 5) == spans[1:3]
    assert state.postings.spans(0, 20, 99) == spans[9:]
    assert state.postings.spans(0, 21, 99) == []
    assert state.postings.spans(5, 1, 99) == []
