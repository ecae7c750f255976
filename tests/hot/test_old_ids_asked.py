"""Old ids in the asks of partitions: a few are looked up at once, and no ask waits for more than that.

A request whose ids take longer goes to the home shard, and all others of its partition go on."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from imray.core.grants import Declined, DeclineReason, Granted
from imray.core.replies import Refusal, Refused
from imray.log.confirm import Confirmer
from imray.shard import grants, hot_groups
from tests.hot.test_group import _hot, _m, _rows, _stable
from tests.support.batches import rows_of
from tests.support.groups import Group
from tests.support.owners import figures_of, until_async

_OLD = 8


class HeldLookUps:
    """Look-ups that wait until they may go on."""

    def __init__(self, patch: pytest.MonkeyPatch, thread: str = "-ids-") -> None:
        """`thread`: of its name, for those of asks or of the home shard's own senders alone."""
        self.go_on = threading.Event()
        self.held = threading.Event()
        self.count = 0
        real = Confirmer.look_up

        def look_up(confirmer: Confirmer, *args: object) -> object:
            if thread in threading.current_thread().name:
                self.held.set()
                assert self.go_on.wait(30)
                self.count += 1
            return real(confirmer, *args)  # type: ignore[arg-type]

        patch.setattr(Confirmer, "look_up", look_up)


async def _sealed(group: Group) -> None:
    """Some ids, in files."""
    for n in range(_OLD):
        assert _rows(await group.send(0, _m(n))) == [("new", n + 1)]

    async def sealed() -> bool:
        figures = await figures_of(group.home)
        return figures.sealed_ids >= _OLD - 2 and not group.home.current.upkeep.at_work  # type: ignore[union-attr]

    await until_async(sealed, "ids are sealed")


async def test_nobody_of_its_partition_waits_for_a_request_of_old_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the look-up takes, and though it is longer than any call may take."""
    settings = {"checkpoint_segments_max": 4, "grant_timeout_s": 30.0, "call_timeout_s": 0.2}
    async with Group(tmp_path, **settings) as group:
        await _sealed(group)
        await _hot(group)
        look_ups = HeldLookUps(monkeypatch)
        before = [group.partitions[slot].loop.number for slot in (1, 2)]
        sending = asyncio.create_task(group.send(1, _m(0), _m(50), _m(2, b"other")))
        await until_async(look_ups.held.is_set, "it is looked up")
        n = 60
        started = time.monotonic()
        while time.monotonic() - started < 0.5 or n < 80:
            for slot in (1, 2):
                answer = await asyncio.wait_for(group.try_send(slot, _m(n)), 5)
                assert _rows(answer) == [("new", _OLD + 1 + n - 60)]
                n += 1
        assert not sending.done()
        look_ups.go_on.set()
        assert _rows(await sending) == [("duplicate", 1), ("new", _OLD + 1 + n - 60), ("conflict", 3)]
        assert await _stable(group, _OLD + 1 + n - 60) == _OLD + 1 + n - 60
        assert [group.partitions[slot].loop.number for slot in (1, 2)] == before, "no incarnation was ended by it"


async def test_a_few_old_ids_are_told_by_the_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter's wrong "maybe" must not send large requests of new ids to the home shard."""
    monkeypatch.setattr(hot_groups, "_LOOK_UP_S", 30.0)
    async with Group(tmp_path, checkpoint_segments_max=4) as group:
        await _sealed(group)
        await _hot(group, 1)
        answer = await group.try_send(1, _m(0), _m(50), _m(2, b"other"))
        assert _rows(answer) == [("duplicate", 1), ("new", _OLD + 1), ("conflict", 3)]


async def test_many_old_ids_go_to_the_home_shard_without_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "_OLD_IDS_MAX", 3)
    async with Group(tmp_path, checkpoint_segments_max=4) as group:
        await _sealed(group)
        await _hot(group, 1)
        asked = HeldLookUps(monkeypatch, "asked-ids")
        refusal = await asyncio.wait_for(group.try_send(1, *(_m(n) for n in range(4))), 30)
        assert isinstance(refusal, Refusal)
        assert refusal.why is Refused.OLD_IDS
        assert not refusal.maybe_written
        assert not asked.held.is_set()
        assert _rows(await group.send(1, *(_m(n) for n in range(4)))) == [("duplicate", n + 1) for n in range(4)]


async def test_requests_of_one_commit_are_written_but_for_those_of_old_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Group(tmp_path, checkpoint_segments_max=4, grant_timeout_s=30.0) as group:
        await _sealed(group)
        await _hot(group, 1)
        look_ups = HeldLookUps(monkeypatch)
        requests = [[_m(70)], [_m(0), _m(71)], [_m(72), _m(73)], [_m(1)], [_m(74)]]
        answers = await asyncio.wait_for(asyncio.gather(*(group.try_send(1, *each) for each in requests)), 30)
        for at in (1, 3):
            refusal = answers[at]
            assert isinstance(refusal, Refusal)
            assert refusal.why is Refused.OLD_IDS
        told = [row for at in (0, 2, 4) for row in _rows(answers[at])]
        assert told == [("new", _OLD + 1 + n) for n in range(4)]
        look_ups.go_on.set()
        assert _rows(await group.send(1, *requests[1])) == [("duplicate", 1), ("new", _OLD + 5)]
        assert await _stable(group, _OLD + 5) == _OLD + 5


async def test_an_ask_that_comes_again_waits_for_the_same_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_groups, "_LOOK_UP_S", 30.0)
    async with Group(tmp_path, checkpoint_segments_max=4) as group:
        await _sealed(group)
        await _hot(group, 1)
        hot = group.home.current.hot  # type: ignore[union-attr]
        epoch = hot.grants.blocks.slot_epoch(1)
        look_ups = HeldLookUps(monkeypatch)
        rows = rows_of([_m(0), _m(1)])
        asks = [asyncio.create_task(hot.ask(1, epoch, 1000, rows, ())) for _ in range(3)]
        await until_async(look_ups.held.is_set, "it is looked up")
        look_ups.go_on.set()
        first, *others = await asyncio.gather(*asks)
        assert isinstance(first, Granted)
        assert first.expanded().seq.tolist() == [1, 2]
        assert all(other is first for other in others), "the same ask has the same answer"
        assert look_ups.count == 1


async def test_an_ask_that_is_declined_for_its_old_ids_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called again, or late: what it asked for may be numbered by the home shard meanwhile."""
    async with Group(tmp_path, checkpoint_segments_max=4) as group:
        await _sealed(group)
        await _hot(group, 1)
        hot = group.home.current.hot  # type: ignore[union-attr]
        epoch = hot.grants.blocks.slot_epoch(1)
        look_ups = HeldLookUps(monkeypatch)
        rows = rows_of([_m(50), _m(0), _m(1)])
        asks = [asyncio.create_task(hot.ask(1, epoch, 1000, rows, ())) for _ in range(2)]
        answers = await asyncio.wait_for(asyncio.gather(*asks), 30)
        look_ups.go_on.set()
        answers.append(await hot.ask(1, epoch, 1000, rows, ()))
        for answer in answers:
            assert isinstance(answer, Declined)
            assert answer.why is DeclineReason.OLD_IDS
            assert answer.rows is not None
            assert answer.rows.tolist() == [1, 2], "which rows they are"
        assert not hot.grants.blocks.outstanding


async def test_an_incarnation_that_ends_answers_asks_that_wait_for_a_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_groups, "_LOOK_UP_S", 30.0)
    async with Group(tmp_path, checkpoint_segments_max=4) as group:
        await _sealed(group)
        await _hot(group, 1)
        hot = group.home.current.hot  # type: ignore[union-attr]
        look_ups = HeldLookUps(monkeypatch)
        epoch = hot.grants.blocks.slot_epoch(1)
        asking = asyncio.create_task(hot.ask(1, epoch, 1000, rows_of([_m(0), _m(1)]), ()))
        await until_async(look_ups.held.is_set, "it is looked up")
        group.home.loop.fail(RuntimeError("something beside the loop"))
        await until_async(lambda: hot._ended, "it ends")
        look_ups.go_on.set()
        assert isinstance(await asyncio.wait_for(asking, 30), Refusal)
