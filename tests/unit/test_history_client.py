"""Which history reader is asked: the one with the least to do, and another where one gives no answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pyarrow as pa
import pytest

from imray.core.pages import NoPage, Page, PageAsk, PageCall, PageFault
from imray.engine import history_client
from imray.engine.history_client import HistoryClient
from imray.engine.pages import decode_call, encode_answer
from imray.rpc.directory import HISTORY, log_of_reader, reader_of_log
from imray.rpc.endpoint import Endpoint, Parts
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from tests.support.fake_writers import FakeDirectory
from tests.support.rpc_peers import until

CALL = PageCall(0, PageAsk("room", 0, None, 10, False), 20, [], [])
TABLE = pa.table({"conv_seq": [1, 2]})


class Reader:
    """A real server that gives pages whose `high` is its number plus 1; it waits, dies or talks nonsense when told."""

    def __init__(self, directory: FakeDirectory, number: int) -> None:
        self.number = number
        self.gate = asyncio.Event()
        self.gate.set()
        self.dies = False
        self.nonsense = False
        self.calls = 0
        self._server = RpcServer(1_000_000)
        self._server.serve(log_of_reader(number), {Method.READ_HISTORY: self._read})
        self._endpoint: Endpoint | None = None
        directory.add(log_of_reader(number), self)

    async def endpoint(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = await self._server.open("127.0.0.1")
        return self._endpoint

    async def close(self) -> None:
        self.gate.set()
        await self._server.close()

    async def _read(self, content: memoryview, caller: ServerConnection) -> Parts:
        assert decode_call(content) == CALL
        self.calls += 1
        await self.gate.wait()
        if self.dies:
            caller.abort()
        return (b"?",) if self.nonsense else encode_answer(Page(TABLE, [], 1, self.number + 1, None))


@pytest.fixture
async def directory() -> AsyncIterator[FakeDirectory]:
    made = FakeDirectory()
    yield made
    await made.close()


@pytest.fixture
async def client(directory: FakeDirectory) -> AsyncIterator[HistoryClient]:
    made = HistoryClient(directory, readers=2)
    yield made
    made.close()


async def reader_that_answered(client: HistoryClient, timeout_s: float = 5.0) -> int:
    page = await client.read(CALL, timeout_s)
    assert isinstance(page, Page), page
    assert page.messages == TABLE
    return page.high - 1


async def test_the_reader_with_fewest_calls_in_flight_is_asked(directory: FakeDirectory, client: HistoryClient) -> None:
    first, second = Reader(directory, 0), Reader(directory, 1)
    first.gate.clear()
    waiting = asyncio.create_task(reader_that_answered(client))
    await until(lambda: first.calls == 1)
    assert [await reader_that_answered(client) for _ in range(3)] == [1, 1, 1]
    second.gate.clear()
    more = [asyncio.create_task(reader_that_answered(client)) for _ in range(3)]
    await until(lambda: first.calls + second.calls == 1 + 3 + 3)
    assert (first.calls, second.calls) == (2, 5)
    first.gate.set()
    second.gate.set()
    assert sorted(await asyncio.gather(waiting, *more)) == [0, 0, 1, 1]


async def test_one_call_after_the_other_goes_to_the_reader_whose_files_are_warm(
    directory: FakeDirectory, client: HistoryClient
) -> None:
    readers = [Reader(directory, number) for number in range(2)]
    assert [await reader_that_answered(client) for _ in range(4)] == [0] * 4
    assert [r.calls for r in readers] == [4, 0]


async def test_a_reader_that_dies_is_followed_by_another_and_left_out_for_a_while(
    directory: FakeDirectory, client: HistoryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Reader(directory, 0)
    Reader(directory, 1)
    first.dies = True
    assert [await reader_that_answered(client) for _ in range(5)] == [1] * 5
    assert first.calls == 1
    monkeypatch.setattr(history_client, "_PAUSE_S_MIN", 0.0)
    again = HistoryClient(directory, readers=2)
    assert [await reader_that_answered(again) for _ in range(2)] == [1, 1]
    assert first.calls >= 2
    first.dies = False
    async with asyncio.timeout(5):
        while await reader_that_answered(again) != 0:
            pass
    again.close()


async def test_a_reader_that_hangs_leaves_half_of_the_time_to_the_other(
    directory: FakeDirectory, client: HistoryClient
) -> None:
    first = Reader(directory, 0)
    Reader(directory, 1)
    first.gate.clear()
    began = time.monotonic()
    assert await reader_that_answered(client, timeout_s=0.6) == 1
    assert 0.25 < time.monotonic() - began < 0.6


async def test_an_answer_that_cannot_be_read_is_followed_by_another_reader(
    directory: FakeDirectory, client: HistoryClient
) -> None:
    first = Reader(directory, 0)
    Reader(directory, 1)
    first.nonsense = True
    assert await reader_that_answered(client) == 1


async def test_without_any_reader_there_is_no_page_in_time(directory: FakeDirectory, client: HistoryClient) -> None:
    for number in range(2):
        Reader(directory, number).gate.clear()
    began = time.monotonic()
    answer = await client.read(CALL, 0.3)
    assert time.monotonic() - began < 2
    assert isinstance(answer, NoPage)
    assert answer.fault is PageFault.UNAVAILABLE
    assert "history reader" in answer.detail


async def test_one_reader_is_enough(directory: FakeDirectory) -> None:
    Reader(directory, 0)
    for readers in (0, 1):
        client = HistoryClient(directory, readers=readers)
        assert await reader_that_answered(client) == 0
        client.close()


def test_readers_have_numbers_that_no_log_has() -> None:
    logs = [log_of_reader(number) for number in range(100)]
    assert logs[0] == HISTORY
    assert [reader_of_log(log) for log in logs] == list(range(100))
    assert max(logs) < 0
    assert reader_of_log(0) is None
