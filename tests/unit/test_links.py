"""A gateway's retries: an unknown outcome stays unknown, and no older incarnation is believed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pyarrow as pa
import pytest

from api.problems import STATUS_OF_REFUSAL, refused
from imray.core.replies import Appended, Located, Refusal, Refused
from imray.engine.clients import ShardClient
from imray.engine.sends import Send, record_batch
from imray.log.schema import to_ipc
from tests.support.fake_writers import LOST, SETTINGS, TRY_S, FakeDirectory, appended, fake_directory, located, refusal

SHARD = 0
LAST = 10


@pytest.fixture
async def directory(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeDirectory]:
    async with fake_directory(monkeypatch) as made:
        yield made


@pytest.fixture
async def client(directory: FakeDirectory) -> AsyncIterator[ShardClient]:
    made = ShardClient(directory, SHARD, SETTINGS)
    yield made
    made.close()


def batch() -> pa.Buffer:
    return to_ipc(record_batch([Send("c", os.urandom(16), "ada", None, None, None, b"x")]))


async def append(client: ShardClient, directory: FakeDirectory, tries: float = LAST) -> Appended | Refusal:
    return await client.append(batch(), directory.clock.now_s + tries * TRY_S)


async def locate(client: ShardClient, directory: FakeDirectory) -> Located | Refusal:
    return await client.locate("c", 1, 0, directory.clock.now_s + (LAST - 0.5) * TRY_S)


async def test_after_a_try_without_an_answer_a_busy_shard_is_asked_again(
    directory: FakeDirectory, client: ShardClient
) -> None:
    busy = refusal(Refused.BUSY)
    shard = directory.writer(SHARD, LOST, busy, busy, appended(1))
    assert isinstance(await append(client, directory), Appended)
    assert len(shard.ids()) == 4
    assert len({tuple(ids) for ids in shard.ids()}) == 1


async def test_busy_until_the_deadline_after_an_unknown_try_ends_as_unknown(
    directory: FakeDirectory, client: ShardClient
) -> None:
    shard = directory.writer(SHARD, LOST, refusal(Refused.BUSY))
    answer = await append(client, directory, 3.5)
    assert isinstance(answer, Refusal)
    assert (answer.why, answer.maybe_written) == (Refused.UNAVAILABLE, True)
    assert "said busy" in answer.detail
    assert len(shard.batches) == 4


@pytest.mark.parametrize("why", [Refused.BUSY, Refused.INVALID, Refused.MOVED, Refused.CORRUPT])
async def test_a_refusal_of_the_first_try_is_passed_on_as_it_is(
    directory: FakeDirectory, client: ShardClient, why: Refused
) -> None:
    shard = directory.writer(SHARD, refusal(why))
    assert await append(client, directory) == refusal(why)
    assert len(shard.batches) == 1


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (Refused.INVALID, Refused.UNAVAILABLE),
        (Refused.MOVED, Refused.MOVED),
        (Refused.CORRUPT, Refused.CORRUPT),
    ],
)
async def test_after_an_unknown_try_no_refusal_says_that_nothing_was_written(
    directory: FakeDirectory, client: ShardClient, why: Refused, told: Refused
) -> None:
    shard = directory.writer(SHARD, LOST, refusal(why))
    answer = await append(client, directory)
    assert isinstance(answer, Refusal)
    assert (answer.why, answer.maybe_written) == (told, True)
    assert len(shard.batches) == 2


async def test_a_refused_unknown_outcome_counts_as_the_lost_answer_does(
    directory: FakeDirectory, client: ShardClient
) -> None:
    directory.writer(SHARD, refusal(Refused.UNAVAILABLE), refusal(Refused.BUSY))
    answer = await append(client, directory)
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE


@pytest.mark.parametrize("why", list(STATUS_OF_REFUSAL))
def test_the_http_answer_after_an_unknown_try_does_not_say_that_nothing_was_written(why: Refused) -> None:
    assert b"nothing was written" not in bytes(refused(refusal(why).after_unknown()).response().body)


async def test_an_older_incarnation_is_not_believed_where_numbers_are(
    directory: FakeDirectory, client: ShardClient
) -> None:
    new = directory.writer(SHARD, located(2, 20), LOST, located(2, 21))
    old = directory.writer(SHARD, located(1, 10))
    directory.add(SHARD, new)
    assert await locate(client, directory) == located(2, 20)
    # the connection breaks, and the directory leads to the old one for a moment
    assert await locate(client, directory) == located(2, 21)
    assert (old.located, new.located) == (1, 3)


async def test_an_older_incarnation_alone_is_as_no_answer(directory: FakeDirectory, client: ShardClient) -> None:
    old = directory.writer(SHARD, located(2, 20), located(1, 10))
    assert await locate(client, directory) == located(2, 20)
    answer = await locate(client, directory)
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE
    assert "an older incarnation" in answer.detail
    assert old.located == 1 + LAST


async def test_an_ack_tells_of_the_newer_incarnation_too(directory: FakeDirectory, client: ShardClient) -> None:
    old = directory.writer(SHARD, appended(1, epoch=3), located(2, 10))
    directory.writer(SHARD, located(3, 11))
    assert isinstance(await append(client, directory), Appended)
    assert await locate(client, directory) == located(3, 11)
    assert old.located == 1


async def test_an_ack_of_an_older_incarnation_is_used_and_changes_nothing(
    directory: FakeDirectory, client: ShardClient
) -> None:
    old = directory.writer(SHARD, located(5, 10), appended(1, epoch=4), located(4, 9), located(5, 11))
    assert await locate(client, directory) == located(5, 10)
    answer = await append(client, directory)
    assert isinstance(answer, Appended)
    assert answer.epoch == 4
    assert await locate(client, directory) == located(5, 11)
    assert old.located == 3
