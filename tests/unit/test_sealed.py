"""Sealed intervals: sorted ids, candidates, postings, and when they are merged."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from imray.core.dedup import FilterBank, IdTable, WordBloom
from imray.core.errors import DerivedError
from imray.core.intervals import Interval
from imray.core.postings import Postings
from imray.kernels import packing
from imray.kernels.ordering import sort_into
from imray.log import sealed
from imray.log.marks import LogEnd, MergeMark, put_mark
from imray.log.sealed import merge, merge_due, open_interval, read_postings, seal
from imray.log.store import LocalStore
from tests.support.batches import SEED, random_fps


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


_TS = 1_764_540_000_000


def _sealed(store: LocalStore, first: int, last: int, n: int, seed: int) -> tuple[sealed.SealedInterval, np.ndarray]:
    """An interval of n ids in segments first..last; id i is number i of its conversation, in segment first + i % span,
    row i."""
    table, postings, fps = IdTable(first - 1, 16), Postings(), random_fps(n, seed)
    span = last - first + 1
    for s in range(span):
        at = np.arange(s, n, span)
        conv = (at % 2).astype(np.int32)
        table.add(fps[at], _ids(fps[at]), conv, at, ~fps[at], first + s, at.astype(np.uint32))
        postings.add(first + s, np.array([1, 0], np.int32), np.array([s, s * 10]), np.array([s, s * 10 + 9]))
    names = pa.array(["zebra", "ant"], pa.large_string())
    return seal(store, 0, SEED, table, postings, last, names, lambda p: (p // 10, _TS + p)), fps


def _ids(fps: np.ndarray) -> np.ndarray:
    return np.stack([fps, fps ^ np.uint64(77)], 1)


def _look_up(
    interval: sealed.SealedInterval, fps: np.ndarray, ids: np.ndarray | None = None, conv: np.ndarray | None = None
) -> list[tuple[int, ...]]:
    """(row, number, payload, log position, row in segment, epoch, server_ts) of each row that is there."""
    n = len(fps)
    found, out = np.zeros(n, np.bool_), np.empty((n, packing.COLUMNS), np.uint64)
    names = np.frombuffer(b"zebraant", np.uint8)
    keys = sealed.conversation_keys(np.array([0, 5, 8], np.int32), names, SEED)
    keys = keys[np.arange(n) % 2 if conv is None else conv]
    assert interval.find(fps, _ids(fps) if ids is None else ids, keys, np.arange(n), found, out) == []
    return [(i, *out[i, packing.SEQ :].tolist()) for i in np.flatnonzero(found).tolist()]


def test_a_look_up_tells_all_that_a_retry_is_told(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    made, fps = _sealed(store, 11, 15, 1000, 1)
    wanted = [(i, i, int(~fps[i]), 11 + i % 5, i, 1, _TS + 11 + i % 5) for i in range(1000)]
    for interval in (made, open_interval(store, made.interval)):
        maybe = interval.maybe(fps)
        assert maybe is not None
        assert maybe.all()
        assert _look_up(interval, fps) == wanted
        assert _look_up(interval, random_fps(1000, 2)) == []
        assert _look_up(interval, fps, ids=_ids(fps) ^ np.uint64(1)) == [], "another id with this fingerprint"
        assert _look_up(interval, fps, conv=np.arange(1, 1001) % 2) == [], "the same id in another conversation"
    rows = read_postings(store, made.interval).to_pylist()
    assert [(r["conv_id"], r["place"]) for r in rows] == [(c, s) for c in ("ant", "zebra") for s in range(11, 16)]
    assert rows[1] == {"conv_id": "ant", "place": 12, "first": 1, "last": 1}


@pytest.mark.parametrize("n", [1, 255, 256, 257, 3000])
def test_in_however_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(sealed, "IDS_PER_PART", 300)
    monkeypatch.setattr(sealed, "_IDS_AT_ONCE", 100)
    store = LocalStore(tmp_path)
    made, fps = _sealed(store, 1, 3, n, 4)
    assert made.interval.parts == {3000: 16}.get(n, 1)
    again = open_interval(store, made.interval)
    again.check()
    assert [row[0] for row in _look_up(again, fps)] == list(range(n))
    assert np.array_equal(again.ids[packing.FP], np.sort(fps))
    assert sorted(np.concatenate([again.fingerprints(p) for p in range(again.interval.parts)])) == sorted(fps.tolist())


def test_equal_fingerprints_over_the_edge_of_a_block(tmp_path: Path) -> None:
    """Ids with one fingerprint are told apart by all 128 bits, in whichever block they stand."""
    n = 700
    ids = np.zeros((packing.COLUMNS, n), np.uint64)
    ids[packing.FP] = np.sort(np.repeat(np.array([1, 2**63, 2**64 - 1], np.uint64), [100, 590, 10]))
    ids[packing.ID_LOW] = np.arange(n)
    ids[packing.SEQ] = np.arange(n)
    none = sealed.POSTINGS_SCHEMA.empty_table()
    made = sealed.write_interval(LocalStore(tmp_path), sealed.draft(0, 1, 2, n, ()), sealed.of_columns(ids), none)
    found, out = np.zeros(n, np.bool_), np.empty((n, packing.COLUMNS), np.uint64)
    words = np.ascontiguousarray(ids[packing.ID_LOW : packing.ID_HIGH + 1].T)
    assert made.find(ids[packing.FP], words, ids[packing.CONV], np.arange(n), found, out) == []
    assert found.all()
    assert np.array_equal(out.T, ids)


def test_no_ids(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    none, _ = _sealed(store, 1, 2, 0, 1)
    assert none.maybe(random_fps(10)) is None
    assert open_interval(store, none.interval).maybe(random_fps(10)) is None
    some, fps = _sealed(store, 3, 4, 10, 2)
    merged = merge(store, [none, some])
    assert _look_up(merged, fps) == _look_up(some, fps)
    assert len(_look_up(merged, fps)) == 10


def test_merged_equals_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "IDS_PER_PART", 300)
    monkeypatch.setattr(sealed, "_IDS_AT_ONCE", 64)
    store = LocalStore(tmp_path)
    made = [_sealed(store, 1 + 4 * k, 4 + 4 * k, 200 * k + 1, k) for k in range(5)]
    merged = merge(store, [m for m, _ in made])
    interval = merged.interval
    assert (interval.first, interval.last, interval.ids) == (1, 20, sum(len(f) for _, f in made))
    assert interval.parts == 8
    merged.check()
    for part, fps in made:
        assert _look_up(merged, fps) == _look_up(part, fps)
        assert len(_look_up(merged, fps)) == len(fps)
        assert merged.maybe(fps).all()  # type: ignore[union-attr]
    parts = pa.concat_tables([m.postings() for m, _ in made]).sort_by(
        [("conv_id", "ascending"), ("first", "ascending")]
    )
    assert merged.postings().equals(parts)
    again = merge(store, [m for m, _ in made])
    assert not {*again.interval.names} & {*merged.interval.names}, "no try writes another one's files"


def test_a_merge_holds_no_more_than_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the intervals are, so many rows are in memory at once."""
    monkeypatch.setattr(sealed, "IDS_PER_PART", 2000)
    monkeypatch.setattr(sealed, "_IDS_AT_ONCE", 500)
    store = LocalStore(tmp_path)
    made = [_sealed(store, 1 + 4 * k, 4 + 4 * k, 6000, k)[0] for k in range(4)]
    most = []
    real = sealed.SealedInterval.between

    def between(self: sealed.SealedInterval, low: int, high: int) -> np.ndarray:
        ids = real(self, low, high)
        most.append(ids.shape[1])
        return ids

    monkeypatch.setattr(sealed.SealedInterval, "between", between)
    assert merge(store, made).interval.ids == 24_000
    assert max(most) < 200
    assert sum(most) == 24_000, "and each is read once"


def test_postings_of_what_may_be_deleted_are_left_out(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    made = [_sealed(store, 1 + 2 * k, 2 + 2 * k, 10, k)[0] for k in range(2)]
    end = LogEnd(log=0, segment=3, epoch=1, digest="", epoch_starts=[])
    put_mark(store, MergeMark(end=end, version=1))
    merged = merge(store, made)
    assert merged.interval.ids == 20
    assert set(merged.postings().column("place").to_pylist()) == {4}


@pytest.mark.parametrize("kind", ["ids", "bloom", "postings"])
def test_a_missing_or_foreign_file(tmp_path: Path, kind: str) -> None:
    store = LocalStore(tmp_path)
    one, _ = _sealed(store, 1, 2, 10, 1)
    two, _ = _sealed(store, 3, 4, 10, 2)
    again = open_interval(store, one.interval)
    read = {
        "ids": lambda: open_interval(store, one.interval).loaded(),
        "bloom": lambda: open_interval(store, one.interval),
    }
    reader = read.get(kind, again.postings)
    names = [i.interval.run_name(0) if kind == "ids" else i.interval.name(kind) for i in (one, two)]
    (tmp_path / names[0]).write_bytes((tmp_path / names[1]).read_bytes())
    with pytest.raises(DerivedError, match="another interval"):
        reader()
    store.delete(names[0])
    with pytest.raises(DerivedError, match="not there"):
        reader()


def _run(sizes: list[int], version: int = 2) -> list[Interval]:
    return [Interval(0, 1 + 10 * i, 10 + 10 * i, n, version=version) for i, n in enumerate(sizes)]


def test_merge_is_due_for_enough_intervals_of_like_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "LIKE_SIZE_IDS_MIN", 1)
    fan = sealed.MERGE_FANOUT
    assert merge_due([]) is None
    assert merge_due(_run([100] * (fan - 1))) is None
    assert merge_due(_run([100] * fan)) == slice(0, fan)
    assert merge_due(_run([100] * (fan + 3))) == slice(3, fan + 3)
    assert merge_due(_run([100 * fan * fan] + [100] * (fan - 1))) is None
    assert merge_due(_run([0] * fan)) == slice(0, fan)
    assert merge_due(_run([100] * fan + [1])) == slice(0, fan), "older ones, where the newest are few"
    assert merge_due(_run([100] * fan, version=1)) is None, "they are made anew first"
    monkeypatch.setattr(sealed, "LIKE_SIZE_IDS_MIN", 1000)
    assert merge_due(_run([100 * fan * fan] + [1] * (fan - 1))) == slice(0, fan), "small ones count as of one size"


def _grow(count: int, ids: int) -> list[Interval]:
    intervals: list[Interval] = []
    for i in range(count):
        intervals.append(Interval(0, i + 1, i + 1, ids, version=2))
        while (due := merge_due(intervals)) is not None:
            parts = intervals[due]
            total = sum(p.ids for p in parts)
            intervals[due] = [Interval(0, parts[0].first, parts[-1].last, total, version=2)]
    assert sum(i.ids for i in intervals) == count * ids
    return intervals


@pytest.mark.parametrize(("count", "ids"), [(5000, 1000), (5000, 10), (560, 1_800_000), (200, 3_900_000)])
def test_intervals_stay_few(count: int, ids: int) -> None:
    """A filter is asked in each: up to a billion ids there are no more than so many."""
    assert len(_grow(count, ids)) <= 15


def test_a_filters_block_is_one_line_of_the_cache(tmp_path: Path) -> None:
    """Mapped from its file, too: a look at two lines would take twice the time."""
    store = LocalStore(tmp_path)
    for n in (1, 1000, 5000):
        made, _ = _sealed(store, 1, 2, n, n)
        assert made.bloom is not None
        assert made.bloom.words.ctypes.data % 64 == 0
        assert not made.bloom.words.flags.owndata
        assert len(made.bloom.words) == WordBloom.words_for(n)


def test_filters_asked_together_say_what_each_says() -> None:
    class File:
        def __init__(self, fps: np.ndarray) -> None:
            self.bloom = WordBloom(np.zeros(WordBloom.words_for(len(fps)), np.uint64))
            self.bloom.put(fps)
            self.bloom.seal()

        def maybe(self, fps: np.ndarray) -> np.ndarray | None:
            return self.bloom.maybe(fps)

    known = [random_fps(50 + k, k) for k in range(70)]  # more than the bits of a word
    files = [File(fps) for fps in known]
    asked = np.concatenate([known[0], known[3], known[63], known[64], known[69], random_fps(500, 99)])
    found = FilterBank(files).maybe(asked)
    for file, hit in found:
        assert np.array_equal(hit, file.maybe(asked))
    said = {id(file) for file, _ in found}
    assert said >= {id(files[k]) for k in (0, 3, 63, 64, 69)}
    assert all(file.maybe(asked) is None for file in files if id(file) not in said)
    assert FilterBank(files).maybe(random_fps(3, 1234)) == []


def test_a_filter_is_seldom_wrong() -> None:
    fps = random_fps(200_000)
    bloom = WordBloom(np.zeros(WordBloom.words_for(len(fps)), np.uint64))
    bloom.put(fps)
    bloom.seal()
    there = bloom.maybe(fps)
    assert there is not None
    assert there.all()
    other = bloom.maybe(random_fps(1_000_000, seed=9))
    assert other is None or other.mean() < 0.00015
