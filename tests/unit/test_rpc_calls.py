"""Calls over a connection: answers in any order, errors, late and too large ones, lost connections."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable

import pytest

from imray.core.errors import InvalidError
from imray.rpc.client import RpcClient
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.frames import HEAD, Kind
from imray.rpc.methods import Method
from imray.rpc.server import Handler, RpcServer, ServerConnection
from tests.support.rpc_peers import BYTES_MAX, LOG, Echo, echoed, until


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(echo: Echo) -> AsyncIterator[RpcServer]:
    made = RpcServer(BYTES_MAX)
    made.serve(LOG, {Method.APPEND: echo.append})
    yield made
    echo.gate.set()
    await made.close()


@pytest.fixture
async def endpoint(server: RpcServer) -> Endpoint:
    return await server.open("127.0.0.1")


@pytest.fixture
async def client(endpoint: Endpoint) -> AsyncIterator[RpcClient]:
    made = await RpcClient.connect(endpoint, 5)
    yield made
    made.close()


async def test_many_at_once_from_many(endpoint: Endpoint, echo: Echo) -> None:
    clients = [await RpcClient.connect(endpoint, 5) for _ in range(3)]
    sizes = [0, 1, 11, 16_383, 16_384, 16_385, 32_744, 32_745, 65_536, 999_999, BYTES_MAX]
    batches = [f"{i} {size}".encode().ljust(size, b".")[:size] for i, size in enumerate(sizes)]
    answers = await asyncio.gather(*(echoed(c, b) for c in clients for b in batches))
    assert answers == [b for _ in clients for b in batches]
    assert sorted(echo.got) == sorted(sizes * 3)
    for client in clients:
        client.close()


async def test_parts_come_as_one(client: RpcClient) -> None:
    parts = [b"", b"a", bytes(20_000), b"b", b"c" * 16_000, b"d" * 300, b"e" * 70_000]
    assert await echoed(client, *parts) == b"".join(parts)


async def test_answers_in_another_order(client: RpcClient, echo: Echo) -> None:
    slow = asyncio.create_task(echoed(client, b"wait 1"))
    assert [await echoed(client, b"%d" % i) for i in range(3)] == [b"0", b"1", b"2"]
    assert not slow.done()
    echo.gate.set()
    assert await slow == b"wait 1"


async def test_two_logs_on_one_connection(client: RpcClient, server: RpcServer) -> None:
    async def other(content: memoryview, _caller: ServerConnection) -> Parts:
        return (b"other ", content)

    server.serve(-1, {Method.APPEND: other})
    assert await asyncio.gather(echoed(client, b"a"), echoed(client, b"a", log=-1)) == [b"a", b"other a"]
    server.forget(-1)
    with pytest.raises(NoAnswerError, match="for log -1"):
        await echoed(client, b"a", log=-1)
    assert await echoed(client, b"still") == b"still"


async def test_a_log_and_a_method_that_nobody_answers(client: RpcClient) -> None:
    slow = asyncio.create_task(echoed(client, b"wait"))
    with pytest.raises(NoAnswerError, match="method 1 for log 7"):
        await echoed(client, b"", log=7)
    with pytest.raises(NoAnswerError, match="method 8 for log 3"):
        await client.call(LOG, Method.STATUS, (), 5)
    assert client.open
    assert not slow.done()


async def test_a_handler_that_fails_costs_only_its_call(
    client: RpcClient, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    slow = asyncio.create_task(echoed(client, b"wait"))
    with pytest.raises(NoAnswerError, match="RuntimeError: a bug"):
        await echoed(client, b"fail")
    assert "Traceback" in caplog.text
    caplog.clear()
    with pytest.raises(NoAnswerError, match="InvalidError: malformed"):
        await echoed(client, b"invalid")
    assert "Traceback" not in caplog.text
    assert await echoed(client, b"next") == b"next"
    echo.gate.set()
    assert await slow == b"wait"


def _raises(_content: memoryview, _caller: ServerConnection) -> Awaitable[Parts]:
    raise ValueError("at once")


def _malformed(_content: memoryview, _caller: ServerConnection) -> Awaitable[Parts]:
    raise InvalidError("at once")


async def _is_cancelled(_content: memoryview, _caller: ServerConnection) -> Parts:
    raise asyncio.CancelledError


async def _no_bytes(_content: memoryview, _caller: ServerConnection) -> Parts:
    return (b"x" * 20_000, "text")  # type: ignore[return-value]


async def _no_parts(_content: memoryview, _caller: ServerConnection) -> Parts:
    return None  # type: ignore[return-value]


async def _long_text(_content: memoryview, _caller: ServerConnection) -> Parts:
    raise RuntimeError("\ud800" + "x" * 100_000)


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (_raises, "ValueError: at once"),
        (_malformed, "InvalidError: at once"),
        (_is_cancelled, "cancelled"),
        (_no_bytes, "TypeError"),
        (_no_parts, "TypeError"),
        (_long_text, "xxx"),
    ],
)
async def test_handlers_that_fail_in_other_ways(
    client: RpcClient, server: RpcServer, handler: Handler, text: str
) -> None:
    server.serve(9, {Method.STATUS: handler})
    with pytest.raises(NoAnswerError, match=text) as caught:
        await client.call(9, Method.STATUS, (), 5)
    assert len(str(caught.value)) < 3_000
    assert await echoed(client, b"next") == b"next"


async def test_a_handler_may_return_a_future(client: RpcClient, server: RpcServer) -> None:
    made: list[asyncio.Future[Parts]] = []

    def later(_content: memoryview, _caller: ServerConnection) -> asyncio.Future[Parts]:
        made.append(asyncio.get_running_loop().create_future())
        return made[-1]

    server.serve(9, {Method.STATUS: later})
    call = asyncio.create_task(client.call(9, Method.STATUS, (), 5))
    assert await echoed(client, b"next") == b"next"
    made[0].set_result((b"now",))
    assert bytes(await call) == b"now"
    assert not server.running


async def test_too_large_for_the_server_is_not_sent(client: RpcClient, echo: Echo) -> None:
    slow = asyncio.create_task(echoed(client, b"wait"))
    await echo.arrived.wait()
    with pytest.raises(NoAnswerError, match="1000001 bytes were not sent"):
        await echoed(client, bytes(BYTES_MAX), b"1")
    assert client.open
    assert echo.got == [4]
    echo.gate.set()
    assert await slow == b"wait"


async def test_an_answer_that_is_too_large_ends_the_connection(endpoint: Endpoint) -> None:
    client = await RpcClient.connect(endpoint, 5, answer_bytes_max=100)
    assert await echoed(client, bytes(100)) == bytes(100)
    with pytest.raises(NoAnswerError, match="101 bytes: the most is 100"):
        await echoed(client, bytes(101))
    assert not client.open


async def test_late(client: RpcClient, echo: Echo) -> None:
    other = asyncio.create_task(echoed(client, b"wait other"))
    with pytest.raises(NoAnswerError, match="no answer"):
        await echoed(client, b"wait late", timeout_s=0.05)
    assert not client.open
    with pytest.raises(NoAnswerError, match="closed"):
        await echoed(client, b"next")
    assert not client.closed
    echo.gate.set()
    assert await other == b"wait other", "what was sent before still gets its answer"
    assert client.closed, "and then it is closed"


async def test_a_late_call_alone_closes_the_connection(client: RpcClient) -> None:
    with pytest.raises(NoAnswerError, match="no answer"):
        await echoed(client, b"wait late", timeout_s=0.05)
    assert client.closed


async def test_no_time_left_sends_nothing(client: RpcClient, echo: Echo) -> None:
    with pytest.raises(NoAnswerError, match="not sent"):
        await echoed(client, b"a", timeout_s=0)
    assert await echoed(client, b"bc") == b"bc"
    assert echo.got == [2]


async def test_a_call_that_is_given_up_harms_no_other(client: RpcClient, echo: Echo) -> None:
    given_up = asyncio.create_task(echoed(client, b"wait"))
    await echo.arrived.wait()
    given_up.cancel()
    echo.gate.set()
    assert await echoed(client, b"next") == b"next"
    assert client.open


async def test_an_answer_in_the_moment_of_giving_up(client: RpcClient, echo: Echo) -> None:
    given_up = asyncio.create_task(echoed(client, b"wait"))
    await echo.arrived.wait()
    given_up.cancel()  # its future is cancelled already, and still waits for the task to see it
    frame = HEAD.pack(Kind.ANSWER, Method.APPEND, 0, LOG, 1, 0)
    client.get_buffer(0)[: len(frame)] = frame
    client.buffer_updated(len(frame))
    assert await echoed(client, b"next") == b"next"


async def test_retired(client: RpcClient, echo: Echo) -> None:
    waits = asyncio.create_task(echoed(client, b"wait"))
    await echo.arrived.wait()
    client.retire()
    with pytest.raises(NoAnswerError, match="closed"):
        await echoed(client, b"next")
    echo.gate.set()
    assert await waits == b"wait"
    assert client.closed


async def test_all_calls_in_flight_get_no_answer_when_the_server_ends(
    client: RpcClient, server: RpcServer, endpoint: Endpoint, echo: Echo
) -> None:
    waits = [asyncio.create_task(echoed(client, b"wait %d" % i)) for i in range(20)]
    await until(lambda: len(echo.got) == 20)
    await server.close()
    ended = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(e, NoAnswerError) for e in ended)
    assert not client.open
    with pytest.raises(NoAnswerError):
        await RpcClient.connect(endpoint, 5)


async def test_calls_that_wait_when_the_client_closes(client: RpcClient, echo: Echo, server: RpcServer) -> None:
    waits = asyncio.create_task(echoed(client, b"wait"))
    await echo.arrived.wait()
    client.close()
    with pytest.raises(NoAnswerError, match="closed"):
        await waits
    await until(lambda: not server.connections)
    gc.collect()  # what is being executed goes on, though nobody waits for it
    assert len(server.running) == 1
    echo.gate.set()
    await until(lambda: not server.running)


async def test_a_server_opens_once(server: RpcServer, endpoint: Endpoint) -> None:
    with pytest.raises(RuntimeError, match="open already"):
        await server.open(endpoint.host)


async def test_the_end_of_a_connection_is_told_to_whoever_asked_for_it(client: RpcClient, server: RpcServer) -> None:
    ended: list[str] = []

    async def subscribe(_content: memoryview, caller: ServerConnection) -> Parts:
        def fails() -> None:
            ended.append("fails")
            raise RuntimeError("a bug")

        caller.add_close_callback(fails)
        caller.add_close_callback(lambda: ended.append("second"))
        return ()

    server.serve(9, {Method.SUBSCRIBE: subscribe})
    await client.call(9, Method.SUBSCRIBE, (), 5)
    (caller,) = server.connections
    assert not ended
    client.close()
    await until(lambda: caller.closed)
    assert ended == ["fails", "second"]
    caller.add_close_callback(lambda: ended.append("late"))
    assert ended == ["fails", "second", "late"]
