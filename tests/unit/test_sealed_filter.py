"""The filter in front of sealed intervals: made, put into, made anew, done without."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from imray.core.dedup import SealedFilter
from imray.log import sealed, sealed_filter
from imray.log.sealed import SealedInterval
from imray.log.sealed_filter import grown
from tests.support.batches import DUPLICATE, Msg, commit, merge_all, msg_id, open_committer, seal


def _m(n: int) -> Msg:
    return Msg("room", msg_id(n))


def test_what_was_sealed_is_known_while_intervals_come_and_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 3)
    asked: list[SealedInterval] = []
    real = SealedInterval.maybe
    monkeypatch.setattr(SealedInterval, "maybe", lambda self, fps: asked.append(self) or real(self, fps))
    committer = open_committer(tmp_path)
    for n in range(0, 40, 4):
        commit(committer, [_m(n + i) for i in range(4)])
        seal(committer)
        merge_all(committer)
        assert committer.state.sealed_filter is not None
        assert committer.state.sealed_filter.stands_for(committer.state.sealed)
    asked.clear()
    commit(committer, [_m(100 + i) for i in range(50)])
    assert not asked, "no filter behind it was asked for what is new"
    again = commit(committer, [_m(n) for n in range(40)])
    assert [(row.status, row.seq) for row in again] == [(DUPLICATE, n + 1) for n in range(40)]


def test_it_is_done_without_where_it_lacks_an_interval(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    for n in (1, 2):
        commit(committer, [_m(n)])
        seal(committer)
    front = committer.state.sealed_filter
    assert front is not None
    front.holds.discard(committer.state.sealed[-1])
    committer.state.sealed = list(committer.state.sealed)
    assert [row.status for row in commit(committer, [_m(1), _m(2)])] == [DUPLICATE, DUPLICATE]


def test_an_interval_made_anew_is_put_in_again(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [_m(1)])
    seal(committer)
    (old,) = committer.intervals
    anew = sealed.open_interval(committer.store, old.interval)
    assert committer.merged([old], anew)
    front = committer.state.sealed_filter
    assert front is not None
    assert not front.stands_for(committer.state.sealed)
    assert grown(front, committer.intervals) is front
    assert front.stands_for(committer.state.sealed)


def test_one_that_is_full_is_made_anew_with_room_for_as_many_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_filter, "_ROOM_MIN", 4)
    committer = open_committer(tmp_path)
    seen: list[SealedFilter | None] = []
    for n in range(6):
        commit(committer, [_m(2 * n), _m(2 * n + 1)])
        seal(committer)
        seen.append(committer.state.sealed_filter)
    assert [a is b for a, b in pairwise(seen)] == [True, False, True, True, True]


def test_there_is_none_where_ids_cannot_be_read_or_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [_m(1), _m(2)])
    seal(committer)
    (interval,) = committer.intervals
    (tmp_path / interval.interval.run_name(0)).write_bytes(b"rubbish")
    fresh = sealed.open_interval(committer.store, interval.interval)
    assert grown(None, [fresh]) is None
    assert grown(None, []) is None
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "FILTERED_IDS_MAX", 1)
        assert grown(None, [interval]) is None

    def no_memory(_room: int) -> SealedFilter:
        raise MemoryError

    monkeypatch.setattr(sealed_filter, "SealedFilter", no_memory)
    assert grown(None, [interval]) is None, "a checkpoint does not fail for it"
