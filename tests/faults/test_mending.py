"""Which intervals are made anew, and when it is tried again: those in use, and no others for ever."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from imray.core.columns import RowStatus
from imray.core.errors import CorruptError
from imray.history.remake import remake
from imray.log import sealed
from imray.log.confirm import Confirmer
from imray.log.store import LocalStore
from imray.shard import mending
from imray.shard.old_ids import LookUp
from imray.shard.shard_writer import ShardWriter
from tests.faults.test_derived import send
from tests.faults.test_older_folder import _unpack
from tests.support.batches import SEED, Msg, commit, msg_id, open_committer, rows_of, seal
from tests.support.groups import Group
from tests.support.owners import owner_of, until_async


class Remakes:
    """Counts what is made anew; `hold` has it wait, `fail` has it fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.failing = 0
        patch.setattr(mending, "remake", self._remake)

    def _remake(self, *args: object, **more: object) -> object:
        self.count += 1
        assert self.go_on.wait(30)
        if self.failing:
            self.failing -= 1
            raise CorruptError("wal/some", "somewhere", "by the test")
        return remake(*args, **more)  # type: ignore[arg-type]


def _intervals(owner: ShardWriter) -> list[sealed.SealedInterval]:
    return owner.current.committer.intervals  # type: ignore[union-attr]


async def _fill(owner: ShardWriter, root: Path, first: int) -> None:
    """Ten ids, and a checkpoint of them."""
    before = owner.current.committer.state.covered.get(0, 0)  # type: ignore[union-attr]
    told = await until_async(lambda: send(owner, *(Msg("a", msg_id(n)) for n in range(first, first + 10))), "taken")
    assert told == [("new", n + 1) for n in range(first, first + 10)]
    committer = owner.current.committer  # type: ignore[union-attr]
    await until_async(
        lambda: committer.state.covered.get(0, 0) > before and not owner.current.upkeep.at_work,  # type: ignore[union-attr]
        "it is sealed",
    )


async def test_a_look_at_an_interval_that_was_merged_meanwhile_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    held = threading.Event()
    real = LookUp.step

    def step(look_up: LookUp) -> bool:
        held.set()
        assert go_on.wait(30)
        return real(look_up)

    monkeypatch.setattr(LookUp, "step", step)
    remakes = Remakes(monkeypatch)
    async with owner_of(LocalStore(tmp_path), checkpoint_ids_max=10) as owner:
        committer = owner.current.committer  # type: ignore[union-attr]
        for n in range(0, 30, 10):
            await _fill(owner, tmp_path, n)
        first = _intervals(owner)[0]
        asking = asyncio.create_task(send(owner, *(Msg("a", msg_id(n)) for n in range(5))))
        await until_async(held.is_set, "it is looked up")
        for n in range(30, 80, 10):
            await _fill(owner, tmp_path, n)
        assert not (tmp_path / first.interval.run_name(0)).exists(), "it was merged, and its files are gone"
        go_on.set()
        assert await asking == [("duplicate", n + 1) for n in range(5)], "it was looked up in what took its place"
        for n in range(80, 110, 10):
            await _fill(owner, tmp_path, n)
        assert not committer.confirmer.damaged
        assert not committer.notes
        assert not committer.rewrite
    assert remakes.count == 0


def test_a_row_of_a_retired_interval_is_asked_again_and_its_ids_are_not_damaged(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [Msg("a", msg_id(n)) for n in range(9)])
    seal(committer)
    (gone,) = committer.intervals
    rows = rows_of([Msg("a", msg_id(n)) for n in range(9)])
    confirmer = Confirmer(committer.store, 0, SEED)
    sealed.remove(committer.store, gone.interval)
    gone._runs.clear()
    confirmer.lost.add(gone)
    confirmer.forget([gone])
    found = confirmer.look_up(rows, [(gone, np.arange(9))])
    assert {(first.status, first.file) for first in found.values()} == {(RowStatus.WAITING, gone)}
    assert not confirmer.damaged


async def test_what_is_not_in_use_any_more_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it came to be called damaged: before others took its place, or just while they did."""
    remakes = Remakes(monkeypatch)
    async with owner_of(LocalStore(tmp_path), checkpoint_ids_max=10) as owner:
        committer = owner.current.committer  # type: ignore[union-attr]
        for n in range(0, 50, 10):
            await _fill(owner, tmp_path, n)
        stranger = sealed.SealedInterval(committer.store, sealed.draft(0, 1, 2, 3, ()), None)
        committer.confirmer.damaged.add(stranger)
        committer.confirmer.lost.add(stranger)
        owner.current.upkeep.start_checkpoint()  # type: ignore[union-attr]
        assert not committer.confirmer.damaged
        assert not committer.confirmer.lost
        assert not owner.current.upkeep.at_work  # type: ignore[union-attr]
    assert remakes.count == 0


async def test_one_that_is_merged_while_it_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made is thrown away, nothing is said of it, and no checkpoint is asked for."""
    remakes = Remakes(monkeypatch)
    remakes.go_on.clear()
    async with owner_of(LocalStore(tmp_path), checkpoint_ids_max=10) as owner:
        committer = owner.current.committer  # type: ignore[union-attr]
        for n in range(0, 20, 10):
            await _fill(owner, tmp_path, n)
        before = list(_intervals(owner))
        (tmp_path / before[0].interval.name("bloom")).write_bytes(b"rubbish, but it is mapped by nobody who looks")
        committer.confirmer.damaged.add(before[0])
        owner.current.upkeep.start_checkpoint()  # type: ignore[union-attr]
        await until_async(lambda: remakes.count, "it is being made anew")
        whole = sealed.merge(committer.store, before)
        assert committer.merged(before, whole)
        remakes.go_on.set()
        await until_async(lambda: not owner.current.upkeep.at_work, "it is made")  # type: ignore[union-attr]
        assert _intervals(owner) == [whole]
        assert not committer.notes
        assert not committer.rewrite
        assert not committer.confirmer.damaged
        named = {name for s in [whole, *before] for name in s.interval.names}
        assert set(committer.store.list("sealed/shard=0000/")) <= named
    assert remakes.count == 1


async def test_intervals_of_version_1_that_could_not_be_made_anew_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a restart and though nobody looks for their ids: what they cover could never be deleted."""
    _unpack(tmp_path, "nothing", False)
    remakes = Remakes(monkeypatch)
    remakes.failing = 9
    async with Group(tmp_path, checkpoint_wait_s=0.1) as group:
        committer = group.home.current.committer  # type: ignore[union-attr]
        assert any(not s.is_current for s in committer.intervals)
        await until_async(lambda: all(s.is_current for s in committer.intervals), "they are made anew")
        await until_async(lambda: not group.home.current.upkeep.at_work, "all is done")  # type: ignore[union-attr]
        told = [note for note in committer.notes if "cannot be made anew" in note]
        assert len(told) == len(set(told)), "said once of each"
        assert not committer.confirmer.lost
    assert not remakes.failing
