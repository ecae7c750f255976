"""Turns at history, and how much one caller may ask for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from api.problems import ProblemError
from api.rates import Buckets, Rates
from api.turns import SMALL_BYTES, Accounts, Pulls
from imray.settings import Settings

_MB = 1024 * 1024
_WAIT_S = 5.0


class World:
    """Pulls by a clock of the test, and the order in which they had their turns."""

    def __init__(self, **settings: float) -> None:
        self.now_s = 0.0
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.pulls = Pulls(2, self.settings, lambda: self.now_s)
        self.order: list[str] = []
        self.at_once: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def pull(self, caller: str, size: int = 100, shard: int = 0, limit: int = 100) -> None:
        async with self.pulls.turn(shard, caller, limit):
            self.order.append(caller)
            for who in (caller, ""):
                self.at_once[who] += 1
                self.most[who] = max(self.most[who], self.at_once[who])
            await asyncio.sleep(0)
            for who in (caller, ""):
                self.at_once[who] -= 1
            if self.pulls.hold_page(caller, size):
                self.pulls.taken(caller, size)

    @asynccontextmanager
    async def busy(self, *callers: str) -> AsyncIterator[None]:
        """Every turn of shard 0 is taken by these."""
        async with AsyncExitStack() as held:
            for caller in callers:
                await held.enter_async_context(self.pulls.turn(0, caller, 1))
            yield


async def status_of(pull: object) -> int:
    with pytest.raises(ProblemError) as refused:
        await asyncio.wait_for(pull, _WAIT_S)  # type: ignore[arg-type]
    assert refused.value.retry_after_s is not None
    return refused.value.status


async def test_who_asks_for_little_waits_for_one_pull_of_the_others() -> None:
    world = World()
    hogs = [asyncio.create_task(world.pull("hog", 40 * _MB)) for _ in range(60)]
    await asyncio.sleep(0)
    await asyncio.wait_for(world.pull("ada"), _WAIT_S)
    assert world.order.index("ada") <= world.settings.history_turns_max
    await asyncio.wait_for(asyncio.gather(*hogs), _WAIT_S)
    assert world.most == {"": 3, "hog": 2, "ada": 1}


async def test_many_who_ask_for_much_do_not_hold_up_one_who_asks_for_little() -> None:
    world = World()
    for i in range(80):
        world.pulls.hold_page(f"hog {i}", 40 * _MB)
        world.pulls.taken(f"hog {i}", 40 * _MB)
    hogs = [asyncio.create_task(world.pull(f"hog {i % 80}", 40 * _MB)) for i in range(400)]
    await asyncio.sleep(0)
    for _ in range(5):
        before = len(world.order)
        await asyncio.wait_for(world.pull("ada"), _WAIT_S)
        assert world.order[before:].index("ada") <= 2 * world.settings.history_turns_max
    await asyncio.wait_for(asyncio.gather(*hogs), _WAIT_S)


async def test_newcomers_who_ask_for_much_wait_for_those_who_ask_for_little() -> None:
    world = World()
    world.pulls.hold_page("ada", 100)
    hogs = [asyncio.create_task(world.pull(f"hog {i}", 40 * _MB, limit=10_000)) for i in range(80)]
    await asyncio.sleep(0)
    await asyncio.wait_for(world.pull("ada"), _WAIT_S)
    assert world.order.index("ada") <= 2 * world.settings.history_turns_max
    await asyncio.wait_for(asyncio.gather(*hogs), _WAIT_S)


async def test_equal_callers_take_turns() -> None:
    world = World(history_turns_max=1)
    async with world.busy("zoe"):
        pulls = [asyncio.create_task(world.pull(caller)) for caller in "aaabbbccc"]
        await asyncio.sleep(0)
    await asyncio.wait_for(asyncio.gather(*pulls), _WAIT_S)
    assert "".join(world.order) == "abcabcabc"


async def test_a_shard_that_does_not_answer_holds_up_its_own_pulls_only() -> None:
    world = World()
    async with world.busy("a", "b", "c"):
        await asyncio.wait_for(world.pull("ada", shard=1), _WAIT_S)
    assert world.order == ["ada"]


async def test_waiting_is_bounded_by_caller_and_in_all() -> None:
    world = World(history_waiting_per_caller_max=2, history_waiting_max=3)
    async with world.busy("a", "b", "c"):
        waiting = [asyncio.create_task(world.pull(caller)) for caller in ("hog", "hog", "ada")]
        await asyncio.sleep(0)
        assert await status_of(world.pull("hog")) == 429
        assert await status_of(world.pull("bob")) == 503
    await asyncio.wait_for(asyncio.gather(*waiting), _WAIT_S)
    await asyncio.wait_for(world.pull("bob"), _WAIT_S)


async def test_nobody_waits_past_the_deadline_and_no_turn_is_lost() -> None:
    world = World(history_wait_s=0.01)
    async with world.busy("a", "b", "c"):
        assert await status_of(world.pull("ada")) == 503
        gone = asyncio.create_task(world.pull("bob"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    await asyncio.wait_for(asyncio.gather(*(world.pull(f"c{i}") for i in range(9))), _WAIT_S)
    assert sorted(world.order) == [f"c{i}" for i in range(9)]


async def test_a_turn_that_comes_as_its_request_ends_goes_to_the_next() -> None:
    world = World(history_turns_max=1)
    async with world.busy("a"):
        first = asyncio.create_task(world.pull("ada"))
        second = asyncio.create_task(world.pull("bob"))
        await asyncio.sleep(0)
    first.cancel()  # it has its turn, and has not run since
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.wait_for(second, _WAIT_S)
    assert world.order == ["bob"]


async def test_pages_on_their_way_are_bounded_in_all_and_by_caller() -> None:
    world = World(history_pages_bytes_max=100 * _MB, history_wait_s=0.01)
    pulls = world.pulls
    pulls.hold_page("hog", 30 * _MB)
    assert await status_of(world.pull("hog")) == 503  # it has its share: it takes that first
    await world.pull("ada")
    for i in range(2):
        pulls.hold_page(f"hog {i}", 30 * _MB)
    with pytest.raises(ProblemError) as refused:
        pulls.hold_page("hog 3", 30 * _MB)
    assert refused.value.status == 503
    assert pulls.bytes == 90 * _MB
    waits = asyncio.create_task(World.pull(world, "hog"))
    await asyncio.sleep(0)
    pulls.taken("hog", 30 * _MB)
    await asyncio.wait_for(waits, _WAIT_S)
    pulls.hold_page("hog 3", 30 * _MB)
    for i in (0, 1, 3):
        pulls.taken(f"hog {i}", 30 * _MB)
    assert (pulls.bytes, pulls._pages) == (0, {})


def test_what_one_had_is_forgotten_in_time_and_callers_are_bounded() -> None:
    accounts = Accounts(2)
    accounts.charge("a", 800, 0)
    assert [round(accounts.had("a", t)) for t in (0, 10, 20)] == [800, 400, 200]
    accounts.charge("a", 0, 10)
    accounts.charge("b", 1, 10)
    accounts.charge("c", 1, 10)
    assert (len(accounts), accounts.had("a", 10)) == (2, 0)


def test_small_pages_always_pass() -> None:
    world = World(history_pages_bytes_max=_MB)
    assert world.pulls.hold_page("hog", _MB)
    assert not world.pulls.hold_page("ada", SMALL_BYTES)
    assert world.pulls.bytes == _MB


def test_a_bucket_gives_its_rate_on_average_and_its_burst_at_once() -> None:
    buckets = Buckets(per_s=10, burst=20, callers_max=100)
    assert [buckets.take("ada", 1, 0) for _ in range(20)] == [0.0] * 20
    assert buckets.take("ada", 1, 0) == pytest.approx(0.1)
    assert buckets.take("bob", 1, 0) == 0
    assert buckets.take("ada", 1, 0.1) == 0
    taken = sum(buckets.take("ada", 1, 0.1 + i / 100) == 0 for i in range(1000))
    assert 98 <= taken <= 102
    assert [buckets.take("ada", 1, 1000) for _ in range(20)] == [0.0] * 20
    assert buckets.take("ada", 1, 1000) > 0


def test_more_than_a_bucket_holds_passes_when_it_is_full_and_is_paid_for_afterwards() -> None:
    buckets = Buckets(per_s=10, burst=20, callers_max=100)
    assert buckets.take("ada", 1000, 0) == 0
    assert buckets.take("ada", 1, 0) == pytest.approx(98.1)
    assert buckets.take("ada", 1, 98.2) == 0
    assert buckets.take("ada", 1000, 98.2) > 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    buckets = Buckets(per_s=10, burst=1, callers_max=100)
    assert buckets.take("ada", 1, 100) == 0
    assert buckets.take("ada", 1, 50) > 0


def test_callers_remembered_are_bounded() -> None:
    buckets = Buckets(per_s=1, burst=1, callers_max=50)
    for i in range(1000):
        buckets.take(f"c{i}", 1, i / 1000)
    assert len(buckets) == 50
    assert buckets.take("c999", 1, 1) > 0


def test_limits_are_off_unless_they_are_set_and_services_have_none() -> None:
    off = Rates(Settings())
    for _ in range(10_000):
        off.request("ada", False)
        off.messages("ada", False, 10_000)
    on = Rates(Settings(caller_requests_per_s=1, caller_messages_per_s=5), lambda: 0.0)
    for _ in range(100):
        on.request("bot", True)
        on.messages("bot", True, 100)
    for _ in range(2):
        on.request("ada", False)
    with pytest.raises(ProblemError) as refused:
        on.request("ada", False)
    assert (refused.value.status, refused.value.retry_after_s) == (429, pytest.approx(1.0))
    on.messages("ada", False, 10)
    with pytest.raises(ProblemError, match="messages"):
        on.messages("ada", False, 1)
