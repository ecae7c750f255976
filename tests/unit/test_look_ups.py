"""Whose turn it is to look old ids up, and who waits for it how long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from imray.core.columns import LookedUp
from imray.shard.look_ups import AskedLookUps, LookUps
from imray.shard.runtime import SYSTEM
from tests.support.owners import until_async


class FakeLookUp:
    """So many steps, noted in order, that wait for a gate."""

    def __init__(self, name: str, steps: int, noted: list[str], gate: threading.Event) -> None:
        self.name = name
        self.steps_left = steps
        self.looked = LookedUp({}, 1)
        self._noted = noted
        self._gate = gate

    def step(self) -> bool:
        assert self._gate.wait(30)
        self._noted.append(self.name)
        self.steps_left -= 1
        return self.steps_left > 0


class Looks:
    """Look-ups of fakes."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.noted: list[str] = []
        self.look_ups = LookUps(SYSTEM, "looks")

    def fake(self, name: str, steps: int) -> FakeLookUp:
        return FakeLookUp(name, steps, self.noted, self.gate)

    def start(self, name: str, steps: int) -> asyncio.Future[LookedUp]:
        return self.look_ups.start(self.fake(name, steps))  # type: ignore[arg-type]


@pytest.fixture
async def looks() -> AsyncIterator[Looks]:
    made = Looks()
    yield made
    made.gate.set()
    await made.look_ups.end()


async def test_the_oldest_ends_however_many_come_later_and_a_few_rows_wait_for_nobody(looks: Looks) -> None:
    started = [looks.start(name, 8) for name in "abcd"]
    small = looks.start("s", 1)
    looks.gate.set()
    await small
    await started[0]
    assert looks.noted.index("s") <= 1, "one step of another was before it"
    assert looks.noted[:9].count("a") == 8, "its own steps, and the small one's between"
    await asyncio.gather(*started)
    assert [looks.noted.count(name) for name in "abcds"] == [8, 8, 8, 8, 1]


async def test_a_read_that_hangs_makes_no_pile_behind_it(looks: Looks) -> None:
    for n in range(100):
        looks.start(f"{n}", 3)
        looks.look_ups.drop()
    last = looks.start("last", 1)
    await asyncio.sleep(0)
    assert looks.look_ups._worker._calls.qsize() <= 1  # type: ignore[attr-defined]
    looks.gate.set()
    await last
    assert len(looks.noted) <= 2, "what was dropped is not looked up"


async def test_a_bug_in_one_ends_no_other(looks: Looks) -> None:
    broken = looks.fake("broken", 2)
    broken.step = lambda: 1 // 0  # type: ignore[method-assign, assignment]
    first = looks.look_ups.start(broken)  # type: ignore[arg-type]
    second = looks.start("second", 2)
    looks.gate.set()
    with pytest.raises(ZeroDivisionError):
        await first
    assert await second == LookedUp({}, 1)


async def test_of_a_slot_only_the_newest_asks_is_looked_up(looks: Looks) -> None:
    asked = AskedLookUps(looks.look_ups)

    def ask(slot: int, epoch: int, number: int) -> asyncio.Task[LookedUp | None]:
        fake = looks.fake(f"{slot}.{epoch}.{number}", 4)
        return asyncio.create_task(asked.looked(slot, epoch, number, fake, 30.0))  # type: ignore[arg-type]

    old = [ask(1, epoch, 7) for epoch in range(1, 5)]
    other = ask(2, 1, 7)
    newest = [ask(1, 5, 1) for _ in range(3)]
    assert await asyncio.wait_for(asyncio.gather(*old), 30) == [None] * 4, "they are told at once"
    looks.gate.set()
    assert [(await each) is not None for each in (*newest, other)] == [True] * 4
    assert looks.noted.count("1.5.1") == 4, "those of one ask share it"
    assert not asked._of_slot


async def test_an_ask_waits_no_longer_than_it_may(looks: Looks) -> None:
    asked = AskedLookUps(looks.look_ups)
    fake = looks.fake("slow", 100)
    assert await asyncio.wait_for(asked.looked(1, 1, 1, fake, 0.01), 30) is None  # type: ignore[arg-type]
    looks.gate.set()
    await until_async(lambda: not looks.look_ups._running, "it is dropped")
    assert len(looks.noted) <= 1


async def test_after_the_end_nothing_is_looked_up() -> None:
    looks = Looks()
    looks.gate.set()
    await looks.look_ups.end()
    assert looks.start("late", 1).cancelled()
