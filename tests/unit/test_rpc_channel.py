"""A channel finds, connects and calls within one budget, and finds anew after its process has moved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from imray.rpc.channel import Channel
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from tests.support.rpc_peers import BYTES_MAX, LOG, Echo, until


class Places:
    """A directory that remembers its answers until it is told to forget them."""

    def __init__(self) -> None:
        self.now: Endpoint | None = None
        self.gate: asyncio.Event | None = None
        self.finds = 0
        self.forgets = 0
        self.times_s: list[float] = []
        self._known: Endpoint | None = None

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        self.finds += 1
        self.times_s.append(timeout_s)
        if self.gate is not None:
            await self.gate.wait()
        self._known = self._known or self.now
        if self._known is None:
            raise NoAnswerError(f"log {log} is not there yet")
        return self._known

    def forget(self, log: int) -> None:
        assert log == LOG
        self.forgets += 1
        self._known = None


class Process:
    """A process that has the log."""

    def __init__(self, name: bytes) -> None:
        self.server = RpcServer(BYTES_MAX)
        self.echo = Echo()
        self._name = name

        async def status(_content: memoryview, _caller: ServerConnection) -> Parts:
            return (self._name,)

        self.server.serve(LOG, {Method.APPEND: self.echo.append, Method.STATUS: status})

    async def open(self) -> Endpoint:
        return await self.server.open("127.0.0.1")


@pytest.fixture
async def processes() -> AsyncIterator[list[Process]]:
    made = [Process(b"first"), Process(b"second")]
    yield made
    for process in made:
        await process.server.close()


@pytest.fixture
async def places(processes: list[Process]) -> Places:
    made = Places()
    made.now = await processes[0].open()
    return made


@pytest.fixture
async def channel(places: Places) -> AsyncIterator[Channel]:
    made = Channel(places, LOG, "shard 3")
    yield made
    made.close()


async def _who(channel: Channel, timeout_s: float = 5.0) -> bytes:
    return bytes(await channel.call(Method.STATUS, (), timeout_s))


async def test_it_finds_and_connects_once(channel: Channel, places: Places, processes: list[Process]) -> None:
    assert await asyncio.gather(*(_who(channel) for _ in range(50))) == [b"first"] * 50
    assert await _who(channel) == b"first"
    assert places.finds == 1
    assert len(processes[0].server.connections) == 1


async def test_it_reconnects_after_the_process_moved(
    channel: Channel, places: Places, processes: list[Process]
) -> None:
    assert await _who(channel) == b"first"
    await processes[0].server.close()
    places.now = await processes[1].open()
    await until(lambda: channel._client is not None and not channel._client.open)
    assert await _who(channel) == b"second", "lost between two calls: no call is wasted on it"
    assert places.forgets == 1


async def test_a_call_in_flight_when_the_process_goes(
    channel: Channel, places: Places, processes: list[Process]
) -> None:
    waits = asyncio.create_task(channel.call(Method.APPEND, (b"wait",), 5))
    await processes[0].echo.arrived.wait()
    await processes[0].server.close()
    places.now = await processes[1].open()
    with pytest.raises(NoAnswerError, match="shard 3"):
        await waits
    assert await _who(channel) == b"second"


async def test_a_log_that_moved_away_from_a_living_process(
    channel: Channel, places: Places, processes: list[Process]
) -> None:
    waits = asyncio.create_task(channel.call(Method.APPEND, (b"wait",), 5))
    await processes[0].echo.arrived.wait()
    processes[0].server.forget(LOG)
    places.now = await processes[1].open()
    with pytest.raises(NoAnswerError, match="shard 3: nobody answers"):
        await _who(channel)
    assert await _who(channel) == b"second"
    processes[0].echo.gate.set()
    assert bytes(await waits) == b"wait", "what waits at the old place still gets its answer"
    await until(lambda: not processes[0].server.connections)


async def test_an_error_of_a_handler_keeps_the_connection(
    channel: Channel, places: Places, processes: list[Process]
) -> None:
    with pytest.raises(NoAnswerError, match="RuntimeError"):
        await channel.call(Method.APPEND, (b"fail",), 5)
    (before,) = processes[0].server.connections
    assert await _who(channel) == b"first"
    assert places.finds == 2, "whether the log is still there is asked"
    assert processes[0].server.connections == {before}


async def test_after_a_late_answer_it_looks_up_and_connects_anew(
    channel: Channel, places: Places, processes: list[Process]
) -> None:
    with pytest.raises(NoAnswerError, match="no answer within"):
        await channel.call(Method.APPEND, (b"wait",), 0.05)
    places.now = await processes[1].open()
    assert await _who(channel) == b"second"


async def test_a_process_that_is_not_there_yet(channel: Channel, places: Places) -> None:
    there = places.now
    places.now = None
    with pytest.raises(NoAnswerError, match=r"shard 3: log 3 is not there yet; the call was not sent"):
        await _who(channel)
    places.now = there
    assert await _who(channel) == b"first"


async def test_an_endpoint_where_nobody_listens(channel: Channel, places: Places) -> None:
    there = places.now
    assert there is not None
    places.now = replace(there, key=b"x" * 32)
    with pytest.raises(NoAnswerError, match="does not know the key"):
        await _who(channel)
    places.now = there
    assert await _who(channel) == b"first"


async def test_one_budget_for_all_of_it(channel: Channel, places: Places) -> None:
    loop = asyncio.get_running_loop()
    places.gate = asyncio.Event()
    started = loop.time()
    with pytest.raises(NoAnswerError, match="no connection in time; the call was not sent"):
        await _who(channel, 0.1)
    assert loop.time() - started < 1
    assert places.times_s[0] <= 0.1
    slow = asyncio.create_task(channel.call(Method.APPEND, (b"wait",), 0.3))
    started = loop.time()
    await asyncio.sleep(0.2)
    places.gate.set()
    with pytest.raises(NoAnswerError, match=r"no answer within 0\.1 s"):
        await slow
    assert 0.25 < loop.time() - started < 1


async def test_whoever_waits_for_an_attempt_shares_its_failure(channel: Channel, places: Places) -> None:
    places.gate = asyncio.Event()
    places.now = None
    calls = [asyncio.create_task(_who(channel)) for _ in range(20)]
    await until(lambda: places.finds == 1)
    places.gate.set()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(e, NoAnswerError) for e in ended)
    assert places.finds == 1, "a crowd must not try one after the other"


async def test_whoever_has_more_time_tries_again(channel: Channel, places: Places) -> None:
    places.gate = asyncio.Event()
    short = asyncio.create_task(_who(channel, 0.05))
    await until(lambda: places.finds == 1)
    patient = asyncio.create_task(_who(channel, 5))
    with pytest.raises(NoAnswerError):
        await short
    places.gate.set()
    assert await patient == b"first"


async def test_a_failure_for_want_of_time_is_not_shared(
    channel: Channel, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = places.find

    async def is_late(log: int, timeout_s: float) -> Endpoint:
        monkeypatch.setattr(places, "find", find)
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251  # the loop is busy: its own time-out comes after this
        raise NoAnswerError("no answer in time")

    monkeypatch.setattr(places, "find", is_late)
    short = asyncio.create_task(_who(channel, 0.05))
    patient = asyncio.create_task(_who(channel, 5))
    with pytest.raises(NoAnswerError):
        await short
    assert await patient == b"first"


async def test_a_closed_channel(channel: Channel, places: Places, processes: list[Process]) -> None:
    waits = asyncio.create_task(channel.call(Method.APPEND, (b"wait",), 5))
    await processes[0].echo.arrived.wait()
    channel.close()
    with pytest.raises(NoAnswerError, match="shard 3"):
        await waits
    with pytest.raises(NoAnswerError, match="the channel is closed"):
        await _who(channel)
    assert places.finds == 1


async def test_a_channel_that_is_closed_while_it_connects(
    channel: Channel, places: Places, processes: list[Process]
) -> None:
    places.gate = asyncio.Event()
    connects = asyncio.create_task(_who(channel))
    await until(lambda: places.finds == 1)
    channel.close()
    places.gate.set()
    with pytest.raises(NoAnswerError, match="the channel is closed"):
        await connects
    await until(lambda: not processes[0].server.connections)


async def test_what_is_pushed(places: Places, processes: list[Process]) -> None:
    got: list[tuple[int, Method, bytes]] = []
    channel = Channel(places, LOG, "shard 3", on_push=lambda log, m, content: got.append((log, m, bytes(content))))
    await _who(channel)
    (caller,) = processes[0].server.connections
    assert caller.push(LOG, Method.PUBLISH, (b"a",))
    await _who(channel)
    assert got == [(LOG, Method.PUBLISH, b"a")]
    channel.close()
