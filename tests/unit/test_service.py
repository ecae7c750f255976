"""Every method of a writer over a real connection: what is called arrives whole, and so does what it answers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imray.core.columns import Rows
from imray.core.grants import Declined, DeclineReason, Granted, Report
from imray.core.replies import Refusal, Refused
from imray.core.routing import log_of
from imray.core.status import HotFigures, HotGroupStatus, LogFigures, PartitionStatus, ServingState, ShardStatus
from imray.engine.clients import PartitionClient, ShardClient
from imray.rpc import messages
from imray.rpc.channel import Channel
from imray.rpc.endpoint import Endpoint, Parts
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer
from imray.shard.home_link import RpcHomeLink
from imray.shard.service import Handlers, partition_handlers, shard_handlers
from tests.support.fake_writers import SETTINGS, FakeDirectory, located, refusal

SHARD = 2
SLOT = 1
REPORTS = [Report(7, 3, 1_700_000_000_000, b"d" * 32), Report(8, 4, 1_700_000_000_001, b"e" * 32)]
ROWS = Rows(
    np.frombuffer(b"room", np.uint8),
    np.array([0, 4], np.int32),
    np.zeros(2, np.int32),
    np.array([[1, 2], [3, 4]], np.uint64),
    np.array([5, 6], np.uint64),
    np.array([7, 8], np.uint64),
)
GROUP = HotGroupStatus("room", 2, 9, 7, 2, 1, 0.5, 1, 10, 0, False)
STATUS = ShardStatus(
    SHARD, ServingState.SERVING, "", 5, ["a note"], LogFigures(1, 2, 3, 4, 5, 6, 7), HotFigures([GROUP], 3, 0.25)
)
PARTITION = PartitionStatus(SHARD, SLOT, ServingState.UNWRITABLE, "the disk is full", 4)


class Writer:
    """Answers as a test says, and keeps what it was called with."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.answer_now: Any = None
        self.called: list[tuple[Any, ...]] = []
        self.waits = asyncio.Event()
        self.waits.set()

    def ask_now(self, *_args: Any) -> Any:
        return self.answer_now

    def report_now(self, *_args: Any) -> bool:
        return bool(self.answer_now)

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any) -> Any:
            self.called.append((method, *args))
            await self.waits.wait()
            return self.answer

        return call


class Served:
    """A process with a writer in it."""

    def __init__(self, log: int, handlers: Handlers) -> None:
        self._server = RpcServer(1_000_000)
        self._server.serve(log, handlers)
        self._endpoint: Endpoint | None = None

    async def endpoint(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = await self._server.open("127.0.0.1")
        return self._endpoint

    async def close(self) -> None:
        await self._server.close()


@pytest.fixture
async def writer() -> Writer:
    return Writer()


@pytest.fixture
async def directory(writer: Writer) -> AsyncIterator[FakeDirectory]:
    made = FakeDirectory()
    made.add(SHARD, Served(SHARD, shard_handlers(writer)))  # type: ignore[arg-type]
    partition = log_of(SHARD, SLOT)
    made.add(partition, Served(partition, partition_handlers(writer)))  # type: ignore[arg-type]
    yield made
    await made.close()


@pytest.fixture
async def client(directory: FakeDirectory) -> AsyncIterator[ShardClient]:
    made = ShardClient(directory, SHARD, SETTINGS)
    yield made
    made.close()


@pytest.fixture
async def link(directory: FakeDirectory) -> AsyncIterator[RpcHomeLink]:
    made = RpcHomeLink(directory, SHARD, replace(SETTINGS, partition_deadline_s=0.1))
    yield made
    made.close()


def soon() -> float:
    return time.monotonic() + 5


async def test_locate(writer: Writer, client: ShardClient) -> None:
    writer.answer = located(3, 20)
    assert await client.locate("räum", 5, 2**63 - 1, soon()) == located(3, 20)
    assert writer.called == [("locate", "räum", 5, 2**63 - 1)]


@pytest.mark.parametrize(
    ("method", "content"),
    [
        (Method.LOCATE, messages.encode_struct(("room", 2**63, 1))),
        (Method.LOCATE, [b"nonsense"]),
        (Method.MEND, [b"nonsense"]),
        (Method.MAKE_HOT, messages.encode_struct(("", 2))),
    ],
)
async def test_a_call_that_says_nothing_sensible_is_refused_for_good(
    writer: Writer, directory: FakeDirectory, method: Method, content: Parts
) -> None:
    """Not "unknown", which is tried again for as long as the caller has."""
    channel = Channel(directory, SHARD, "shard")
    answer = await channel.call(method, content, 10)
    decode = messages.decode_locate_answer if method is Method.LOCATE else messages.decode_done
    refused = decode(answer)
    assert isinstance(refused, Refusal)
    assert refused.why is Refused.INVALID
    assert writer.called == []
    channel.close()


@pytest.mark.parametrize("answer", [None, refusal(Refused.INVALID)])
async def test_make_hot(writer: Writer, client: ShardClient, answer: object) -> None:
    writer.answer = answer
    assert await client.make_hot("room", 4, soon()) == answer
    assert writer.called == [("make_hot", "room", 4)]


async def test_mend(writer: Writer, client: ShardClient) -> None:
    await client.mend("sealed/shard=0002/x.ids.arrow")
    assert writer.called == [("mend", "sealed/shard=0002/x.ids.arrow")]


async def test_status_names_the_process(writer: Writer, client: ShardClient) -> None:
    writer.answer = STATUS
    found = await client.status(5)
    assert found.pid == os.getpid()
    shown = found.to_json()
    assert (shown["state"], shown["segment"], shown["hot"][0]["topics"]) == ("serving", 2, 2)  # type: ignore[index]


async def test_status_of_a_partition(writer: Writer, directory: FakeDirectory) -> None:
    writer.answer = PARTITION
    client = PartitionClient(directory, SHARD, SLOT, SETTINGS)
    found = await client.status(5)
    assert (found.state, found.detail, found.pid) == (ServingState.UNWRITABLE, "the disk is full", os.getpid())
    client.close()


async def test_who_gives_no_answer_is_unreachable(writer: Writer, client: ShardClient) -> None:
    writer.waits.clear()
    found = await client.status(0.1)
    assert (found.state, found.log, found.pid) == (ServingState.UNREACHABLE, None, None)
    assert "no answer" in found.detail
    writer.waits.set()


@pytest.mark.parametrize("answer", [True, False, refusal(Refused.UNAVAILABLE)])
async def test_register(writer: Writer, link: RpcHomeLink, answer: object) -> None:
    writer.answer = answer
    assert await link.register(SLOT, 5, 12) == answer
    assert writer.called == [("register", SLOT, 5, 12)]


async def test_report(writer: Writer, link: RpcHomeLink) -> None:
    assert await link.report(SLOT, 5, REPORTS) is None
    assert writer.called == [("report", SLOT, 5, REPORTS)]


@pytest.mark.parametrize(
    "answer",
    [
        Granted(3, 9, 2, 41, None, 40, {"room": 2}),
        Declined(DeclineReason.MOVED),
        refusal(Refused.UNAVAILABLE),
    ],
)
async def test_ask(writer: Writer, link: RpcHomeLink, answer: object) -> None:
    writer.answer = answer
    assert await link.ask(SLOT, 5, 17, ROWS, REPORTS) == answer
    ((method, slot, epoch, ask, rows, reports),) = writer.called
    assert (method, slot, epoch, ask, reports) == ("ask", SLOT, 5, 17, REPORTS)
    for column in ("names_data", "names_offsets", "conv", "ids", "fps", "payload"):
        np.testing.assert_array_equal(getattr(rows, column), getattr(ROWS, column))


async def test_which_rows_an_ask_is_declined_for(writer: Writer, link: RpcHomeLink) -> None:
    writer.answer = Declined(DeclineReason.OLD_IDS, np.array([0, 1]))
    answer = await link.ask(SLOT, 5, 17, ROWS, REPORTS)
    assert isinstance(answer, Declined)
    assert answer.why is DeclineReason.OLD_IDS
    assert answer.rows is not None
    assert answer.rows.tolist() == [0, 1]


async def test_an_ask_that_can_be_answered_at_once_goes_no_further(writer: Writer, link: RpcHomeLink) -> None:
    writer.answer_now = Declined(DeclineReason.BUSY)
    assert await link.ask(SLOT, 5, 17, ROWS, REPORTS) == Declined(DeclineReason.BUSY)
    assert not writer.called


async def test_an_ask_without_an_answer_ends_by_its_own_time_out_as_unknown(writer: Writer, link: RpcHomeLink) -> None:
    writer.waits.clear()
    answer = await link.ask(SLOT, 5, 17, ROWS, [])
    assert getattr(answer, "why", None) is Refused.UNAVAILABLE
    writer.waits.set()
    writer.answer = Declined(DeclineReason.WAIT)
    assert await link.ask(SLOT, 5, 17, ROWS, []) == Declined(DeclineReason.WAIT)
