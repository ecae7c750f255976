"""Old ids in the asks of partitions: looked up beside the state's thread, once, however often the ask comes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from imray.core.grants import Granted
from imray.core.replies import Refusal
from imray.log.confirm import Confirmer
from tests.hot.test_group import _hot, _m, _rows, _stable
from tests.support.batches import rows_of
from tests.support.groups import Group
from tests.support.owners import figures_of, until_async

_OLD = 8


class HeldLookUps:
    """Look-ups that wait until they may go on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.held = threading.Event()
        self.count = 0
        real = Confirmer.look_up

        def look_up(confirmer: Confirmer, *args: object) -> object:
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


async def test_other_asks_are_answered_while_old_ids_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Group(tmp_path, checkpoint_segments_max=4, grant_timeout_s=30.0, partition_deadline_s=30.0) as group:
        await _sealed(group)
        await _hot(group)
        look_ups = HeldLookUps(monkeypatch)
        sending = asyncio.create_task(group.send(1, _m(0), _m(50), _m(2, b"other")))
        await until_async(look_ups.held.is_set, "it is looked up")
        for n in range(60, 64):
            assert _rows(await group.send(2, _m(n))) == [("new", _OLD + 1 + n - 60)]
            assert _rows(await group.send(0, _m(n))) == [("duplicate", _OLD + 1 + n - 60)]
        assert not sending.done()
        look_ups.go_on.set()
        assert _rows(await sending) == [("duplicate", 1), ("new", _OLD + 5), ("conflict", 3)]
        assert await _stable(group, _OLD + 5) == _OLD + 5


async def test_an_ask_that_comes_again_waits_for_the_same_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_an_incarnation_that_ends_answers_asks_that_wait_for_a_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
