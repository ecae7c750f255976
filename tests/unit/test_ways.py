"""The way of a send over a partition and, where that gave no answer, its home shard: what the sender is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from imray.core.replies import Appended, Refusal, Refused
from imray.core.routing import log_of
from imray.engine.engine import Engine
from imray.engine.sends import Send, record_batch
from imray.log.manifest import Manifest
from tests.support.fake_writers import LOST, SETTINGS, FakeDirectory, appended, fake_directory, refusal

HOME = 0
PARTITION = log_of(HOME, 1)
HOT = appended(1, hot={"hot": 1})
BUSY = refusal(Refused.BUSY)
MOVED = refusal(Refused.MOVED)
INVALID = refusal(Refused.INVALID)
OLD_IDS = refusal(Refused.OLD_IDS)
CORRUPT = refusal(Refused.CORRUPT)

Sending = Callable[[Engine, Send], Awaitable[Appended | Refusal]]


@pytest.fixture
async def directory(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeDirectory]:
    async with fake_directory(monkeypatch) as made:
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


async def learned(directory: FakeDirectory, **settings: int) -> Engine:
    """A gateway that has heard from the home shard that "hot" is hot."""
    engine = Engine(directory, Manifest("test", 1, 1), replace(SETTINGS, **settings))
    assert isinstance(await one(engine, message()), Appended)
    return engine


@both
@pytest.mark.parametrize("partition_says", [[LOST], [LOST, BUSY], [LOST, MOVED], [LOST, INVALID], [LOST, CORRUPT]])
@pytest.mark.parametrize("home_says", [BUSY, INVALID])
async def test_what_a_partition_may_have_written_stays_unknown_when_the_home_shard_refuses(
    directory: FakeDirectory, sending: Sending, partition_says: list[object], home_says: Refusal
) -> None:
    home = directory.writer(HOME, HOT, home_says)
    partition = directory.writer(PARTITION, *partition_says)
    answer = await sending(await learned(directory), message())
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE
    assert partition.ids()[0] == home.ids()[1]


@both
@pytest.mark.parametrize("partition_says", [[LOST], [LOST, MOVED]])
async def test_it_stays_unknown_when_the_gateway_has_no_room_for_the_home_shard(
    directory: FakeDirectory, sending: Sending, partition_says: list[object]
) -> None:
    home = directory.writer(HOME, HOT)
    partition = directory.writer(PARTITION, *partition_says)
    engine = await learned(directory, gateway_queue_rows_max=1)
    home.open.clear()
    first = asyncio.create_task(one(engine, message("cold")))
    answer = await sending(engine, message())
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE
    assert "the gateway's queue" in answer.detail
    assert partition.batches
    home.open.set()
    assert isinstance(await first, Appended)


@both
async def test_nothing_was_written_is_said_where_it_is_known(directory: FakeDirectory, sending: Sending) -> None:
    directory.writer(HOME, HOT, BUSY)
    directory.writer(PARTITION, MOVED)
    assert await sending(await learned(directory), message()) == BUSY


@both
@pytest.mark.parametrize("partition_says", [BUSY, INVALID])
async def test_a_partitions_first_refusal_is_the_answer(
    directory: FakeDirectory, sending: Sending, partition_says: Refusal
) -> None:
    home = directory.writer(HOME, HOT)
    directory.writer(PARTITION, partition_says)
    assert await sending(await learned(directory), message()) == partition_says
    assert len(home.batches) == 1


@both
async def test_the_home_shard_takes_what_a_partition_left_open(directory: FakeDirectory, sending: Sending) -> None:
    home = directory.writer(HOME, HOT)
    partition = directory.writer(PARTITION, LOST)
    assert isinstance(await sending(await learned(directory), message()), Appended)
    assert partition.ids()[0] == home.ids()[1]


@both
async def test_a_request_of_old_ids_goes_to_the_home_shard_and_the_next_one_to_the_partition(
    directory: FakeDirectory, sending: Sending
) -> None:
    home = directory.writer(HOME, HOT, HOT)
    partition = directory.writer(PARTITION, OLD_IDS, HOT)
    engine = await learned(directory)
    assert isinstance(await sending(engine, message()), Appended)
    assert partition.ids() == home.ids()[1:]
    assert isinstance(await sending(engine, message()), Appended)
    assert (len(partition.batches), len(home.batches)) == (2, 2)


@both
async def test_nothing_was_written_of_old_ids_that_the_home_shard_has_no_room_for(
    directory: FakeDirectory, sending: Sending
) -> None:
    directory.writer(HOME, HOT, BUSY)
    directory.writer(PARTITION, OLD_IDS)
    assert await sending(await learned(directory), message()) == BUSY


@both
async def test_a_corrupt_home_shard_is_told_after_an_unknown_try_but_claims_nothing(
    directory: FakeDirectory, sending: Sending
) -> None:
    directory.writer(HOME, HOT, CORRUPT)
    directory.writer(PARTITION, LOST)
    answer = await sending(await learned(directory), message())
    assert isinstance(answer, Refusal)
    assert (answer.why, answer.maybe_written) == (Refused.CORRUPT, True)


@both
async def test_a_partition_that_refuses_to_serve_is_left_out_for_a_while(
    directory: FakeDirectory, sending: Sending
) -> None:
    home = directory.writer(HOME, HOT)
    partition = directory.writer(PARTITION, CORRUPT, HOT)
    engine = await learned(directory)
    assert isinstance(await sending(engine, message()), Appended)
    assert partition.ids() == home.ids()[1:]
    assert isinstance(await sending(engine, message()), Appended)
    assert (len(partition.batches), len(home.batches)) == (1, 3)
    directory.clock.now_s += SETTINGS.partition_pause_s
    assert isinstance(await sending(engine, message()), Appended)
    assert (len(partition.batches), len(home.batches)) == (2, 3)


@both
async def test_a_partition_that_refuses_to_serve_does_not_say_that_nothing_was_written(
    directory: FakeDirectory, sending: Sending
) -> None:
    directory.writer(HOME, HOT, BUSY)
    directory.writer(PARTITION, CORRUPT)
    answer = await sending(await learned(directory), message())
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE
