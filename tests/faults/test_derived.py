"""Fault 24 and its kin: derived files missing, damaged, of another version, deleted by somebody else. Never fatal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from imray.core.errors import CorruptError, DerivedError
from imray.core.replies import Appended
from imray.history.remake import remake
from imray.log import checkpoint, sealed
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard.shard_writer import ShardWriter
from tests.support.batches import (
    SEED,
    Msg,
    answers_of,
    commit,
    ipc_of,
    msg_id,
    open_committer,
    seal,
)
from tests.support.owners import figures_of, owner_of, until_async

_KINDS = {
    "checkpoint": ["checkpoint/*/*"],
    "ids": ["sealed/*/*.ids.*"],
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


async def send(owner: ShardWriter, *messages: Msg) -> list[tuple[str, int]] | None:
    answer = await owner.append(ipc_of(messages))
    return [(r.status, r.seq) for r in answers_of(answer)] if isinstance(answer, Appended) else None


def _sealed_files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.glob("sealed/*/*")}


async def _fill(root: Path) -> None:
    """Checkpoints, several intervals, two of them merged, and a tail."""
    async with owner_of(LocalStore(root), checkpoint_ids_max=4) as owner:
        for n in range(_SENT):
            # busy where the checkpoints are behind
            told = await until_async(lambda n=n: send(owner, _message(n)), "it is taken")
            assert told == [("new", n // 2 + 1)]

        async def covered() -> bool:
            return (await figures_of(owner)).checkpoint_segment > _SENT - 10

        await until_async(covered, "checkpoints are made")


async def _all_known(owner: ShardWriter) -> bool:
    told = await send(owner, *map(_message, range(_SENT)))
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
        assert await send(owner, _message(_SENT)) == [("new", _SENT // 2 + 1)]
        for interval in [i.interval for i in owner.current.committer.intervals]:  # type: ignore[union-attr]
            await owner.mend(interval.name("postings"))
        status = await owner.status()
        assert status.state == "serving"
        if how != "removed" or kind != "all":  # where nothing is left, nothing is known to be missing
            assert status.notes, "it is said"
        for interval in [i.interval for i in owner.current.committer.intervals]:  # type: ignore[union-attr]
            sealed.read_postings(LocalStore(tmp_path), interval)


@pytest.mark.parametrize("how", sorted(_DAMAGES))
@pytest.mark.parametrize("kind", sorted(_KINDS))
async def test_a_shard_goes_on_while_its_derived_files_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    """Merges and checkpoints go on over the damage, and the next start is a sound one."""
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 4)
    await _fill(tmp_path)
    async with owner_of(LocalStore(tmp_path), checkpoint_ids_max=4) as owner:
        assert await send(owner, _message(_SENT)) == [("new", _SENT // 2 + 1)]
        assert _damage(tmp_path, kind, how)
        for n in range(_SENT + 1, _SENT + 40):
            await until_async(lambda n=n: send(owner, _message(n)), "it serves")
        await until_async(lambda: _all_known(owner), "every old id has its first number")
        assert owner.state == "serving"
    async with owner_of(LocalStore(tmp_path)) as owner:
        await until_async(lambda: _all_known(owner), "and after a restart")


async def test_retries_wait_while_ids_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rows that need the damaged file wait: their batch-mates are written."""
    await _fill(tmp_path)
    _damage(tmp_path, "ids", "flipped")
    go_on = threading.Event()

    def slow(*args: object, **more: object) -> object:
        assert go_on.wait(30)
        return remake(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("imray.shard.mending.remake", slow)
    async with owner_of(LocalStore(tmp_path)) as owner:
        try:
            answer = await owner.append(ipc_of([Msg("c", msg_id(1000)), _message(0), Msg("c", msg_id(1001))]))
            assert isinstance(answer, Appended)
            assert answer.firsts is not None
            assert answer.firsts.at.tolist() == [1]
            assert answer.firsts.waiting.tolist() == [True]
            assert answer.seqs()[[0, 2]].tolist() == [1, 2]
        finally:
            go_on.set()
        await until_async(lambda: _all_known(owner), "it is made anew")


async def _rot(root: Path) -> None:
    await _fill(root)
    _flip(root / segment_name(0, 3))


@pytest.mark.parametrize("kind", ["bloom", "ids", "postings", "checkpoint"])
async def test_a_rotten_segment_beside_it_changes_nothing_for_others(tmp_path: Path, kind: str) -> None:
    """What cannot be made anew takes out the rows that need it: they are refused, not told to wait for ever."""
    await _rot(tmp_path)
    if kind == "checkpoint":
        _damage(tmp_path, "ids", "flipped")  # with all checkpoints gone, the log would be needed whole
    else:
        _damage(tmp_path, kind, "flipped")
    async with owner_of(LocalStore(tmp_path)) as owner:
        assert await send(owner, Msg("c", msg_id(1000))) == [("new", 1)]

        async def told() -> bool:
            answer = await owner.append(ipc_of([_message(1), Msg("c", msg_id(1000))]))
            assert isinstance(answer, Appended)
            assert answer.firsts is not None
            if kind in ("bloom", "postings"):
                return (answer.firsts.status.tolist(), answer.seqs().tolist()) == ([1, 1], [1, 1])
            return answer.firsts.unreadable.tolist() == [True, False]

        await until_async(told, "a row that needs the damaged ids is refused; from sound ones it is answered")

        async def noted() -> bool:
            return "cannot be made anew" in str((await owner.status()).notes)

        if kind in ("bloom", "ids"):  # postings are read by readers
            await until_async(noted, "it is said")
        assert owner.state == "serving"


async def test_one_interval_is_made_anew_once_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await _fill(tmp_path)
    made = []

    def counted(*args: object, **more: object) -> object:
        made.append(args[2])
        return remake(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("imray.shard.mending.remake", counted)
    async with owner_of(LocalStore(tmp_path)) as owner:
        _damage(tmp_path, "postings", "flipped")
        (first, *_) = [i.interval for i in owner.current.committer.intervals]  # type: ignore[union-attr]
        await asyncio.gather(*(owner.mend(first.name("postings")) for _ in range(50)))
        assert made == [first]
        await owner.mend(first.name("postings"))
        assert made == [first], "it is in nobody's list any more"


async def test_incarnations_that_end_early_do_not_pile_up_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await _fill(tmp_path)
    _damage(tmp_path, "ids", "flipped")
    running = [0, 0]
    go_on = threading.Event()

    def slow(*args: object, **more: object) -> object:
        running[0] += 1
        running[1] = max(running)
        try:
            assert go_on.wait(30)
            return remake(*args, **more)  # type: ignore[arg-type]
        finally:
            running[0] -= 1

    monkeypatch.setattr("imray.shard.mending.remake", slow)
    before = _sealed_files(tmp_path)
    async with owner_of(LocalStore(tmp_path)) as owner:
        await send(owner, _message(0))  # whoever needs it finds the damage
        await until_async(lambda: running[0], "it is being made anew")
        for _ in range(5):
            owner.loop.fail(RuntimeError("a flapping disk"))
            at = owner.loop.number
            await until_async(lambda at=at: owner.loop.number > at and owner.state == "serving", "it opens anew")
        assert running == [1, 1]
        go_on.set()
        await until_async(lambda: _all_known(owner), "the last one does it")
        committer = owner.current.committer  # type: ignore[union-attr]
    # at the very end: a merge may have come after what was awaited, and what it replaced goes with the next checkpoint
    in_use = {name for i in [*committer.intervals, *committer._replaced] for name in i.interval.names}
    in_use |= committer.retired._names - before
    store = LocalStore(tmp_path)
    metas = [checkpoint.checkpoint_meta(store, name) for name in checkpoint.checkpoints(store, 0)]
    named = {name for meta in metas for interval in meta.intervals for name in interval.names}
    assert _sealed_files(tmp_path) - before <= in_use | named, "what nobody wanted was removed, or will be"


async def test_memory_is_bounded_when_every_checkpoint_is_lost(tmp_path: Path) -> None:
    await _fill(tmp_path)
    _damage(tmp_path, "all", "removed")
    committer = open_committer(tmp_path, Settings(checkpoint_ids_max=4))
    assert committer.state.recent.count < 4
    assert len(committer.intervals) >= _SENT // 4
    ranges = [(i.interval.first, i.interval.last) for i in committer.intervals]
    assert all(a[1] + 1 == b[0] for a, b in pairwise(ranges))
    rows = commit(committer, [_message(n) for n in range(_SENT)])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", n // 2 + 1) for n in range(_SENT)]
    assert committer.checkpoint_due, "so that the next start does not read all of it again"


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
    assert np.array_equal(again.ids, made.ids)
    assert again.postings().equals(made.postings())
    assert (again.bloom.words == made.bloom.words).all()
    assert not {*again.interval.names} & {*made.interval.names}
    wrong = sealed.draft(0, 1, 6, 46, ())
    with pytest.raises(DerivedError, match="46 ids"):
        remake(committer.store, SEED, wrong, {})
