"""Fault 5 on filters of old ids: they are maps of files, and what changes there while a shard runs is never a "no"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imray.core.dedup import FilterBank, WordBloom
from imray.core.errors import DerivedError
from imray.kernels.arrays import U64
from imray.log.confirm import Confirmer
from imray.log.sealed import SealedInterval, open_interval
from imray.log.sealed_first import open_arrow
from imray.log.store import LocalStore
from tests.faults.test_derived import send
from tests.faults.test_older_folder import _unpack
from tests.support.batches import SEED, Msg, commit, msg_id, open_committer, random_fps, rows_of, seal
from tests.support.owners import owner_of, until_async


def _filter(ids: int) -> tuple[WordBloom, U64]:
    fps = random_fps(ids)
    bloom = WordBloom(np.zeros(WordBloom.words_for(ids), np.uint64))
    bloom.put(fps)
    bloom.seal()
    return bloom, fps


def _block_of(fps: U64, bloom: WordBloom) -> U64:
    blocks = np.uint64(len(bloom.words) // 8)
    return ((fps >> np.uint64(32)) * blocks) >> np.uint64(32)


def _all_maybe(bloom: WordBloom, fps: U64) -> bool:
    hit = bloom.maybe(fps)
    return hit is not None and bool(hit.all())


@pytest.mark.parametrize("ids", [0, 1, 300])
def test_every_bit_of_a_block_is_under_its_sum(ids: int) -> None:
    """One that was set and one that was not, of the ids and of the sum itself: all that look there are told "maybe"."""
    bloom, _ = _filter(ids)
    assert bloom.is_whole
    sound = bloom.words.copy()
    asked = random_fps(2000, seed=5)
    block = int(_block_of(asked, bloom)[0])
    there = asked[_block_of(asked, bloom) == block]
    for word in range(8):
        for bit in range(64):
            bloom.words[8 * block + word] ^= np.uint64(1) << np.uint64(bit)
            bloom.is_changed = False
            assert _all_maybe(bloom, there), f"word {word}, bit {bit}"
            assert bloom.is_changed
            assert not bloom.is_whole
            bloom.words[:] = sound


def test_words_blocks_and_sectors_that_are_lost_or_are_others() -> None:
    bloom, fps = _filter(20_000)
    sound = bloom.words.copy()
    other, _ = _filter(40_000)
    rng = np.random.default_rng(4)
    whole_sectors = len(sound) // 64
    for of_words in (1, 2, 4, 8, 64):
        for at in (rng.integers(0, whole_sectors, 40) * 64).tolist():
            for put in (
                np.zeros(of_words, np.uint64),
                np.full(of_words, 2**64 - 1, np.uint64),
                rng.integers(0, 2**64, of_words, np.uint64),
                sound[(at + 64) % (whole_sectors * 64) :][:of_words],  # that of the place beside it
                other.words[at : at + of_words],  # that of another filter
            ):
                bloom.words[at : at + of_words] = put
                bloom.is_changed = False
                assert _all_maybe(bloom, fps), f"{of_words} words at {at}: an id that is in it is not found"
                is_other = not np.array_equal(bloom.words, sound)
                asked = fps[_block_of(fps, bloom) == at // 8]
                assert not len(asked) or bloom.is_changed == is_other
                assert bloom.is_whole != is_other
                bloom.words[:] = sound


class _File:
    def __init__(self, bloom: WordBloom) -> None:
        self.bloom = bloom

    def maybe(self, fps: np.ndarray) -> np.ndarray | None:
        raise AssertionError("they are asked together")


def test_among_filters_that_are_asked_together_it_is_said_which_one() -> None:
    files = [_File(_filter(100 + n)[0]) for n in range(70)]
    asked = random_fps(200, seed=8)
    for n in (1, 65):
        files[n].bloom.words[:] = 0
    told = {id(file): hit for file, hit in FilterBank(files).maybe(asked)}
    assert [n for n, file in enumerate(files) if file.bloom.is_changed] == [1, 65]
    assert told[id(files[1])].all()
    assert told[id(files[65])].all()
    assert all(not hit.all() for key, hit in told.items() if key not in (id(files[1]), id(files[65])))


def _m(n: int) -> Msg:
    return Msg(f"c{n % 3}", msg_id(n))


def _words_at(store: LocalStore, sealed: SealedInterval, kind: str = "bloom", column: int = 0) -> tuple[int, int]:
    """Where a column's bytes are in a file, and how many."""
    data = store.get(sealed.interval.name(kind))
    assert data is not None
    values = open_arrow(lambda _: data, sealed.interval, kind).column(column).to_numpy()
    return data.index(values.tobytes()), values.nbytes


def _zero(path: Path, at: int, size: int) -> None:
    with path.open("r+b") as file:  # in place, as a disk does it: whoever has it mapped sees it
        file.seek(at)
        file.write(bytes(size))


@pytest.mark.parametrize("size", [8, 64, 512])
async def test_a_filter_that_changes_while_the_shard_runs(tmp_path: Path, size: int) -> None:
    """No old id is new, it is found at the first touch, and the interval is made anew once."""
    store = LocalStore(tmp_path)
    async with owner_of(store, checkpoint_ids_max=40) as owner:
        old = [_m(n) for n in range(40)]
        assert await send(owner, *old) is not None
        committer = owner.current.committer  # type: ignore[union-attr]
        await until_async(lambda: committer.intervals and committer.state.frozen is None, "they are sealed")
        (sealed,) = committer.intervals
        at, whole = _words_at(store, sealed)
        for place in range(at, at + whole, size):
            _zero(tmp_path / sealed.interval.name("bloom"), place, min(size, at + whole - place))

        async def known() -> bool:
            told = await send(owner, *old)
            assert told is None or all(status != "new" for status, _ in told)
            return told == [("duplicate", n // 3 + 1) for n in range(40)]

        await until_async(known, "each has its first number")
        await until_async(lambda: committer.intervals[0] is not sealed, "it is made anew")
        await until_async(known, "there, too")
        assert not committer.confirmer.damaged
        assert len([note for note in committer.notes if "made anew" in note]) == 1


def test_a_look_up_tells_of_a_changed_filter_and_answers_all_the_same(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [_m(n) for n in range(100)])
    seal(committer)
    (sealed,) = committer.intervals
    at, whole = _words_at(LocalStore(tmp_path), sealed)
    confirmer = Confirmer(committer.store, 0, SEED)
    rows = rows_of([_m(n) for n in range(100)])
    _zero(tmp_path / sealed.interval.name("bloom"), at, whole)
    assert sealed.maybe(rows.fps) is not None
    found = confirmer.look_up(rows, [(sealed, np.arange(100))])
    assert [found[n].seq for n in range(100)] == [n // 3 + 1 for n in range(100)]
    assert confirmer.damaged == {sealed}
    with pytest.raises(DerivedError, match="bloom"):
        sealed.check()
    confirmer.is_sound(sealed)
    assert not confirmer.damaged
    confirmer.look_up(rows, [(sealed, np.arange(100))])
    assert not confirmer.damaged, "it was read since, and is not told of again for what was met before"


def test_ids_of_the_first_version_that_change_while_they_are_mapped(tmp_path: Path) -> None:
    """They have no sums: the filter is a copy in memory, and the ids are verified at each look-up."""
    _unpack(tmp_path, "nothing", False)
    committer = open_committer(LocalStore(tmp_path))
    sealed = next(s for s in committer.intervals if not s.is_current and s.interval.ids)
    fps = np.array(sealed.fingerprints(0))
    assert sealed.candidates(fps)
    at, whole = _words_at(LocalStore(tmp_path), sealed)
    _zero(tmp_path / sealed.interval.name("bloom"), at, whole)
    hit = sealed.maybe(fps)
    assert hit is not None
    assert hit.all()
    with pytest.raises(DerivedError):
        open_interval(committer.store, sealed.interval)
    at, whole = _words_at(LocalStore(tmp_path), sealed, "ids")
    _zero(tmp_path / sealed.interval.name("ids"), at, 8)
    with pytest.raises(DerivedError):
        sealed.candidates(fps)
