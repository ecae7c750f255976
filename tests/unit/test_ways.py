"""The way of a send over a partition and, where that gave no answer, its home shard: what the sender is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from fake_actors import LOST, SETTINGS, FakeRay, appended, fake_ray, refusal

from imray.core.replies import Appended, Refusal, Refused
from imray.engine.batcher import Send, record_batch
from imray.engine.engine import Engine
from imray.log.manifest import Manifest

HOME = "shard-0000"
TOPIC = "topic-0000-01"
HOT = appended(1, hot={"hot": 1})
BUSY = refusal(Refused.BUSY)
MOVED = refusal(Refused.MOVED)
INVALID = refusal(Refused.INVALID)
CORRUPT = refusal(Refused.CORRUPT)

Sending = Callable[[Engine, Send], Awaitable[Appended | Refusal]]


@pytest.fixture
async def ray(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeRay]:
    with fake_ray(monkeypatch) as made:
        yield made


async def one(engine: Engine, send: Send) -> Appended | Refusal:
    return (await engine.send(send)).answer


async def many(engine: Engine, send: Send) -> Appended | Refusal:
    batch = record_batch([send])
    log = int(engine.ways(batch)[0])
    return (await engine.send_batches({log: batch}))[log]


both = pytest.mark.parametrize("sending", [one, many])


def message(conv_id: str = "hot") -> Send:
    return Send(conv_id, os.urandom(16), "ada", None, None, None, b"x")


async def learned(**settings: int) -> Engine:
    """A gateway that has heard from the home shard that "hot" is hot."""
    engine = Engine("test", Manifest("test", 1, 1), replace(SETTINGS, **settings))
    assert isinstance(await one(engine, message()), Appended)
    return engine


@both
@pytest.mark.parametrize("partition_says", [[LOST], [LOST, BUSY], [LOST, MOVED], [LOST, INVALID], [LOST, CORRUPT]])
@pytest.mark.parametrize("home_says", [BUSY, INVALID])
async def test_what_a_partition_may_have_written_stays_unknown_when_the_home_shard_refuses(
    ray: FakeRay, sending: Sending, partition_says: list[object], home_says: Refusal
) -> None:
    home = ray.actor(HOME, HOT, home_says)
    topic = ray.actor(TOPIC, *partition_says)
    answer = await sending(await learned(), message())
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE
    assert topic.ids()[0] == home.ids()[1]


@both
@pytest.mark.parametrize("partition_says", [[LOST], [LOST, MOVED]])
async def test_it_stays_unknown_when_the_gateway_has_no_room_for_the_home_shard(
    ray: FakeRay, sending: Sending, partition_says: list[object]
) -> None:
    home = ray.actor(HOME, HOT)
    topic = ray.actor(TOPIC, *partition_says)
    engine = await learned(gateway_queue_rows_max=1)
    home.open.clear()
    first = asyncio.create_task(one(engine, message("cold")))
    answer = await sending(engine, message())
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE
    assert "the gateway's queue" in answer.detail
    assert topic.batches
    home.open.set()
    assert isinstance(await first, Appended)


@both
async def test_nothing_was_written_is_said_where_it_is_known(ray: FakeRay, sending: Sending) -> None:
    ray.actor(HOME, HOT, BUSY)
    ray.actor(TOPIC, MOVED)
    assert await sending(await learned(), message()) == BUSY


@both
@pytest.mark.parametrize("partition_says", [BUSY, INVALID])
async def test_a_partitions_first_refusal_is_the_answer(
    ray: FakeRay, sending: Sending, partition_says: Refusal
) -> None:
    home = ray.actor(HOME, HOT)
    ray.actor(TOPIC, partition_says)
    assert await sending(await learned(), message()) == partition_says
    assert len(home.batches) == 1


@both
async def test_the_home_shard_takes_what_a_partition_left_open(ray: FakeRay, sending: Sending) -> None:
    home = ray.actor(HOME, HOT)
    topic = ray.actor(TOPIC, LOST)
    assert isinstance(await sending(await learned(), message()), Appended)
    assert topic.ids()[0] == home.ids()[1]


@both
async def test_a_corrupt_home_shard_is_told_after_an_unknown_try_but_claims_nothing(
    ray: FakeRay, sending: Sending
) -> None:
    ray.actor(HOME, HOT, CORRUPT)
    ray.actor(TOPIC, LOST)
    answer = await sending(await learned(), message())
    assert isinstance(answer, Refusal)
    assert (answer.why, answer.maybe_written) == (Refused.CORRUPT, True)


@both
async def test_a_partition_that_refuses_to_serve_is_left_out_for_a_while(ray: FakeRay, sending: Sending) -> None:
    home = ray.actor(HOME, HOT)
    topic = ray.actor(TOPIC, CORRUPT, HOT)
    engine = await learned()
    assert isinstance(await sending(engine, message()), Appended)
    assert topic.ids() == home.ids()[1:]
    assert isinstance(await sending(engine, message()), Appended)
    assert (len(topic.batches), len(home.batches)) == (1, 3)
    ray.clock.now_s += SETTINGS.partition_pause_s
    assert isinstance(await sending(engine, message()), Appended)
    assert (len(topic.batches), len(home.batches)) == (2, 3)


@both
async def test_a_partition_that_refuses_to_serve_does_not_say_that_nothing_was_written(
    ray: FakeRay, sending: Sending
) -> None:
    ray.actor(HOME, HOT, BUSY)
    ray.actor(TOPIC, CORRUPT)
    answer = await sending(await learned(), message())
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE
