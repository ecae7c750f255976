"""Who is let in: keys, versions, silent and too many strangers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from imray.rpc import handshake
from imray.rpc.client import RpcClient
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.frames import HEAD, Kind
from imray.rpc.handshake import prefix
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from tests.support.rpc_peers import until

_KEY = b"k" * 32


async def _echo(content: memoryview, _caller: ServerConnection) -> Parts:
    return (content,)


Open = Callable[..., Any]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    made: list[RpcServer] = []

    async def open_one(**options: Any) -> tuple[RpcServer, Endpoint]:
        server = RpcServer(1_000_000, **options)
        server.serve(1, {Method.APPEND: _echo})
        made.append(server)
        return server, await server.open("127.0.0.1")

    yield open_one
    for server in made:
        await server.close()


async def _works(client: RpcClient) -> bool:
    return bytes(await client.call(1, Method.APPEND, (b"a",), 5)) == b"a"


async def test_a_wrong_key(opened: Open) -> None:
    server, endpoint = await opened()
    with pytest.raises(NoAnswerError, match="does not know the key"):
        await RpcClient.connect(replace(endpoint, key=b"x" * 32), 5)
    assert not server.connections
    assert await _works(await RpcClient.connect(endpoint, 5))


async def test_one_that_does_not_know_the_key_sends_nothing_through(opened: Open) -> None:
    server, endpoint = await opened()
    called: list[int] = []

    async def note(content: memoryview, _caller: ServerConnection) -> Parts:
        called.append(len(content))
        return ()

    server.serve(1, {Method.APPEND: note})
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    frame = HEAD.pack(Kind.CALL, Method.APPEND, 0, 1, 1, 4) + b"body"
    writer.write(prefix() + b"n" * 32 + b"p" * 32 + frame)
    said = b""
    try:
        said = await reader.read(1000)
        said += await reader.read(1000)
    except ConnectionResetError:
        pass
    assert len(said) in (0, 80), "what the server says to prove itself, then the end; no verdict"
    assert not called
    assert not server.connections
    writer.close()


async def test_another_wire_version_is_told_so(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    _, endpoint = await opened(handshake_s=5)
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(prefix(9) + b"whatever version nine sends next")
    assert await reader.readexactly(8) == prefix()
    writer.close()

    async def version_nine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(prefix(9))
        await reader.read()
        writer.close()

    newer = await asyncio.start_server(version_nine, "127.0.0.1", 0)
    port = newer.sockets[0].getsockname()[1]
    with pytest.raises(NoAnswerError, match=f"version 9 of imray's RPC, this end {handshake.WIRE_VERSION}"):
        await RpcClient.connect(replace(endpoint, port=port), 5)
    newer.close()


async def test_something_else_listens_there(opened: Open) -> None:
    _, endpoint = await opened()

    async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await reader.read()
        writer.close()

    other = await asyncio.start_server(greets, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    with pytest.raises(NoAnswerError, match="does not speak"):
        await RpcClient.connect(replace(endpoint, port=port), 5)
    other.close()


@pytest.mark.parametrize("said", [b"", prefix()[:7], prefix() + b"n" * 31, prefix() + b"n" * 32, prefix(9)])
async def test_who_stops_in_the_handshake_is_put_out(opened: Open, said: bytes) -> None:
    server, endpoint = await opened(handshake_s=0.1)
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(said)
    started = asyncio.get_running_loop().time()
    await asyncio.wait_for(reader.read(), 5)
    assert asyncio.get_running_loop().time() - started > 0.05
    writer.close()
    assert not server._strangers
    client = await RpcClient.connect(endpoint, 5)
    await asyncio.sleep(0.15)  # longer than a stranger would be let
    assert await _works(client)


async def test_one_stranger_too_many_puts_out_the_oldest(opened: Open) -> None:
    server, endpoint = await opened(strangers_max=2, handshake_s=30)
    friend = await RpcClient.connect(endpoint, 5)
    streams = []
    for n in range(5):
        streams.append(await asyncio.open_connection(endpoint.host, endpoint.port))
        await until(lambda n=n: len(server._strangers) == min(2, n + 1))
    for reader, _ in streams[:3]:
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert not streams[3][0].at_eof()
    assert not streams[4][0].at_eof()
    assert await _works(friend)
    late = await RpcClient.connect(endpoint, 5)
    assert await _works(late)
    assert len(server._strangers) == 1, "one of the two had to go for it"
    for _, writer in streams:
        writer.close()


async def test_a_crowd_of_strangers_has_few_places(opened: Open) -> None:
    server, endpoint = await opened(strangers_max=8, handshake_s=30)
    writers = [(await asyncio.open_connection(endpoint.host, endpoint.port))[1] for _ in range(100)]
    await until(lambda: len(server._strangers) == 8)
    assert await _works(await RpcClient.connect(endpoint, 5))
    for writer in writers:
        writer.close()


async def test_friends_are_not_put_out_by_one_too_many(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server, endpoint = await opened(connections_max=2)
    friends = [await RpcClient.connect(endpoint, 5) for _ in range(2)]
    with pytest.raises(NoAnswerError, match="no room"):
        await RpcClient.connect(endpoint, 5)
    assert [await _works(f) for f in friends] == [True, True]
    friends[0].close()
    await until(lambda: len(server.connections) == 1)
    assert await _works(await RpcClient.connect(endpoint, 5))


async def test_no_memory_for_frames_before_the_handshake(opened: Open) -> None:
    server, endpoint = await opened()
    _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    await until(lambda: len(server._strangers) == 1)
    (stranger,) = server._strangers
    await until(lambda: hasattr(stranger, "transport"))
    assert stranger._frames is None
    assert len(stranger.get_buffer(65_536)) <= 8
    writer.close()


async def test_a_server_that_says_nothing_is_not_waited_for(opened: Open) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    made = await asyncio.start_server(silent, "127.0.0.1", 0)
    endpoint = Endpoint("127.0.0.1", made.sockets[0].getsockname()[1], _KEY)
    with pytest.raises(NoAnswerError, match=r"no connection to .*: no answer in time"):
        await RpcClient.connect(endpoint, 0.1)
    await asyncio.wait_for(ended.wait(), 5)
    with pytest.raises(NoAnswerError, match="no answer in time"):
        await RpcClient.connect(endpoint, 0)
    made.close()
    await made.wait_closed()
    with pytest.raises(NoAnswerError, match="no connection"):
        await RpcClient.connect(endpoint, 5)


async def test_a_connection_that_was_given_up_while_it_was_being_made() -> None:
    client = RpcClient(Endpoint("127.0.0.1", 1, _KEY), None, 100)
    client.close()
    transport = Mock(spec=asyncio.Transport)
    client.connection_made(transport)
    transport.abort.assert_called_once()
    transport.write.assert_not_called()


async def test_closing_puts_out_strangers_too(opened: Open) -> None:
    server, endpoint = await opened(handshake_s=30)
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    await until(lambda: len(server._strangers) == 1)
    await server.close()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
