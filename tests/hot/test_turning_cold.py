"""The record that turns a group cold, and what may not follow it: a block, a ceiling, an old incarnation's record."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from imray.core.errors import StorageError, UnavailableError
from imray.core.grants import Declined, DeclineReason
from imray.core.replies import Refusal
from imray.shard.hot_groups import HotGroups
from imray.shard.jobs import Job
from tests.hot.test_group import _hot, _m, _rows, _stable
from tests.support.batches import rows_of
from tests.support.driver import FaultStore
from tests.support.groups import Group
from tests.support.owners import figures_of, until_async


def _of(group: Group) -> HotGroups:
    assert group.home.current is not None
    return group.home.current.hot


async def test_no_block_above_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ask, which may overtake what waits for the state's thread, is looked at when the record is durable and not
    marked so yet."""
    async with Group(tmp_path) as group:
        await _hot(group, 1)
        assert _rows(await group.send(1, _m(1))) == [("new", 1)]
        current, state = group.home.current, group.home._state
        go_on, answered = threading.Event(), asyncio.Event()
        assert current is not None
        apply = current.apply

        def be_busy_and_apply(job: Job) -> None:
            if job.commit is not None and job.commit.controls:
                state._worker.run(go_on.wait, 30)  # the thread is busy, the state itself is free
                answered.set()  # in this very step
            apply(job)

        monkeypatch.setattr(current, "apply", be_busy_and_apply)
        cooling = asyncio.create_task(_of(group).make_cold("room"))
        try:
            await asyncio.wait_for(answered.wait(), 30)
            for _ in range(10):
                await asyncio.sleep(0)  # whoever waited for it goes on
            refusal = await group.try_send(1, _m(2))
        finally:
            go_on.set()
        assert isinstance(refusal, Refusal)
        assert refusal.why == "moved"
        assert await cooling is None
        assert _rows(await group.send(0, _m(2))) == [("new", 2)]
        await _hot(group, 1)
        assert _rows(await group.send(1, _m(3))) == [("new", 3)]
    async with Group(tmp_path) as group:
        assert _rows(await group.send(0, _m(1), _m(2), _m(3))) == [("duplicate", n) for n in (1, 2, 3)]


async def test_no_block_where_the_record_may_be_durable(tmp_path: Path) -> None:
    store = FaultStore(tmp_path)
    async with Group(store) as group:
        await _hot(group, 1)
        assert _rows(await group.send(1, _m(1))) == [("new", 1)]
        await _stable(group, 1)
        hot = _of(group)
        store.arm("linked", action="eio", prefix="wal/shard=0000/")
        assert isinstance(await hot.make_cold("room"), Refusal)
        epoch = hot.grants.blocks.slot_epoch(1)
        assert hot.grants.ask(1, epoch, 1000, rows_of([_m(2)]), [], 0.0) == Declined(DeclineReason.MOVED)
        assert _rows(await group.deliver(_m(2), partitions=1)) == [("new", 2)]
        assert not _of(group).grants.committer.state.hot, "the record was durable"


async def test_the_next_incarnation_logs_nothing_of_the_last(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _hot(group, 1)
        old = _of(group)
        group.home.loop.fail(StorageError("the disk is away"))
        await until_async(lambda: group.home.state == "serving" and _of(group) is not old, "it has recovered")
        segment = (await figures_of(group.home)).segment
        assert isinstance(await old.make_hot("other", 1), Refusal)
        assert isinstance(await old.make_cold("room"), Refusal)
        old._fail(StorageError("too late"))
        assert (await figures_of(group.home)).segment == segment
        assert _rows(await group.send(1, _m(1)))[0][0] == "new", "it is still hot"


async def test_no_ceiling_after_the_record(tmp_path: Path) -> None:
    """Not while it turns cold, but later where that did not work."""
    async with Group(tmp_path) as group:
        await _hot(group, 1)
        assert _rows(await group.send(1, _m(1))) == [("new", 1)]
        await _stable(group, 1)
        grants = _of(group).grants
        state = grants.committer.state
        state.conversations.heads[0] = state.hot[0].ceiling - 2
        grants._want_ceiling(0)
        grants._want_ceiling(0)
        assert grants.ceilings_wanted == {0}
        grants.blocks.cooling.add(0)
        assert grants.ceilings()[1](state) == []
        grants.blocks.cooling.discard(0)
        grants._want_ceiling(0)
        assert len(grants.ceilings()[1](state)) == 1


async def test_what_was_acked_as_hot_is_hot_for_the_next_ask(tmp_path: Path) -> None:
    """An ask is answered at once where the state is free: what is durable must be applied before it is acked."""
    async with Group(tmp_path) as group:
        await _hot(group, 1)
        assert await _of(group).make_cold("room") is None
        state = _of(group).grants.committer.state
        real = group.home.current.apply  # type: ignore[union-attr]
        slow = threading.Event()

        def apply(job: Job) -> None:
            group.home._state._worker.run(slow.wait, 0.2)
            real(job)

        group.home.current.apply = apply  # type: ignore[union-attr, method-assign]
        assert await _of(group).make_hot("room", 1) is None
        assert state.conversations.index("room") in state.hot


async def test_nobody_waits_for_the_grants_of_an_incarnation_that_has_ended(tmp_path: Path) -> None:
    async with Group(tmp_path, grant_timeout_s=60.0) as group:
        await _hot(group, 1)
        hot = _of(group)
        waiting = asyncio.create_task(hot.until_settled(lambda: False))
        closing = asyncio.create_task(hot.until_settled(lambda: False))
        await until_async(lambda: len(hot._waiting) == 2, "both wait")
        group.home.loop.fail(StorageError("the disk is away"))
        for task in (waiting, closing):
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(task, 30)
