"""Requests of old ids that wait beside the queue: their room, and what equal ones share."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from imray.core.columns import First, Rows
from imray.core.errors import StorageError
from imray.core.replies import Appended, Refusal, Refused
from imray.log import checkpoint
from imray.log.confirm import Confirmer
from imray.shard import old_ids, set_aside
from tests.support.batches import CONFLICT, DUPLICATE, NEW, Msg, ipc_of
from tests.support.owners import until_async
from tests.unit.test_old_ids import _OLD, _committer, _held, _m, _owner, _send


async def test_a_few_rows_that_are_looked_up_take_room_in_the_queue(tmp_path: Path) -> None:
    async with _owner(tmp_path, shard_queue_rows_max=4, commit_rows_max=4) as (owner, store):
        held = await _held(owner, store, _m(0), _m(50), _m(51))
        refused = await owner.append(ipc_of([_m(60), _m(61)]))
        assert isinstance(refused, Refusal)
        assert refused.why is Refused.BUSY
        assert await _send(owner, _m(62)) == [(NEW, _OLD + 1)]
        store.gate.set()
        assert len(await held) == 3
        assert await _send(owner, _m(60), _m(61)) == [(NEW, _OLD + 4), (NEW, _OLD + 5)]


async def test_many_old_ids_take_no_room_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a share of their own, and past it such requests alone are told to come later."""
    monkeypatch.setattr(set_aside, "_FEW", 2)
    async with _owner(tmp_path, shard_queue_rows_max=28, commit_rows_max=14) as (owner, store):
        held = [await _held(owner, store, _m(0), _m(1), _m(2), _m(50))]
        held.append(asyncio.create_task(_send(owner, _m(3), _m(4), _m(5))))
        await until_async(lambda: len(owner.loop._queue._aside) == 2, "both are set aside")
        told: list[Appended | Refusal] = []
        for _ in range(3):
            told.append(await asyncio.wait_for(owner.append(ipc_of([_m(5), _m(4), _m(3)])), 30))
        for n in range(60, 65):
            news = [_m(1000 * n + i) for i in range(14)]
            assert [status for status, _ in await _send(owner, *news)] == [NEW] * 14
        for refused in told:
            assert isinstance(refused, Refusal)
            assert refused.why is Refused.BUSY
            assert "sent long ago" in refused.detail
        few = asyncio.create_task(_send(owner, _m(0), _m(55)))
        await until_async(lambda: len(owner.loop._queue._aside) == 3, "a few rows are taken all the same")
        store.gate.set()
        assert (await held[0])[:3] == [(DUPLICATE, 1), (DUPLICATE, 2), (DUPLICATE, 3)]
        assert await held[1] == [(DUPLICATE, n + 1) for n in (3, 4, 5)]
        assert (await few)[0] == (DUPLICATE, 1)
        assert await _send(owner, _m(5), _m(4), _m(3)) == [(DUPLICATE, n + 1) for n in (5, 4, 3)]


async def test_the_largest_request_has_room_where_no_other_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_aside, "_FEW", 1)
    async with _owner(tmp_path, shard_queue_rows_max=6, commit_rows_max=6) as (owner, store):
        store.gate.set()
        assert await _send(owner, *(_m(n) for n in range(_OLD))) == [(DUPLICATE, n + 1) for n in range(_OLD)]


class CountedRows:
    """How many rows were looked up in files."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = Confirmer.look_up

        def look_up(confirmer: Confirmer, rows: Rows, maybe: old_ids.Maybe) -> dict[int, First]:
            self.count += sum(len(which) for _, which in maybe)
            return real(confirmer, rows, maybe)

        patch.setattr(Confirmer, "look_up", look_up)


async def test_equal_requests_share_a_look_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway's retries: whether they come while it is looked up, or later."""
    rows = CountedRows(monkeypatch)
    async with _owner(tmp_path) as (owner, store):
        request = [_m(0), _m(3, b"other"), _m(50), _m(4)]
        tries = [await _held(owner, store, *request)]
        tries += [asyncio.create_task(_send(owner, *request)) for _ in range(5)]
        await until_async(lambda: len(owner.loop._queue._aside) == 6, "all are set aside")
        other = asyncio.create_task(_send(owner, _m(0), _m(3), _m(51), _m(4)))
        await until_async(lambda: len(owner.loop._queue._aside) == 7, "it is set aside")
        store.gate.set()
        told = [await each for each in tries]
        told_old = [(DUPLICATE, 1), (CONFLICT, 4), (DUPLICATE, 5)]
        assert [[row for at, row in enumerate(each) if at != 2] for each in told] == [told_old] * 6
        assert [each[2][0] for each in told] == [NEW] + [DUPLICATE] * 5, "the oldest comes first"
        assert len({each[2][1] for each in told}) == 1
        assert (await other)[2][0] == NEW
        assert rows.count == 2 * 3, "one look-up of all tries, and the other's"
        store.gate.clear()
        assert await asyncio.wait_for(_send(owner, *request), 30) == [
            *told_old[:2],
            (DUPLICATE, told[0][2][1]),
            told_old[2],
        ]
        assert rows.count == 2 * 3, "it is remembered"


async def test_the_same_ids_in_another_conversation_are_another_request(tmp_path: Path) -> None:
    async with _owner(tmp_path) as (owner, store):
        store.gate.set()
        old = [_m(0), _m(1)]
        assert await _send(owner, *old) == [(DUPLICATE, 1), (DUPLICATE, 2)]
        moved = [Msg("hall", m.id, m.body) for m in old]
        assert await _send(owner, *moved) == [(NEW, 1), (NEW, 2)]
        assert await _send(owner, *old) == [(DUPLICATE, 1), (DUPLICATE, 2)]


async def test_what_was_sealed_since_is_looked_up_though_the_rest_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _owner(tmp_path) as (owner, store):
        store.gate.set()
        assert await _send(owner, _m(0), _m(50)) == [(DUPLICATE, 1), (NEW, _OLD + 1)]
        committer = _committer(owner)

        def seal_now() -> None:
            committer.sealed(checkpoint.write(store, committer.freeze(), committer.intervals))

        await owner._state.run(seal_now)
        rows = CountedRows(monkeypatch)
        for _ in range(3):
            assert await _send(owner, _m(0), _m(50)) == [(DUPLICATE, 1), (DUPLICATE, _OLD + 1)]
        assert rows.count == 1, "what the new file may know, once"


async def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_aside, "_REMEMBERED_ROWS_MAX", 4)
    async with _owner(tmp_path) as (owner, store):
        store.gate.set()
        rows = CountedRows(monkeypatch)
        pairs = [[_m(n), _m(n + 1)] for n in (0, 2, 4)]
        for pair in pairs:
            await _send(owner, *pair)
        assert rows.count == 6
        for pair in pairs[1:]:
            await _send(owner, *pair)
        assert rows.count == 6
        await _send(owner, *pairs[0])
        assert rows.count == 8, "the oldest was forgotten"
        monkeypatch.setattr(set_aside, "_REMEMBERED_S", 0.01)
        await _send(owner, _m(5), _m(0))
        await until_async(lambda: len(owner.loop._set_aside._remembered) < 2, "it is forgotten after a while")


async def test_what_a_file_could_not_say_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _owner(tmp_path) as (owner, store):
        store.gate.set()
        real = store.get_range
        with monkeypatch.context() as patch:

            def fails(name: str, start: int, size: int) -> bytes | None:
                if "-ids-" in threading.current_thread().name:
                    raise StorageError("a bad disk")
                return real(name, start, size)

            patch.setattr(store, "get_range", fails)
            answer = await owner.append(ipc_of([_m(0)]))
            assert isinstance(answer, Appended)
            assert answer.firsts is not None
            assert answer.firsts.waiting.all()
        assert await _send(owner, _m(0)) == [(DUPLICATE, 1)]
