"""What a hot group may cost its home shard: ids and segments without a checkpoint, numbers that nobody uses."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from imray.core.errors import StorageError
from imray.core.replies import Appended, Refusal, Refused
from imray.log import checkpoint
from imray.log.schema import to_ipc
from imray.log.store import LocalStore
from tests.hot.test_group import _hot, _m, _rows, _stable
from tests.support.batches import Msg, batch_of, msg_id
from tests.support.groups import Group
from tests.support.owners import figures_of, until_async


def _hot_of(group: Group):  # type: ignore[no-untyped-def]
    assert group.home.current is not None
    return group.home.current.hot


async def test_asks_wait_for_an_overdue_checkpoint_as_home_senders_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        async with Group(tmp_path, checkpoint_ids_max=4) as group:
            await _hot(group, 1)
            state = _hot_of(group).grants.committer.state
            refusal = None
            for n in range(100):
                answer = await group.try_send(1, _m(n))
                if isinstance(answer, Refusal) and answer.why is Refused.BUSY:
                    refusal = answer
                    break
            assert refusal is not None, f"{state.recent.count} ids were taken"
            assert state.recent.count <= 4 * 4 + 4
            at_home = await group.try_send(0, Msg("other", msg_id(1)))
            assert isinstance(at_home, Refusal)
            assert at_home.why is Refused.BUSY
            assert group.partitions[1].state == "serving", "busy is no fault of the partition"
            patch.undo()

            async def served() -> bool:
                return not isinstance(await group.try_send(1, _m(n)), Refusal)

            await until_async(served, "it goes on when there is a checkpoint")


async def test_a_checkpoint_that_failed_comes_again_though_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []

    def fails_twice(*args: object) -> object:
        if len(failed) < 2:
            failed.append("no room")
            raise StorageError("no room")
        return real(*args)  # type: ignore[arg-type]

    real = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", fails_twice)
    async with Group(tmp_path, checkpoint_segments_max=10, reopen_delay_s_max=0.05) as group:
        for n in range(30):
            assert _rows(await group.send(0, _m(n))) == [("new", n + 1)]

        async def settled() -> bool:
            assert group.home.current is not None
            return not group.home.current.committer.checkpoint_due

        await until_async(settled, "the checkpoint was made")
    assert len(failed) == 2


async def test_commits_of_partitions_make_a_checkpoint_due(tmp_path: Path) -> None:
    """Nothing but partitions writes: the home shard's own log must move, since a checkpoint is called after it."""
    async with Group(tmp_path, checkpoint_segments_max=20) as group:
        await _hot(group, 1)

        async def checkpoint(before: set[str]) -> bool:
            entries = _hot_of(group).grants.committer.state.postings.entries
            return len(entries) < 40 and not before.issuperset(LocalStore(tmp_path).list("checkpoint/shard=0000/"))

        for begin in (0, 75):
            before = set(LocalStore(tmp_path).list("checkpoint/shard=0000/"))
            for n in range(begin, begin + 75):
                assert _rows(await group.send(1, _m(n))) == [("new", n + 1)]
            await until_async(partial(checkpoint, before), "a checkpoint was made")
        assert _rows(await group.send(0, *map(_m, range(150)))) == [("duplicate", n + 1) for n in range(150)]
    async with Group(tmp_path) as group:
        assert _rows(await group.send(0, *map(_m, range(150)))) == [("duplicate", n + 1) for n in range(150)]


async def test_a_clean_stop_leaves_no_void(tmp_path: Path) -> None:
    n = 0
    for _ in range(3):
        async with Group(tmp_path) as group:
            if not n:
                await _hot(group)
            else:
                await _hot(group, 2)
            for slot in (1, 2, 0):
                n += 1
                assert _rows(await group.send(slot, _m(n))) == [("new", n)]
            assert await _stable(group, n) == n
            assert not _hot_of(group).grants.voids


async def test_a_clean_stop_waits_for_what_was_granted(tmp_path: Path) -> None:
    async with Group(tmp_path, grant_timeout_s=0.3, call_timeout_s=1.0) as group:
        await _hot(group)
        group.links[1].lose_answers = 10**6
        lost = asyncio.create_task(group.try_send(1, _m(1)))
        await until_async(lambda: _hot_of(group).grants.blocks.outstanding, "a grant is outstanding")
        await group.home.stop()
        assert isinstance(await lost, Refusal)
    async with Group(tmp_path) as group:
        assert _rows(await group.send(0, _m(2))) == [("new", 2)]
        assert _rows(await group.send(0, _m(1))) == [("new", 3)]


async def test_a_cold_turn_leaves_no_void(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        for n in range(1, 7):
            if n % 2:
                await _hot(group, 1)
                assert _rows(await group.send(1, _m(n))) == [("new", n)]
            else:
                assert await _hot_of(group).make_cold("room") is None
                assert _rows(await group.send(0, _m(n))) == [("new", n)]
        assert not _hot_of(group).grants.voids


async def test_a_crash_voids_a_few_blocks_at_most(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _hot(group)
        for n in range(1, 9):
            assert _rows(await group.send(1 + n % 2, _m(n))) == [("new", n)]
        group.crashes = True
    async with Group(tmp_path) as group:
        ((_, seq),) = _rows(await group.send(0, _m(9)))
        assert 9 <= seq <= 9 + 2048
        assert await _stable(group, seq) == seq


async def test_names_without_rows_do_no_harm(tmp_path: Path) -> None:
    """A gateway splits a batch by log, and each part keeps the names of all: the log must stay readable."""
    async with Group(tmp_path) as group:
        await _hot(group, 1)
        batch = batch_of([Msg("elsewhere", msg_id(1)), _m(2), Msg("another", msg_id(3)), _m(4)])
        part = batch.take(pa.array(np.array([1, 3])))
        assert len(part.column("conv_id").dictionary) == 3
        answer = await group.partitions[1].append(to_ipc(part))
        assert isinstance(answer, Appended)
        assert answer.seqs().tolist() == [1, 2]
        group.crashes = True
    async with Group(tmp_path) as group:
        assert group.home.state == "serving"
        assert _rows(await group.send(0, _m(2), _m(4))) == [("duplicate", 1), ("duplicate", 2)]


async def test_ceilings_go_on_when_the_rate_falls_before_they_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that is made when less is wanted raises nothing; then it is wanted again."""
    async with Group(tmp_path, call_timeout_s=5.0) as group:
        await _hot(group, 1)
        grants = _hot_of(group).grants
        real = grants.ceilings

        def late():  # type: ignore[no-untyped-def]
            found = real()
            grants.committer.hot_detector.rates.clear()  # as a tick does, between the wish and the record
            return found

        monkeypatch.setattr(grants, "ceilings", late)
        n = 0
        for _ in range(40):
            grants.committer.hot_detector.rates[0] = 20_000.0
            rows = _rows(await group.send(1, *(_m(n + i) for i in range(100))))
            assert rows[-1] == ("new", n + 100)
            n += 100


@pytest.mark.parametrize("what", ["cool", "stop", "checkpoint"])
async def test_a_block_that_the_fence_finds_durable_wakes_who_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The partition's node dies between its put and its report, and nobody else asks."""
    async with Group(tmp_path, grant_timeout_s=0.2, checkpoint_ids_max=1) as group:
        await _hot(group, 1)
        link = group.links[1]
        ask = link.ask

        async def then_cut(*args):  # type: ignore[no-untyped-def]
            answer = await ask(*args)
            link.cut = True
            return answer

        monkeypatch.setattr(link, "ask", then_cut)
        assert _rows(await group.send(1, _m(1))) == [("new", 1)]
        async with asyncio.timeout(4):
            if what == "cool":
                assert await _hot_of(group).make_cold("room") is None
            elif what == "stop":
                await group.home.stop()
            else:

                async def sealed() -> bool:
                    await group.try_send(0, Msg("other", msg_id(9)))
                    return bool((await figures_of(group.home)).sealed_ids)

                await until_async(sealed, "the checkpoint is made")
    async with Group(tmp_path) as group:
        assert not _hot_of(group).grants.voids
        assert _rows(await group.send(0, _m(1), _m(2))) == [("duplicate", 1), ("new", 2)]


async def test_a_clean_stop_beside_a_cold_turn_leaves_it_cold(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _hot(group, 1)
        hot = _hot_of(group)
        conv = hot.grants.committer.state.conversations.index("room")
        hot.grants.blocks.cooling.add(conv)
        cold = asyncio.create_task(group.home.loop.record(hot.grants.make_cold("room")))
        hot.grants.blocks.closed = True
        assert await group.home.loop.record(hot.grants.exact_ceilings()) is None
        assert await cold is None
    async with Group(tmp_path) as group:
        assert not _hot_of(group).grants.committer.state.hot
