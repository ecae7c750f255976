"""The id table against a dict, the filter against a set."""

from __future__ import annotations

import numpy as np
import pytest

from imray.core.dedup import BlockedBloom, IdTable, SealedFilter
from imray.kernels.id_table import first_in_batch, slots_for
from tests.support.batches import random_fps


def test_table_against_a_dict_while_it_grows() -> None:
    rng = np.random.default_rng(1)
    table, model = IdTable(100, capacity=16), {}
    for segment in range(101, 161):
        n = int(rng.integers(1, 300))
        ids = rng.integers(0, 2**64, (n, 2), np.uint64)
        conv = rng.integers(0, 5, n).astype(np.int32)
        fps = ids[:, 0] ^ conv.astype(np.uint64)
        seq, payload = rng.integers(1, 2**62, n), rng.integers(0, 2**64, n, np.uint64)
        row = np.arange(n, dtype=np.uint32)
        table.add(fps, ids, conv, seq, payload, segment, row)
        for i in range(n):
            model[int(ids[i, 0]), int(ids[i, 1]), int(conv[i])] = (int(seq[i]), int(payload[i]), segment, i)
    assert table.count == len(model)
    ids = np.array([k[:2] for k in model], np.uint64)
    conv = np.array([k[2] for k in model], np.int32)
    entry = table.find(ids[:, 0] ^ conv.astype(np.uint64), ids, conv)
    assert entry is not None
    for e, told in zip(entry.tolist(), model.values(), strict=True):
        assert (int(table.seq[e]), int(table.payload[e]), int(table.log_position[e]), int(table.row[e])) == told
    assert 50 <= table.nbytes / table.count <= 200
    assert table.find(ids[:, 0] ^ conv.astype(np.uint64), ids[:, ::-1].copy(), conv) is None
    assert table.find(ids[:, 0] ^ conv.astype(np.uint64), ids, conv + 9) is None


@pytest.mark.parametrize("fp", [0, 1, 2**64 - 1, 0xFFFFFFFF, 0xFFFFFFFF00000000])
def test_equal_fingerprints_are_told_apart_by_the_full_id(fp: int) -> None:
    n = 200
    table = IdTable(0, capacity=16)
    fps = np.full(n, fp, np.uint64)
    ids = np.arange(2 * n, dtype=np.uint64).reshape(n, 2)
    conv = np.arange(n, dtype=np.int32) % 3
    table.add(fps, ids, conv, np.arange(n), fps, 1, np.arange(n, dtype=np.uint32))
    assert np.array_equal(table.find(fps, ids, conv), np.arange(n))
    assert table.find(fps, ids + np.uint64(1), conv) is None
    mixed = table.find(fps[:2], np.stack([ids[5], ids[5] + np.uint64(9)]), conv[[5, 5]])
    assert mixed is not None
    assert mixed.tolist() == [5, -1]


def test_an_empty_table_finds_nothing() -> None:
    assert IdTable(0).find(random_fps(3), random_fps(6).reshape(3, 2), np.zeros(3, np.int32)) is None


@pytest.mark.parametrize("same_fp", [True, False])
def test_first_in_batch(same_fp: bool) -> None:
    ids = np.array([[1, 1], [2, 2], [1, 1], [1, 1], [2, 2], [1, 2]], np.uint64)
    conv = np.array([0, 0, 0, 1, 0, 0], np.int32)
    fps = np.full(6, 7, np.uint64) if same_fp else ids[:, 0] * np.uint64(2**40 + 1) + conv.astype(np.uint64)
    out = np.empty(6, np.int32)
    assert first_in_batch(fps, ids, conv, slots_for(6), out) == 2
    assert out.tolist() == [-1, -1, 0, -1, 1, -1]


@pytest.mark.parametrize("entries", [1, 32, 33, 64, 1000, 1024, 1025])
def test_slots_are_at_most_half_full(entries: int) -> None:
    size = len(slots_for(entries))
    assert size >= 2 * entries
    assert size & (size - 1) == 0


@pytest.mark.parametrize("n", [1, 31, 1000, 200_000])
def test_filter_has_no_false_no_and_few_false_maybes(n: int) -> None:
    fps = random_fps(n)
    bloom = BlockedBloom.build(fps)
    there = bloom.maybe(fps)
    assert there is not None
    assert there.all()
    other = bloom.maybe(random_fps(100_000, seed=9))
    rate = 0.0 if other is None else float(other.mean())
    assert rate < 0.01
    assert bloom.words.nbytes <= 2 * n + 64


def test_filter_over_nothing() -> None:
    assert BlockedBloom.build(random_fps(0)).maybe(random_fps(100)) is None


class _File:
    """A sealed file, as far as the filter in front knows it."""

    def maybe(self, fps: np.ndarray) -> np.ndarray | None:
        raise AssertionError("it was asked")


def test_the_filter_in_front_knows_every_id_that_was_put_into_it() -> None:
    front, rng = SealedFilter(20_000), np.random.default_rng(2)
    files, all_fps = [_File(), _File()], rng.integers(0, 2**64, 20_000, np.uint64)
    for sealed, fps in zip(files, (all_fps[:5000], all_fps[5000:]), strict=True):
        assert front.has_room(len(fps))
        front.put(sealed, np.sort(fps))
    assert not front.has_room(1)
    hit = front.maybe(all_fps)
    assert hit is not None
    assert hit.all()
    other = front.maybe(rng.integers(0, 2**64, 100_000, np.uint64))
    assert other is not None
    assert other.mean() < 0.006
    plain = BlockedBloom.build(all_fps).maybe(rng.integers(0, 2**64, 100_000, np.uint64))
    assert plain is not None


def test_the_filter_in_front_is_wrong_about_other_ids_than_those_behind_it() -> None:
    rng = np.random.default_rng(3)
    known, others = rng.integers(0, 2**64, 50_000, np.uint64), rng.integers(0, 2**64, 2_000_000, np.uint64)
    behind, front = BlockedBloom.build(known), SealedFilter(50_000)
    front.put(_File(), known)
    a, b = behind.maybe(others), front.maybe(others)
    assert a is not None
    assert b is not None
    assert (a & b).mean() < 5 * a.mean() * b.mean()


def test_the_filter_in_front_stands_for_just_the_files_that_it_holds() -> None:
    front, fps = SealedFilter(1000), np.arange(1, 9, dtype=np.uint64)
    a, b, c, whole = _File(), _File(), _File(), _File()
    front.put(a, fps)
    front.put(b, fps)
    both = [a, b]
    assert front.stands_for(both)
    assert front.stands_for(both)
    assert not front.stands_for([a, b, c])
    front.merged([b, c], whole)
    assert not front.stands_for([a, whole]), "it lacks the ids of c"
    front.put(c, fps)
    front.merged([b, c], whole)
    assert front.stands_for([a, whole])
    assert not front.stands_for([a, b]), "another took its place"
    front.put(b, fps)
    assert front.stands_for([a, whole]), "what is not in the list yet is kept"
    assert front.stands_for([a, whole, b])
    front.forget_but([a])
    assert front.holds == {a}
