"""Checkpoints, merges and deletions side by side, in one writer and in two: no file goes that somebody needs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from imray.core.errors import StorageError
from imray.log import checkpoint, sealed
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard.committer import Committer
from tests.faults.test_derived import send
from tests.support.batches import Msg, collect, commit, merge_all, msg_id, open_committer, seal
from tests.support.owners import GatedStore, figures_of, owner_of, until_async


def test_a_merge_that_ends_while_a_checkpoint_is_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    committer = open_committer(tmp_path)
    for n in range(2):
        commit(committer, [Msg("c", msg_id(n))])
        seal(committer)
    commit(committer, [Msg("c", msg_id(2))])
    snap, before = committer.freeze(), committer.intervals
    merge_all(committer)
    (whole,) = committer.intervals
    committer.sealed(checkpoint.write(committer.store, snap, before))
    assert committer.intervals[0] is whole
    assert [(i.interval.first, i.interval.last) for i in committer.intervals] == [(1, 3), (4, 4)]
    collect(committer)
    rows = commit(open_committer(tmp_path), [Msg("c", msg_id(n)) for n in range(3)])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", n + 1) for n in range(3)]


def test_a_merge_whose_parts_are_gone_is_thrown_away(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    for n in range(3):
        commit(committer, [Msg("c", msg_id(n))])
        seal(committer)
    parts = list(committer.intervals[:2])
    whole = sealed.merge(committer.store, parts)
    other = sealed.merge(committer.store, parts)
    assert committer.merged(parts, whole)
    assert not committer.merged(parts, other)
    assert not committer.merged(committer.intervals[::-1], other)
    assert [(i.interval.first, i.interval.last) for i in committer.intervals] == [(1, 3), (4, 4)]


async def test_upkeep_survives_every_checkpoint_that_overlaps_a_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each checkpoint is held until the merges of those before have ended, and deleting was their turn."""
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    store = GatedStore(tmp_path, "checkpoint/")
    async with owner_of(store, checkpoint_segments_max=2) as owner:
        n = 0
        for _ in range(8):
            store.gate.clear()
            store.holding.clear()
            while not store.holding.is_set():
                assert await send(owner, Msg("c", msg_id(n))) == [("new", n + 1)]
                n += 1
            merging = owner.current.upkeep._merge_task  # type: ignore[union-attr]
            if merging is not None:
                await asyncio.wait([merging])
            store.gate.set()
            await until_async(lambda: owner.current.upkeep._checkpoint_task is None, "it is written")  # type: ignore[union-attr]
        ranges = [(i.interval.first, i.interval.last) for i in owner.current.committer.intervals]  # type: ignore[union-attr]
        assert all(a[1] + 1 == b[0] for a, b in pairwise(ranges)), ranges
    async with owner_of(LocalStore(tmp_path)) as owner:
        told = await send(owner, *(Msg("c", msg_id(i)) for i in range(n)))
        assert told == [("duplicate", i + 1) for i in range(n)]
        assert not (await owner.status()).notes, "nothing had to be made anew"


async def test_a_new_incarnation_does_not_wait_for_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    entered, go_on = threading.Event(), threading.Event()
    real = checkpoint.merge_step

    def slow(*args: object) -> object:
        entered.set()
        assert go_on.wait(60)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "merge_step", slow)
    async with owner_of(LocalStore(tmp_path), checkpoint_segments_max=2) as owner:
        try:
            n = 0
            while not entered.is_set():
                await until_async(lambda n=n: send(owner, Msg("c", msg_id(n))), "it serves")
                n += 1
            owner.loop.fail(RuntimeError("something beside the loop"))
            epoch = owner.current.committer.state.log.epoch  # type: ignore[union-attr]

            async def again() -> bool:
                await send(owner, Msg("c", msg_id(0)))
                return owner.state == "serving" and (await figures_of(owner)).epoch > epoch

            await until_async(again, "it serves anew beside the merge")
        finally:
            go_on.set()
    async with owner_of(LocalStore(tmp_path)) as owner:
        assert await send(owner, Msg("c", msg_id(0))) == [("duplicate", 1)]


def test_a_replaced_writer_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It slept since before its successor began, and wakes in its upkeep."""
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 4)
    old = open_committer(tmp_path)
    n = 0
    for n in range(4):
        commit(old, [Msg("c", msg_id(n))])
        seal(old)
    merge_all(old)
    new = open_committer(tmp_path)
    commit(new, [Msg("c", msg_id(n + 1))])
    seal(new)
    merge_all(new)
    there = set(LocalStore(tmp_path).list("sealed/shard=0000/")) | set(checkpoint.checkpoints(new.store, 0))
    collect(old)
    assert there == set(LocalStore(tmp_path).list("sealed/shard=0000/")) | set(checkpoint.checkpoints(new.store, 0))
    commit(new, [Msg("c", msg_id(n + 2))])
    seal(new)
    again = open_committer(tmp_path)
    assert not again.notes
    rows = commit(again, [Msg("c", msg_id(i)) for i in range(n + 3)])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", i + 1) for i in range(n + 3)]


class MeanwhileStore(LocalStore):
    """Something happens just before a file is read, once."""

    def __init__(self, root: Path, name_ends: str, happens: Callable[[], None]) -> None:
        super().__init__(root)
        self._armed: tuple[str, Callable[[], None]] | None = name_ends, happens

    def get(self, name: str) -> bytes | None:
        if self._armed is not None and name.endswith(self._armed[0]):
            happens = self._armed[1]
            self._armed = None
            happens()
        return super().get(name)


@pytest.mark.parametrize("ends", ["bloom.arrow", "0006.parquet"])
def test_a_live_predecessor_retires_what_was_just_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    old = open_committer(tmp_path)
    n = 0

    def upkeep() -> None:
        nonlocal n
        for _ in range(5):
            commit(old, [Msg("c", msg_id(n))])
            n += 1
            seal(old)
            collect(old)
            merge_all(old)

    upkeep()
    new = open_committer(MeanwhileStore(tmp_path, ends, upkeep))
    assert not new.notes, "nothing is damaged"
    rows = commit(new, [Msg("c", msg_id(i)) for i in range(n)])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", i + 1) for i in range(n)]


async def test_an_error_in_upkeep_ends_no_incarnation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that nobody foresaw: it is said, and tried again."""
    fails = [1, 1]
    real = checkpoint.write

    def write(*args: object) -> object:
        if fails:
            fails.pop()
            raise MemoryError
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "write", write)
    async with owner_of(LocalStore(tmp_path), checkpoint_segments_max=2) as owner:
        n = 0

        async def covered() -> bool:
            nonlocal n
            assert await send(owner, Msg("c", msg_id(n))) == [("new", n + 1)]
            n += 1
            return bool((await figures_of(owner)).checkpoint_segment)

        await until_async(covered, "a checkpoint is made in the end")
        assert (await figures_of(owner)).epoch == 1
        assert "MemoryError" in str((await owner.status()).notes)


def test_files_that_were_never_published_are_swept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.sweep() == 0
    store.put_if_absent("a/b", [b"x"])
    old, young = tmp_path / "tmp/1-aa-0", tmp_path / "tmp/2-bb-0"
    for path in (old, young):
        path.write_bytes(b"left over")
    os.utime(old, (1, 1))
    assert store.sweep() == 1
    assert not old.exists()
    assert young.exists(), "somebody may be writing it"


class NoRoomStore(LocalStore):
    """Takes segments, and refuses the first so many sealed files."""

    refusals = 0

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        if name.startswith("sealed/") and self.refusals:
            self.refusals -= 1
            raise StorageError("the disk is full")
        return super().put_if_absent(name, parts)


def _read(committer: Committer, conv_id: str) -> list[int]:
    """Every number of a conversation that a reader finds: in sealed intervals, and in what came after them."""
    found = [(p["first"], p["last"]) for i in committer.intervals for p in i.postings().to_pylist()]
    found += [span[1:] for span in committer.locate(conv_id, 1, 1 << 60).spans]
    return [seq for first, last in found for seq in range(first, last + 1)]


@pytest.mark.parametrize("refusals", [1, 2, 1000])
@pytest.mark.parametrize("more", [0, 3])
def test_a_recovery_that_could_not_seal_loses_nothing_at_the_next_checkpoint(
    tmp_path: Path, refusals: int, more: int
) -> None:
    """It seals ids while it reads the log, where there are many, and finds the disk full; then there is room again."""
    committer = open_committer(tmp_path)
    for n in range(22):
        commit(committer, [Msg("c", msg_id(n))])
    store = NoRoomStore(tmp_path)
    store.refusals = refusals
    recovered = open_committer(store, Settings(checkpoint_ids_max=4))
    assert store.refusals < refusals, "it tried"
    store.refusals = 0
    for n in range(22, 22 + more):
        commit(recovered, [Msg("c", msg_id(n))])
    every = range(22 + more)
    seal(recovered)
    assert _read(recovered, "c") == [n + 1 for n in every]
    again = open_committer(tmp_path)
    assert not again.notes, "the checkpoint serves"
    assert _read(again, "c") == [n + 1 for n in every], "every message is read"
    rows = commit(again, [Msg("c", msg_id(n)) for n in every])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", n + 1) for n in every]
