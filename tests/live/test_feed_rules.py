"""Rules of delivery whose breach needs a certain moment: each by a schedule of its own, and each broken on purpose.

The simulation looks for the others (`tests/simulation/mutations_live.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest

from imray.core.replies import Refusal, Refused
from imray.engine.feeds import Feeds
from imray.rpc.methods import Method
from imray.rpc.publications import SubscribedMarks
from tests.simulation.mutations import ALL, broken
from tests.simulation.mutations_live import a_lower_epoch_is_believed
from tests.support.ears import Ear
from tests.support.published import Scripted, hear, mark, publish, published, scripted


async def _an_answer_of_a_lower_epoch_is_no_subscription(shards: Scripted, feeds: Feeds) -> None:
    ear = Ear()
    await hear(shards, feeds, ear, epoch=5)
    publish(feeds, mark(1), published("tea", [1]), epoch=6)  # a successor has begun, by the same connection
    await shards.answer(mark(), epoch=5)  # its predecessor answers all the same
    renewed = await shards.subscribing.next()
    assert shards.looked_anew == 1
    renewed.answer.set_result(SubscribedMarks(6, [mark(1)]))
    await asyncio.sleep(0)
    assert feeds.feeds["tea"].epoch == 6


_Scenario = Callable[[Scripted, Feeds], Awaitable[None]]
_RULES: list[tuple[_Scenario, Any]] = [
    (_an_answer_of_a_lower_epoch_is_no_subscription, a_lower_epoch_is_believed),
]


@pytest.mark.parametrize("breach", [False, True], ids=["kept", "broken"])
@pytest.mark.parametrize(("scenario", "rule"), _RULES, ids=[rule.__name__ for _, rule in _RULES])
async def test_a_rule_is_kept_and_its_breach_is_found(scenario: _Scenario, rule: Any, breach: bool) -> None:
    assert rule.__name__ in ALL
    with broken(rule.__name__) if breach else nullcontext():
        async with scripted() as (shards, feeds):
            with pytest.raises((AssertionError, TimeoutError)) if breach else nullcontext():
                await scenario(shards, feeds)


async def test_a_publication_of_a_lower_epoch_is_not_taken() -> None:
    async with scripted() as (shards, feeds):
        ear = Ear()
        await hear(shards, feeds, ear, epoch=5)
        publish(feeds, mark(1), published("tea", [1]), epoch=4)
        publish(feeds, mark(1), published("tea", [1]), epoch=5)
        assert ear.seqs == [1]


async def test_a_publication_that_cannot_be_read_has_all_asked_again() -> None:
    async with scripted() as (shards, feeds):
        await hear(shards, feeds, Ear())
        feeds.on_push(0, Method.PUBLISH, memoryview(bytearray(b"nothing that anybody can read")))
        await shards.subscribing.next()


@pytest.mark.parametrize(("conv_id", "after"), [("", 0), ("tea", -1), ("tea", 1 << 63), ("x" * 200, 0)])
async def test_what_cannot_be_subscribed_to_is_refused(conv_id: str, after: int) -> None:
    async with scripted() as (_, feeds):
        answer = await feeds.subscribe(Ear(), conv_id, after, False)
        assert isinstance(answer, Refusal)
        assert answer.why is Refused.INVALID
