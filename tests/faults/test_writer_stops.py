"""Faults 3, 10, 15 and 19: a failed fsync, a lost answer, retries of every kind, a clock that jumps."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from imray.core.replies import Refusal, Refused
from imray.log import sealed
from tests.support.client import Client
from tests.support.driver import FaultStore
from tests.support.owners import (
    NotingStore,
    figures_of,
    owner_of,
    read_and_check,
    send,
    send_until_acked,
    serving,
    until_async,
)

_A, _B, _C = ["a", 1, "x"], ["a", 2, "y"], ["b", 3, "z"]


@pytest.mark.parametrize(("step", "landed"), [("written", False), ("linked", True)])
async def test_one_failed_fsync_ends_the_incarnation(tmp_path: Path, step: str, landed: bool) -> None:
    """The file's fsync ("written") or the folder's ("linked") fails once, then works."""
    client, store = Client(), NotingStore(tmp_path)
    async with owner_of(store) as owner:
        assert isinstance(await send(client, owner, [_A]), list)
        before = list(store.segments)
        store.arm(step, action="eio")
        refused = await send(client, owner, [_B, _C])
        assert isinstance(refused, Refusal)
        assert refused.why is Refused.UNAVAILABLE
        assert "Input/output error" in refused.detail
        await serving(owner)
        failed, *later = store.segments[len(before) :]
        assert (failed.segment, failed.epoch, failed.rows) == (3, 1, 2)
        # nothing was tried again in place: what came next is the empty fence of a new epoch
        assert [(m.segment, m.epoch, m.rows) for m in later] == [(4 if landed else 3, 2, 0)]
        told = await send(client, owner, [_A, _B, _C])
        assert [t[:2] for t in told] == [
            ["duplicate", 1],
            ["duplicate" if landed else "new", 2],
            ["duplicate" if landed else "new", 1],
        ]
    read_and_check(client, tmp_path)


async def test_a_failed_fsync_while_others_wait(tmp_path: Path) -> None:
    """What waits behind the failed commit is refused too, and goes in by its retry."""
    client, store = Client(), NotingStore(tmp_path)
    async with owner_of(store, commit_rows_max=1) as owner:
        store.arm("written", action="eio")
        answers = await asyncio.gather(*(send(client, owner, [["a", i, "x"]]) for i in range(5)))
        assert all(isinstance(a, Refusal) for a in answers)
        for i in range(5):
            await send_until_acked(client, owner, [["a", i, "x"]])
    read_and_check(client, tmp_path)


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_put_whose_answer_was_lost_is_our_own(tmp_path: Path, at: int) -> None:
    """The put lands, the store says "exists" (at 1: the fence)."""
    client, store = Client(), FaultStore(tmp_path)
    store.arm("before the answer", at=at, action="lose")
    async with owner_of(store) as owner:
        for i, row in enumerate([_A, _B, ["a", 4, "w"]]):
            assert await send(client, owner, [row]) == [["new", i + 1, i + 1]]
        assert (await figures_of(owner)).epoch == 1
    read_and_check(client, tmp_path)


class GateStore(FaultStore):
    """Holds each put of a segment until the gate is open."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.holding = threading.Event()

    def _sync_file(self, fd: int) -> None:
        self.holding.set()
        assert self.gate.wait(60)
        super()._sync_file(fd)


async def test_a_retry_in_flight_gets_the_first_number(tmp_path: Path) -> None:
    """The second waits for the first's commit, in one commit with others or after it."""
    client, store = Client(), GateStore(tmp_path)
    async with owner_of(store) as owner:
        store.gate.clear()
        store.holding.clear()
        first = asyncio.create_task(send(client, owner, [_A]))
        await until_async(store.holding.is_set, "the first is being written")
        others = [asyncio.create_task(send(client, owner, [row])) for row in (_A, _B, _B, ["a", 1, "another"])]
        await asyncio.sleep(0)
        store.gate.set()
        answers: list[Any] = await asyncio.gather(first, *others)
        assert [a[0][:2] for a in answers] == [
            ["new", 1],
            ["duplicate", 1],
            ["new", 2],
            ["duplicate", 2],
            ["conflict", 1],
        ]
        assert await send(client, owner, [_C, _C, ["b", 3, "other"]]) == [
            ["new", 1, 1],
            ["duplicate", 1, 1],
            ["conflict", 1, 1],
        ]
    read_and_check(client, tmp_path)


async def test_retries_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After checkpoints and merges of intervals, after failover: the first number, or a conflict with it."""
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    client, rows = Client(), [["ab"[i % 2], i, "x"] for i in range(40)]
    for start in range(0, 40, 10):
        async with owner_of(FaultStore(tmp_path), checkpoint_ids_max=2) as owner:
            for row in rows[start : start + 10]:
                await send_until_acked(client, owner, [row])
            told = await send_until_acked(client, owner, rows[: start + 10])
            assert [t[:2] for t in told] == [["duplicate", i // 2 + 1] for i in range(start + 10)]
            other = await send_until_acked(client, owner, [[conv, n, "another"] for conv, n, _ in rows[: start + 10]])
            assert [t[:2] for t in other] == [["conflict", i // 2 + 1] for i in range(start + 10)]

            async def sealed_ids() -> object:
                return (await figures_of(owner)).sealed_ids

            await until_async(sealed_ids, "ids are sealed")
    async with owner_of(FaultStore(tmp_path), checkpoint_ids_max=2) as owner:

        async def merged() -> bool:
            rows.append(["ab"[len(rows) % 2], len(rows), "x"])
            await send_until_acked(client, owner, [rows[-1]])  # a checkpoint, and merges after it
            intervals = [i.interval for i in owner.current.committer.intervals] if owner.current else []
            return any(i.last - i.first > 8 for i in intervals)

        await until_async(merged, "intervals are merged")
        told = await send_until_acked(client, owner, rows)
        assert [t[:2] for t in told] == [["duplicate", i // 2 + 1] for i in range(len(rows))]
    read_and_check(client, tmp_path)


async def test_the_clock_jumps_an_hour_both_ways(tmp_path: Path) -> None:
    """Numbers, fences and duplicates do not depend on it."""
    client, hour = Client(), 3_600_000
    now, seq = 10 * hour, 0
    for jump in (0, hour, -2 * hour, hour, -hour):
        now += jump
        times = iter(now + j * hour for j in (0, 1, -1, 1, -2, 2, 0, -1, 0, 1, 0, 1))
        async with owner_of(FaultStore(tmp_path), clock_ms=lambda times=times: next(times)) as owner:
            for _ in range(4):
                seq += 1
                assert await send(client, owner, [["a", seq, "x"]]) == [["new", seq, seq]]
                told = await send(client, owner, [["a", 1, "x"], ["a", seq, "x"]])
                assert isinstance(told, list)
                assert [t[:2] for t in told] == [["duplicate", 1], ["duplicate", seq]]
    read_and_check(client, tmp_path)


async def test_an_overdue_checkpoint_does_not_lock_senders_out(tmp_path: Path) -> None:
    """Where so much came without a checkpoint that senders must wait, the waiting ends."""
    client = Client()
    async with owner_of(FaultStore(tmp_path)) as owner:
        assert isinstance(await send(client, owner, [["a", i, "x"] for i in range(20)]), list)
    async with owner_of(FaultStore(tmp_path), checkpoint_ids_max=2) as owner:
        assert (await send_until_acked(client, owner, [["a", 20, "x"]]))[0][:2] == ["new", 21]
    read_and_check(client, tmp_path)


async def test_stop_answers_what_is_being_committed(tmp_path: Path) -> None:
    """In good order: the commit in flight is answered, the rest refused; nobody waits for ever."""
    client, store = Client(), GateStore(tmp_path)
    async with owner_of(store, commit_rows_max=1) as owner:
        store.gate.clear()
        store.holding.clear()
        first, second = (asyncio.create_task(send(client, owner, [row])) for row in (_A, _B))
        await until_async(store.holding.is_set, "the first is being written")
        stopping = asyncio.create_task(owner.stop())
        await asyncio.sleep(0)
        store.gate.set()
        assert await asyncio.wait_for(first, 60) == [["new", 1, 1]]
        assert isinstance(await asyncio.wait_for(second, 60), Refusal)
        await stopping
    read_and_check(client, tmp_path)


async def test_a_bug_in_a_commit_does_not_leave_callers_waiting(tmp_path: Path, monkeypatch: Any) -> None:
    """An error that nobody foresaw is an unknown outcome."""
    client = Client()
    async with owner_of(FaultStore(tmp_path)) as owner:
        with monkeypatch.context() as patch:
            patch.setattr("imray.shard.committer.segment_table", lambda *_: 1 / 0)
            refused = await asyncio.wait_for(send(client, owner, [_A]), 60)
            assert isinstance(refused, Refusal)
            assert refused.why is Refused.UNAVAILABLE
        assert await send_until_acked(client, owner, [_A]) == [["new", 1, 1]]
    read_and_check(client, tmp_path)
