"""Old ids looked up beside everything else: who waits for it, and what may change meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imray.core.replies import Appended, Refusal, Refused
from imray.log import checkpoint, sealed
from imray.log.confirm import Confirmer
from imray.log.sealed_filter import grown
from imray.log.store import LocalStore
from imray.shard import old_ids
from imray.shard.committer import Committer
from imray.shard.shard_writer import ShardWriter
from tests.support.batches import (
    CONFLICT,
    DUPLICATE,
    NEW,
    Msg,
    answers_of,
    collect,
    ipc_of,
    merge_all,
    msg_id,
    open_committer,
    prepared,
    seal,
)
from tests.support.batches import commit as commit_now
from tests.support.owners import owner_of, until_async

_OLD = 6


class HeldReads(LocalStore):
    """Holds look-ups' reads of ids while its gate is closed."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.held = threading.Event()

    def get_range(self, name: str, start: int, size: int) -> bytes | None:
        if "-ids-" in threading.current_thread().name and not self.gate.is_set():
            self.held.set()
            assert self.gate.wait(60)
        return super().get_range(name, start, size)


def _m(n: int, body: bytes = b"hello") -> Msg:
    return Msg("room", msg_id(n), body)


def _told(answer: Appended | Refusal) -> list[tuple[str, int]]:
    assert isinstance(answer, Appended), answer
    return [(row.status, row.seq) for row in answers_of(answer)]


async def _send(owner: ShardWriter, *messages: Msg) -> list[tuple[str, int]]:
    return _told(await owner.append(ipc_of(messages)))


def _committer(owner: ShardWriter) -> Committer:
    assert owner.current is not None
    return owner.current.committer


@asynccontextmanager
async def _owner(root: Path, **settings: object) -> AsyncIterator[tuple[ShardWriter, HeldReads]]:
    """An owner with `_OLD` sealed ids, two in an interval; their reads are held."""
    committer = open_committer(root)
    for n in range(0, _OLD, 2):
        commit_now(committer, [_m(n), _m(n + 1)])
        seal(committer)
    store = HeldReads(root)
    async with owner_of(store, **settings) as owner:
        await until_async(lambda: owner.current and not owner.current.upkeep.at_work, "it has loaded what it needs")
        store.gate.clear()
        try:
            yield owner, store
        finally:
            store.gate.set()


async def _held(owner: ShardWriter, store: HeldReads, *messages: Msg) -> asyncio.Task[list[tuple[str, int]]]:
    """A request whose look-up is held."""
    sending = asyncio.create_task(_send(owner, *messages))
    await until_async(store.held.is_set, "it is looked up")
    return sending


async def test_nobody_else_waits_for_a_look_up(tmp_path: Path) -> None:
    async with _owner(tmp_path) as (owner, store):
        held = await _held(owner, store, _m(1), _m(4, b"other"), _m(50), _m(3))
        for n in range(60, 65):
            assert await _send(owner, _m(n)) == [(NEW, _OLD + 1 + n - 60)]
        assert not held.done()
        store.gate.set()
        assert await held == [(DUPLICATE, 2), (CONFLICT, 5), (NEW, _OLD + 6), (DUPLICATE, 4)]


async def test_requests_of_one_commit_are_planned_but_for_those_that_are_looked_up(tmp_path: Path) -> None:
    """They are taken from the queue together."""
    async with _owner(tmp_path) as (owner, store):
        sent = [asyncio.create_task(_send(owner, *m)) for m in ([_m(70)], [_m(0), _m(71)], [_m(72)], [_m(2)])]
        assert await asyncio.wait_for(sent[0], 30) == [(NEW, _OLD + 1)]
        assert await asyncio.wait_for(sent[2], 30) == [(NEW, _OLD + 2)]
        assert not sent[1].done()
        assert not sent[3].done()
        store.gate.set()
        assert await sent[3] == [(DUPLICATE, 3)]
        assert await sent[1] == [(DUPLICATE, 1), (NEW, _OLD + 3)]


async def test_an_id_that_another_request_brought_meanwhile_is_its_duplicate(tmp_path: Path) -> None:
    async with _owner(tmp_path) as (owner, store):
        held = await _held(owner, store, _m(0), _m(50), _m(51, b"other"))
        assert await _send(owner, _m(50), _m(51)) == [(NEW, _OLD + 1), (NEW, _OLD + 2)]
        store.gate.set()
        assert await held == [(DUPLICATE, 1), (DUPLICATE, _OLD + 1), (CONFLICT, _OLD + 2)]


async def test_what_was_sealed_meanwhile_is_looked_up_again(tmp_path: Path) -> None:
    """Its id was new when the look-up began, was numbered for somebody else, and memory has let go of it since."""
    async with _owner(tmp_path) as (owner, store):
        held = await _held(owner, store, _m(0), _m(50))
        assert await _send(owner, _m(50)) == [(NEW, _OLD + 1)]
        committer = _committer(owner)

        def seal_now() -> None:
            committer.sealed(checkpoint.write(store, committer.freeze(), committer.intervals))

        await owner._state.run(seal_now)
        assert not committer.state.recent.count
        assert committer.state.frozen is None
        store.gate.set()
        assert await held == [(DUPLICATE, 1), (DUPLICATE, _OLD + 1)]


async def test_files_that_are_merged_and_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be read is gone, and another file has it: nobody is told to come back."""
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 3)
    async with _owner(tmp_path) as (owner, store):
        committer = _committer(owner)
        old = committer.intervals
        held = await _held(owner, store, *(_m(n) for n in range(_OLD)))

        def merge() -> None:
            merge_all(committer)
            for interval in old:
                sealed.remove(store, interval.interval)

        await owner._state.run(merge)
        assert len(committer.intervals) == 1
        store.gate.set()
        assert await held == [(DUPLICATE, n + 1) for n in range(_OLD)]


async def test_an_incarnation_that_ends_refuses_what_waits_for_a_look_up(tmp_path: Path) -> None:
    async with _owner(tmp_path) as (owner, store):
        sending = asyncio.create_task(owner.append(ipc_of([_m(0), _m(50)])))
        await until_async(store.held.is_set, "it is looked up")
        before = owner.loop.number
        owner.loop.fail(RuntimeError("something beside the loop"))
        answer = await asyncio.wait_for(sending, 30)
        assert isinstance(answer, Refusal)
        assert answer.why is Refused.UNAVAILABLE
        store.gate.set()
        await until_async(lambda: owner.loop.number > before and owner.state == "serving", "it opens anew")
        assert await _send(owner, _m(0), _m(50)) == [(DUPLICATE, 1), (NEW, _OLD + 1)]


async def test_a_bug_in_a_look_up_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _owner(tmp_path) as (owner, store):
        store.gate.set()
        fails = [1]
        real = Confirmer.look_up

        def look_up(self: Confirmer, *args: object) -> object:
            if fails:
                fails.pop()
                raise ZeroDivisionError
            return real(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Confirmer, "look_up", look_up)
        answer = await asyncio.wait_for(owner.append(ipc_of([_m(0)])), 30)
        assert isinstance(answer, Refusal)
        await until_async(lambda: owner.state == "serving", "it opens anew")
        assert await _send(owner, _m(0)) == [(DUPLICATE, 1)]


def test_large_look_ups_take_turns_with_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is a few rows of one file, so who comes later waits for one step of each before it."""
    monkeypatch.setattr(old_ids, "_ROWS_A_STEP", 2)
    committer = open_committer(tmp_path)
    for part in range(3):
        commit_now(committer, [_m(10 * part + i) for i in range(7)])
        seal(committer)
    job = committer.plan([prepared([_m(10 * part + i) for part in range(3) for i in range(7)])])
    (aside,) = job.aside
    assert not job.answers
    steps = 1
    while aside.look_up.step():
        steps += 1
    assert steps == 3 * 4
    assert [aside.look_up.looked.firsts[i].seq for i in range(21)] == list(range(1, 22))


def test_the_list_of_files_may_be_that_of_another_moment(tmp_path: Path) -> None:
    """Merged files have what was asked for; a later one is asked, whatever it was merged of."""
    committer = open_committer(tmp_path)
    for n in range(3):
        commit_now(committer, [_m(n)])
        seal(committer)
    job = committer.plan([prepared([_m(0), _m(50), _m(2)])])
    (aside,) = job.aside
    while aside.look_up.step():
        pass
    looked = aside.look_up.looked
    assert looked.last == committer.intervals[-1].interval.last
    whole = sealed.merge(committer.store, committer.intervals)
    assert committer.merged(committer.intervals, whole)
    request = prepared([_m(0), _m(50), _m(2)])
    object.__setattr__(request, "looked", looked)
    assert not old_ids.find(committer.state, committer.confirmer, [request]).aside, "nothing is asked again"
    commit_now(committer, [_m(50)])
    files = checkpoint.write(committer.store, committer.freeze(), committer.intervals)
    committer.sealed(files, grown(None, files))
    whole = sealed.merge(committer.store, committer.intervals)
    assert committer.merged(committer.intervals, whole)
    assert old_ids.find(committer.state, committer.confirmer, [request]).aside, "there may be more in it now"
    collect(committer)
