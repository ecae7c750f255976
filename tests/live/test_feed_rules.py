"""Rules of delivery whose breach needs a certain moment: each by a schedule of its own, and each broken on purpose.

The simulation looks for the others (`tests/simulation/mutations_live.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import pytest

from imray.core.pages import Page, PageAsk
from imray.core.replies import Located, Refusal, Refused
from imray.engine.feeds import Feeds
from imray.engine.listening import Subscribed
from imray.engine.rights import Rights
from imray.rpc.methods import Method
from imray.rpc.publications import (
    Mark,
    PublicationHead,
    SignalArgs,
    SubscribeArgs,
    SubscribedMarks,
    encode_publication,
    stream_of,
)
from imray.settings import Settings
from tests.simulation.mutations import ALL, broken
from tests.simulation.mutations_live import a_lower_epoch_is_believed
from tests.support.ears import Ear
from tests.support.published import published

_SOON_S = 2.0


class Scripted:
    """Shards whose answers come when a test says so: what no real one can be made to do."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[SubscribedMarks]] = asyncio.Queue()
        self.looked_anew = 0

    def shard_of(self, conv_id: str) -> int:
        return 0

    async def subscribe(self, log: int, args: SubscribeArgs) -> SubscribedMarks | Refusal:
        answer: asyncio.Future[SubscribedMarks] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        return await answer

    def doubt(self, log: int) -> None:
        """Nobody else is there."""

    def look_anew(self, log: int) -> None:
        self.looked_anew += 1

    async def history(self, ask: PageAsk) -> tuple[Located, Page[pa.Table]] | Refusal:
        return Refusal(Refused.UNAVAILABLE, "nobody reads")

    async def signal(self, args: SignalArgs) -> Refusal | None:
        return None

    async def rights(self, conv_id: str, users: list[str]) -> Rights | Refusal:
        return Refusal(Refused.UNAVAILABLE, "nobody knows")

    async def next_ask(self) -> asyncio.Future[SubscribedMarks]:
        """The next subscription that waits for its answer."""
        async with asyncio.timeout(_SOON_S):
            return await self.asked.get()


def _publish(feeds: Feeds, epoch: int, seq: int) -> None:
    head = PublicationHead(epoch, [Mark("tea", seq, 0, -1)])
    content = b"".join(encode_publication(head, stream_of(published("tea", [seq]))))
    feeds.on_push(0, Method.PUBLISH, memoryview(bytearray(content)))


def _answer(epoch: int, stable: int) -> SubscribedMarks:
    return SubscribedMarks(epoch, [Mark("tea", stable, 0, -1)])


async def _an_answer_of_a_lower_epoch_is_no_subscription(shards: Scripted, feeds: Feeds) -> None:
    ear = Ear()
    subscribing = asyncio.create_task(feeds.subscribe(ear, "tea", 0, False))
    first = await shards.next_ask()
    first.set_result(_answer(5, 0))
    assert isinstance(await subscribing, Subscribed)
    feeds.start(ear, "tea")
    _publish(feeds, 6, 1)  # a successor has begun, by the same connection
    again = await shards.next_ask()
    again.set_result(_answer(5, 0))  # its predecessor answers all the same
    renewed = await shards.next_ask()
    assert shards.looked_anew == 1
    renewed.set_result(_answer(6, 1))
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
    shards = Scripted()
    feeds = Feeds(shards, Settings())
    with broken(rule.__name__) if breach else nullcontext():
        try:
            if breach:
                with pytest.raises((AssertionError, TimeoutError)):
                    await scenario(shards, feeds)
            else:
                await scenario(shards, feeds)
        finally:
            feeds.close()


async def test_a_publication_of_a_lower_epoch_is_not_taken() -> None:
    shards = Scripted()
    feeds = Feeds(shards, Settings())
    ear = Ear()
    subscribing = asyncio.create_task(feeds.subscribe(ear, "tea", 0, False))
    (await shards.next_ask()).set_result(_answer(5, 0))
    await subscribing
    feeds.start(ear, "tea")
    _publish(feeds, 4, 1)
    _publish(feeds, 5, 1)
    assert ear.seqs == [1]
    feeds.close()


async def test_a_publication_that_cannot_be_read_has_all_asked_again() -> None:
    shards = Scripted()
    feeds = Feeds(shards, Settings())
    ear = Ear()
    subscribing = asyncio.create_task(feeds.subscribe(ear, "tea", 0, False))
    (await shards.next_ask()).set_result(_answer(5, 0))
    await subscribing
    feeds.on_push(0, Method.PUBLISH, memoryview(bytearray(b"nothing that anybody can read")))
    await shards.next_ask()
    feeds.close()


@pytest.mark.parametrize(("conv_id", "after"), [("", 0), ("tea", -1), ("tea", 1 << 63), ("x" * 200, 0)])
async def test_what_cannot_be_subscribed_to_is_refused(conv_id: str, after: int) -> None:
    feeds = Feeds(Scripted(), Settings())
    answer = await feeds.subscribe(Ear(), conv_id, after, False)
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.INVALID
    feeds.close()
