"""Fault 24 and its kin: derived files missing, damaged, of another version, deleted by somebody else. Never fatal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from imray.cluster.home import Home
from imray.cluster.replies import Appended, Refusal
from imray.core.errors import CorruptError, DerivedError
from imray.log import checkpoint, sealed
from imray.log.remake import remake
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from tests.faults.owners import owner_of, until_async
from tests.unit.batches import (
    SEED,
    Msg,
    answers_of,
    collect,
    commit,
    ipc_of,
    merge_all,
    msg_id,
    open_committer,
    seal,
)

_KINDS = {
    "checkpoint": ["checkpoint/*/*"],
    "ids": ["sealed/*/*.ids.arrow"],
    "bloom": ["sealed/*/*.bloom.arrow"],
    "postings": ["sealed/*/*.postings.parquet"],
    "all": ["checkpoint/*/*", "sealed/*/*"],
}
_SENT = 40


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # whoever has the sound file mapped keeps it
    path.write_bytes(data)


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def _another_version(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"of a version that is not written yet")


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "flipped": _flip,
    "cut": _cut,
    "another version": _another_version,
}


def _damage(root: Path, kind: str, how: str) -> int:
    paths = [path for pattern in _KINDS[kind] for path in sorted(root.glob(pattern))]
    for path in paths:
        _DAMAGES[how](path)
    return len(paths)


def _message(n: int) -> Msg:
    return Msg("ab"[n % 2], msg_id(n))


async def _send(owner: Home, *messages: Msg) -> list[tuple[str, int]] | None:
    answer = await owner.append(ipc_of(messages))
    return [(r.status, r.seq) for r in answers_of(answer)] if isinstance(answer, Appended) else None


async def _fill(root: Path) -> None:
    """Checkpoints, several intervals, two of them merged, and a tail."""
    async with owner_of(LocalStore(root), checkpoint_ids_max=4) as owner:
        for n in range(_SENT):
            assert await _send(owner, _message(n)) == [("new", n // 2 + 1)]

        async def covered() -> bool:
            return int(str((await owner.status())["checkpoint_segment"])) > _SENT - 10

        await until_async(covered, "checkpoints are made")


async def _all_known(owner: Home) -> bool:
    told = await _send(owner, *map(_message, range(_SENT)))
    return told == [("duplicate", n // 2 + 1) for n in range(_SENT)]


@pytest.mark.parametrize("how", sorted(_DAMAGES))
@pytest.mark.parametrize("kind", sorted(_KINDS))
async def test_a_shard_starts_without_its_derived_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 4)
    await _fill(tmp_path)
    assert _damage(tmp_path, kind, how)
    async with owner_of(LocalStore(tmp_path)) as owner:
        await until_async(lambda: _all_known(owner), "every old id has its first number")
        assert await _send(owner, _message(_SENT)) == [("new", _SENT // 2 + 1)]
        for interval in [i.interval for i in owner._committer.intervals]:  # type: ignore[union-attr]
            await owner.mend(interval.name("postings"))
        status = await owner.status()
        assert status["state"] == "serving"
        if how != "removed" or kind != "all":  # where nothing is left, nothing is known to be missing
            assert status["notes"], "it is said"
        for interval in [i.interval for i in owner._committer.intervals]:  # type: ignore[union-attr]
            assert sealed.read_postings(LocalStore(tmp_path), interval).num_rows


@pytest.mark.parametrize("how", sorted(_DAMAGES))
@pytest.mark.parametrize("kind", sorted(_KINDS))
async def test_a_shard_goes_on_while_its_derived_files_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    """Merges and checkpoints go on over the damage, and the next start is a sound one."""
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 4)
    await _fill(tmp_path)
    async with owner_of(LocalStore(tmp_path), checkpoint_ids_max=4) as owner:
        assert await _send(owner, _message(_SENT)) == [("new", _SENT // 2 + 1)]
        assert _damage(tmp_path, kind, how)
        for n in range(_SENT + 1, _SENT + 40):
            await until_async(lambda n=n: _send(owner, _message(n)), "it serves")
        await until_async(lambda: _all_known(owner), "every old id has its first number")
        assert owner.state == "serving"
    async with owner_of(LocalStore(tmp_path)) as owner:
        await until_async(lambda: _all_known(owner), "and after a restart")


async def test_retries_wait_while_ids_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who needs the damaged file waits; everybody else is served."""
    await _fill(tmp_path)
    _damage(tmp_path, "ids", "flipped")
    go_on = threading.Event()

    def slow(*args: object) -> object:
        assert go_on.wait(30)
        return remake(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("imray.cluster.upkeep.remake", slow)
    async with owner_of(LocalStore(tmp_path)) as owner:
        try:
            refused = await owner.append(ipc_of([_message(0)]))
            assert isinstance(refused, Refusal)
            assert refused.why == "unavailable"
            assert await _send(owner, Msg("c", msg_id(1000))) == [("new", 1)]
        finally:
            go_on.set()
        await until_async(lambda: _all_known(owner), "it is made anew")


def test_an_interval_that_cannot_be_made_anew_says_so(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [Msg("a", msg_id(1))])
    seal(committer)
    (made,) = committer.intervals
    _flip(tmp_path / segment_name(0, 2))
    with pytest.raises(CorruptError, match=r"0002\.parquet"):
        remake(committer.store, SEED, made.interval, {})


def test_made_anew_it_is_the_same(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    for n in range(5):
        commit(committer, [Msg(f"c{i % 3}", msg_id(10 * n + i)) for i in range(9)])
    seal(committer)
    (made,) = committer.intervals
    again = remake(committer.store, SEED, made.interval, {})
    assert again.ids.equals(made.ids)
    assert again.postings().equals(made.postings())
    assert (again.bloom.words == made.bloom.words).all()
    assert not {*again.interval.names} & {*made.interval.names}
    wrong = sealed.Interval(0, 1, 6, 46, "x", ())
    with pytest.raises(DerivedError, match="46 ids"):
        remake(committer.store, SEED, wrong, {})


# Checkpoints beside merges


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


class GatedStore(LocalStore):
    """Holds puts of one kind while its gate is closed."""

    def __init__(self, root: Path, held: str) -> None:
        super().__init__(root)
        self.held = held
        self.gate = threading.Event()
        self.gate.set()
        self.holding = threading.Event()

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        if self.held in name and not self.gate.is_set():
            self.holding.set()
            assert self.gate.wait(60)
        return super().put_if_absent(name, parts)


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
                assert await _send(owner, Msg("c", msg_id(n))) == [("new", n + 1)]
                n += 1
            merging = owner._upkeep._merge_task  # type: ignore[union-attr]
            if merging is not None:
                await asyncio.wait([merging])
            store.gate.set()
            await until_async(lambda: owner._upkeep._checkpoint_task is None, "it is written")  # type: ignore[union-attr]
        ranges = [(i.interval.first, i.interval.last) for i in owner._committer.intervals]  # type: ignore[union-attr]
        assert all(a[1] + 1 == b[0] for a, b in pairwise(ranges)), ranges
    async with owner_of(LocalStore(tmp_path)) as owner:
        told = await _send(owner, *(Msg("c", msg_id(i)) for i in range(n)))
        assert told == [("duplicate", i + 1) for i in range(n)]
        assert not (await owner.status())["notes"], "nothing had to be made anew"


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
                await until_async(lambda n=n: _send(owner, Msg("c", msg_id(n))), "it serves")
                n += 1
            owner.fail(RuntimeError("something beside the loop"))
            epoch = owner._committer.state.log.epoch  # type: ignore[union-attr]

            async def again() -> bool:
                await _send(owner, Msg("c", msg_id(0)))
                return owner.state == "serving" and int(str((await owner.status())["epoch"])) > epoch

            await until_async(again, "it serves anew beside the merge")
        finally:
            go_on.set()
    async with owner_of(LocalStore(tmp_path)) as owner:
        assert await _send(owner, Msg("c", msg_id(0))) == [("duplicate", 1)]


# A writer that was replaced


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


def test_files_that_were_never_published_are_swept(tmp_path: Path) -> None:
    import os

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
