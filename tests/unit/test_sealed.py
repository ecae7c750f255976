"""Sealed intervals: sorted ids, candidates, postings, and when they are merged."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from imray.core.dedup import IdTable
from imray.core.errors import DerivedError
from imray.core.intervals import Interval
from imray.core.postings import Postings
from imray.kernels.ordering import sort_into
from imray.log import sealed
from imray.log.sealed import merge, merge_due, open_interval, read_postings, seal
from imray.log.store import LocalStore
from tests.support.batches import random_fps


def _check_sorted(fps: np.ndarray, cuts: list[int]) -> None:
    places, rows = np.arange(len(fps)), np.arange(len(fps), dtype=np.uint32)[::-1].copy()
    parts = [tuple(c[a:b] for c in (fps, places, rows)) for a, b in pairwise([0, *cuts, len(fps)])]
    out = np.zeros(len(fps), np.uint64), np.zeros(len(fps), np.int64), np.zeros(len(fps), np.uint32)
    sort_into(parts, out)  # type: ignore[arg-type]
    order = np.argsort(fps, kind="stable")
    for found, column in zip(out, (fps, places, rows), strict=True):
        assert np.array_equal(found, column[order])


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 100, 5000, 200_000, 3_000_000])
def test_sorted_as_argsort_does(n: int) -> None:
    _check_sorted(random_fps(n), [n // 3, n // 2])


@pytest.mark.parametrize("values", [[5, 5, 5, 1, 5], [2**64 - 1, 0, 2**63, 0, 2**64 - 1], list(range(5000, 0, -1))])
def test_equal_and_extreme_values_are_sorted_in_their_order(values: list[int]) -> None:
    _check_sorted(np.array(values, np.uint64), [2])


def _sealed(store: LocalStore, first: int, last: int, n: int, seed: int) -> tuple[sealed.SealedInterval, np.ndarray]:
    """An interval of n ids in segments first..last; id i is in segment first + i % span, row i."""
    table, postings, fps = IdTable(first - 1, 16), Postings(), random_fps(n, seed)
    span = last - first + 1
    for s in range(span):
        at = np.arange(s, n, span)
        zeros = np.zeros(len(at), np.int32)
        table.add(fps[at], np.stack([fps[at]] * 2, 1), zeros, at, fps[at], first + s, at.astype(np.uint32))
        postings.add(first + s, np.array([1, 0], np.int32), np.array([s, s * 10]), np.array([s, s * 10 + 9]))
    names = pa.array(["zebra", "ant"], pa.large_string())
    return seal(store, 0, table, postings, last, names), fps


def test_candidates_say_segment_and_row(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    made, fps = _sealed(store, 11, 15, 1000, 1)
    wanted = [(i, 11 + i % 5, i) for i in range(1000)]
    for interval in (made, open_interval(store, made.interval)):
        maybe = interval.maybe(fps)
        assert maybe is not None
        assert maybe.all()
        assert sorted(interval.candidates(fps)) == wanted
        assert interval.candidates(random_fps(1000, 2)) == []
    rows = read_postings(store, made.interval).to_pylist()
    assert [(r["conv_id"], r["place"]) for r in rows] == [(c, s) for c in ("ant", "zebra") for s in range(11, 16)]
    assert rows[1] == {"conv_id": "ant", "place": 12, "first": 1, "last": 1}


def test_no_look_up_waits_for_the_store(tmp_path: Path) -> None:
    """What was just sealed, merged or loaded has its ids at hand."""
    store = LocalStore(tmp_path)
    parts = [_sealed(store, 1 + 2 * k, 2 + 2 * k, 100, k) for k in range(2)]
    merged = merge(store, [made for made, _ in parts])
    opened = open_interval(store, merged.interval).loaded()
    for made in (merged, opened, parts[0][0]):
        store.delete(made.interval.name("ids"))
        assert len(made.candidates(parts[0][1])) == 100


def test_no_ids(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    none, _ = _sealed(store, 1, 2, 0, 1)
    assert none.maybe(random_fps(10)) is None
    assert open_interval(store, none.interval).maybe(random_fps(10)) is None
    some, fps = _sealed(store, 3, 4, 10, 2)
    merged = merge(store, [none, some])
    assert sorted(merged.candidates(fps)) == [(i, 3 + i % 2, i) for i in range(10)]


def test_merged_equals_its_parts(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    made = [_sealed(store, 1 + 4 * k, 4 + 4 * k, 50 * k + 1, k) for k in range(5)]
    merged = merge(store, [m for m, _ in made])
    interval = merged.interval
    assert (interval.first, interval.last, interval.ids) == (1, 20, sum(len(f) for _, f in made))
    for part, fps in made:
        assert sorted(merged.candidates(fps)) == sorted(part.candidates(fps))
        assert merged.maybe(fps).all()  # type: ignore[union-attr]
    parts = pa.concat_tables([m.postings() for m, _ in made]).sort_by(
        [("conv_id", "ascending"), ("first", "ascending")]
    )
    assert merged.postings().equals(parts)
    again = merge(store, [m for m, _ in made])
    assert not {*again.interval.names} & {*merged.interval.names}, "no try writes another one's files"


@pytest.mark.parametrize("kind", ["ids", "bloom", "postings"])
def test_a_missing_or_foreign_file(tmp_path: Path, kind: str) -> None:
    store = LocalStore(tmp_path)
    one, _ = _sealed(store, 1, 2, 10, 1)
    two, _ = _sealed(store, 3, 4, 10, 2)
    again = open_interval(store, one.interval)
    read = {"ids": lambda: again.candidates(random_fps(1)), "bloom": lambda: open_interval(store, one.interval)}
    reader = read.get(kind, again.postings)
    (tmp_path / one.interval.name(kind)).write_bytes((tmp_path / two.interval.name(kind)).read_bytes())
    with pytest.raises(DerivedError, match="another interval"):
        reader()
    store.delete(one.interval.name(kind))
    with pytest.raises(DerivedError, match="not there"):
        reader()


def _run(sizes: list[int]) -> list[Interval]:
    return [Interval(0, 1 + 10 * i, 10 + 10 * i, n) for i, n in enumerate(sizes)]


def test_merge_is_due_for_enough_intervals_of_like_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fan = sealed.MERGE_FANOUT
    assert merge_due([]) is None
    assert merge_due(_run([100] * (fan - 1))) is None
    assert merge_due(_run([100] * fan)) == slice(0, fan)
    assert merge_due(_run([100] * (fan + 3))) == slice(3, fan + 3)
    assert merge_due(_run([100 * fan * fan] + [100] * (fan - 1))) is None
    assert merge_due(_run([0] * fan)) == slice(0, fan)
    monkeypatch.setattr(sealed, "_FILTERED_INTERVAL_MAX", 100 * fan - 1)
    assert merge_due(_run([100] * fan)) == slice(1, fan), "as many as fit"
    monkeypatch.setattr(sealed, "_FILTERED_INTERVAL_MAX", 100)
    assert merge_due(_run([100] * fan)) is None, "one filter stands for all of them"
    monkeypatch.setattr(sealed, "FILTERED_IDS_MAX", 100 * fan - 1)
    assert merge_due(_run([100] * fan)) == slice(0, fan), "none does"


def test_intervals_stay_few() -> None:
    intervals: list[Interval] = []
    for i in range(5000):
        intervals.append(Interval(0, i + 1, i + 1, 1000))
        while (due := merge_due(intervals)) is not None:
            parts = intervals[due]
            intervals[due] = [Interval(0, parts[0].first, parts[-1].last, sum(p.ids for p in parts))]
    assert len(intervals) <= sealed.MERGE_FANOUT * 5
    assert sum(i.ids for i in intervals) == 5_000_000


@pytest.mark.parametrize("ids", [1_800_000, 2_050_000, 3_900_000])
def test_intervals_stay_few_where_eight_are_too_large_for_one(ids: int) -> None:
    intervals: list[Interval] = []
    for i in range(200):
        intervals.append(Interval(0, i + 1, i + 1, ids))
        while (due := merge_due(intervals)) is not None:
            parts = intervals[due]
            intervals[due] = [Interval(0, parts[0].first, parts[-1].last, sum(p.ids for p in parts))]
    whole = 200 * ids / sealed.IDS_PER_INTERVAL_MAX
    assert len(intervals) <= 2 * whole + sealed.MERGE_FANOUT


def test_intervals_that_one_filter_stood_for_are_merged_when_it_does_no_longer() -> None:
    intervals = [Interval(0, i + 1, i + 1, 1_800_000) for i in range(35)]
    assert merge_due(intervals) is None
    intervals.append(Interval(0, 36, 36, 1_800_000))
    while (due := merge_due(intervals)) is not None:
        parts = intervals[due]
        intervals[due] = [Interval(0, parts[0].first, parts[-1].last, sum(p.ids for p in parts))]
    assert len(intervals) <= 8
