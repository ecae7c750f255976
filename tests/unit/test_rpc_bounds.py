"""What is bounded for each connection: calls, answers and what is pushed; and who breaks the protocol is cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvloop

from imray.rpc import server as server_module
from imray.rpc.client import RpcClient
from imray.rpc.endpoint import Endpoint, NoAnswerError
from imray.rpc.frames import HEAD, Kind
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from tests.support.rpc_peers import BYTES_MAX, LOG, Echo, echoed, end_of, raw_connection, until

_PUSH_BYTES_MAX = 300_000


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(echo: Echo) -> AsyncIterator[RpcServer]:
    made = RpcServer(BYTES_MAX, push_bytes_max=_PUSH_BYTES_MAX)
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


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ((Kind.CALL, Method.APPEND, 0, LOG, 1, BYTES_MAX + 1), "the most is 1000000"),
        ((Kind.CALL, Method.APPEND, 0, LOG, 1, 2**64 - 1), "the most is 1000000"),
        ((Kind.CALL, Method.APPEND, 1, LOG, 1, 0), "not the head of a frame"),
        ((Kind.ANSWER, Method.APPEND, 0, LOG, 1, 0), "kind 2"),
        ((Kind.PUSH, Method.PUBLISH, 0, LOG, 1, 0), "kind 4"),
        ((0, Method.APPEND, 0, LOG, 1, 0), "kind 0"),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_cut(
    endpoint: Endpoint, server: RpcServer, head: tuple[int, ...], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = await raw_connection(endpoint)
    await asyncio.get_running_loop().sock_sendall(raw, HEAD.pack(*head))
    assert await end_of(raw) == b""
    assert text in caplog.text
    assert not server.connections


async def test_no_more_is_read_than_is_answered(client: RpcClient, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "UNANSWERED_MAX", 4)
    # small ones, many of which come with one read, and large ones
    waiting = [asyncio.create_task(echoed(client, b"wait".ljust(n, b"."))) for n in [9] * 40 + [200_000] * 10]
    await until(lambda: len(echo.got) == 4)
    await asyncio.sleep(0.05)  # nothing shows that nothing more will come
    assert len(echo.got) == 4
    echo.gate.set()
    assert sorted({len(s) for s in await asyncio.gather(*waiting)}) == [9, 200_000]


async def test_a_caller_that_reads_no_answers_is_not_read_from(
    endpoint: Endpoint, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_ANSWER_BYTES", 100_000)
    raw = await raw_connection(endpoint)
    frame = HEAD.pack(Kind.CALL, Method.APPEND, 0, LOG, 1, 500_000) + bytes(500_000)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(raw, frame * 100))
    before = -1
    while len(echo.got) != before:
        before = len(echo.got)
        await asyncio.sleep(0.1)  # nothing shows that nothing more will come
    assert before < 90, "what is unsent, and in the buffers of the system"
    reading = asyncio.get_running_loop()
    got = 0
    while got < 100 * len(frame):
        got += len(await reading.sock_recv(raw, 1_000_000))
    await sending
    assert len(echo.got) == 100
    raw.close()


async def test_answers_that_nobody_waits_for_are_dropped(client: RpcClient) -> None:
    caller_side = HEAD.pack(Kind.ANSWER, Method.APPEND, 0, LOG, 999, 0)
    buffer = client.get_buffer(0)
    buffer[: len(caller_side)] = caller_side
    client.buffer_updated(len(caller_side))
    assert await echoed(client, b"next") == b"next"


@pytest.mark.parametrize("kind", [Kind.CALL, 9])
async def test_a_server_that_breaks_the_protocol_is_left(client: RpcClient, kind: int) -> None:
    frame = HEAD.pack(kind, Method.APPEND, 0, LOG, 1, 0)
    client.get_buffer(0)[: len(frame)] = frame
    client.buffer_updated(len(frame))
    assert not client.open


class Pushes:
    """What a client was sent unasked."""

    def __init__(self) -> None:
        self.got: list[tuple[int, Method, bytes]] = []

    def __call__(self, log: int, method: Method, content: memoryview) -> None:
        self.got.append((log, method, bytes(content)))
        if content[:4] == b"fail":
            raise RuntimeError("a bug")


async def _caller_of(server: RpcServer) -> ServerConnection:
    await until(lambda: len(server.connections) == 1)
    (caller,) = server.connections
    return caller


async def test_pushes_come_in_order_among_answers(endpoint: Endpoint, server: RpcServer) -> None:
    pushes = Pushes()
    client = await RpcClient.connect(endpoint, 5, on_push=pushes)
    caller = await _caller_of(server)
    contents = [b"fail", b"b" * 50_000, b""]
    for content in contents:
        assert caller.push(7, Method.PUBLISH, (content,))
    assert await echoed(client, b"after") == b"after"
    assert pushes.got == [(7, Method.PUBLISH, c) for c in contents]
    client.close()
    await until(lambda: caller.closed)
    assert not caller.push(7, Method.PUBLISH, (b"",))


async def test_a_client_that_listens_to_nothing(client: RpcClient, server: RpcServer) -> None:
    assert (await _caller_of(server)).push(7, Method.PUBLISH, (b"a",))
    assert await echoed(client, b"after") == b"after"


async def test_a_push_that_is_none(endpoint: Endpoint) -> None:
    client = await RpcClient.connect(endpoint, 5, on_push=Pushes())
    frame = HEAD.pack(Kind.PUSH, 200, 0, LOG, 0, 0)
    client.get_buffer(0)[: len(frame)] = frame
    client.buffer_updated(len(frame))
    assert not client.open


async def test_a_slow_reader_is_pushed_nothing_above_its_bound(endpoint: Endpoint, server: RpcServer) -> None:
    slow = await raw_connection(endpoint)
    caller = await _caller_of(server)
    part = bytes(100_000)
    pushed = 0
    refused = 0
    for _ in range(500):
        if caller.push(7, Method.PUBLISH, (part,)):
            pushed += 1
        else:
            refused += 1
        assert caller.transport.get_write_buffer_size() <= _PUSH_BYTES_MAX
        await asyncio.sleep(0)
    assert refused > 100
    assert not caller.push(7, Method.PUBLISH, (part,))
    loop = asyncio.get_running_loop()
    got = 0
    while got < pushed * (HEAD.size + len(part)):
        got += len(await loop.sock_recv(slow, 1_000_000))
    assert caller.push(7, Method.PUBLISH, (part,)), "it has caught up"
    slow.close()


async def test_a_push_alone_above_the_bound(client: RpcClient, server: RpcServer) -> None:
    caller = await _caller_of(server)
    assert not caller.push(7, Method.PUBLISH, (bytes(_PUSH_BYTES_MAX),))
    assert caller.push(7, Method.PUBLISH, (bytes(_PUSH_BYTES_MAX - HEAD.size),))
    assert await echoed(client, b"after") == b"after"


async def test_pushes_within_their_bound_do_not_stop_calls(
    endpoint: Endpoint, server: RpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_ANSWER_BYTES", 10_000)
    slow = await raw_connection(endpoint)
    caller = await _caller_of(server)
    pushed = [caller.push(7, Method.PUBLISH, (bytes(50_000),)) for _ in range(1_000)]
    assert pushed[0]
    assert not pushed[-1]
    assert caller.wants_frames()
    slow.close()


async def test_a_lost_machine_is_noticed(client: RpcClient, server: RpcServer) -> None:
    for end in (client, await _caller_of(server)):
        connected = end.transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


async def test_a_failed_accept_is_tried_again(
    endpoint: Endpoint, server: RpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept
    failures = [OSError("too many open files")]

    async def fails_once(listener: socket.socket) -> tuple[socket.socket, object]:
        accepted = await accept(listener)
        if failures:
            accepted[0].close()
            raise failures.pop()
        return accepted

    monkeypatch.setattr(loop, "sock_accept", fails_once)
    assert server._listener is not None
    first = socket.create_connection((endpoint.host, endpoint.port))  # taken by the call that waits already
    await until(lambda: len(server._strangers) == 1)
    second = socket.create_connection((endpoint.host, endpoint.port))
    await until(lambda: not failures)
    client = await RpcClient.connect(endpoint, 5)
    assert await echoed(client, b"a") == b"a"
    for one in (first, second):
        one.close()
    client.close()


def test_on_uvloop() -> None:
    async def exchange() -> list[bytes]:
        server = RpcServer(BYTES_MAX)
        server.serve(LOG, {Method.APPEND: Echo().append})
        client = await RpcClient.connect(await server.open("127.0.0.1"), 5)
        contents = [bytes([n % 256]) * n for n in (0, 1, 100, 20_000, BYTES_MAX)] * 20
        assert await asyncio.gather(*(echoed(client, c) for c in contents)) == contents
        with pytest.raises(NoAnswerError):
            await echoed(client, b"", log=8)
        left = asyncio.create_task(echoed(client, b"wait"))
        await asyncio.sleep(0.01)
        await server.close()
        with pytest.raises(NoAnswerError):
            await left
        return contents

    assert len(uvloop.run(exchange())) == 100


def test_an_endpoint_does_not_show_its_key() -> None:
    endpoint = Endpoint("127.0.0.1", 1, b"secret")
    assert "secret" not in repr(endpoint)
    assert "key" not in repr(endpoint)
