"""Batches over a connection: answers in any order, keys, broken, late and too large ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count

import pytest

from imray.core.replies import Refusal, Refused
from imray.rpc import appends
from imray.rpc.appends import AppendClient, AppendServer
from imray.rpc.asks import NoAnswerError

_BYTES_MAX = 1_000_000


class Shard:
    """Answers with what it got; b"wait..." when told to, b"fail" never."""

    def __init__(self) -> None:
        self.gate, self.arrived = asyncio.Event(), asyncio.Event()
        self.got: list[int] = []

    async def append(self, data: memoryview) -> Refusal:
        self.got.append(len(data))
        self.arrived.set()
        if data[:4] == b"wait":
            await self.gate.wait()
        if data[:4] == b"fail":
            raise RuntimeError("a bug")
        return Refusal(Refused.INVALID, bytes(data[:20]).decode())


@pytest.fixture
async def shard() -> Shard:
    return Shard()


@pytest.fixture
async def server(shard: Shard) -> AsyncIterator[AppendServer]:
    made = AppendServer(shard.append, _BYTES_MAX)
    await made.open("127.0.0.1")
    yield made
    shard.gate.set()
    made.close()


async def _said(client: AppendClient, data: bytes, timeout_s: float = 5.0) -> str:
    answer = await client.append(data, timeout_s)
    assert isinstance(answer, Refusal)
    return answer.detail


async def test_many_at_once_from_many(server: AppendServer, shard: Shard) -> None:
    clients = [await AppendClient.connect(server.door, 5) for _ in range(3)]
    sizes = [0, 1, 11, 12, 13, 65_536, 900_000]
    batches = [f"{i} {size}".encode().ljust(size, b".")[:size] for i, size in enumerate(sizes)]
    said = await asyncio.gather(*(_said(c, b) for c in clients for b in batches))
    assert said == [b[:20].decode() for _ in clients for b in batches]
    assert sorted(shard.got) == sorted(sizes * 3)
    for client in clients:
        client.close()


async def test_answers_in_another_order(server: AppendServer, shard: Shard) -> None:
    client = await AppendClient.connect(server.door, 5)
    slow = asyncio.create_task(_said(client, b"wait 1"))
    assert [await _said(client, b"%d" % i) for i in range(3)] == ["0", "1", "2"]
    assert not slow.done()
    shard.gate.set()
    assert await slow == "wait 1"
    client.close()


async def test_a_wrong_key(server: AppendServer) -> None:
    with pytest.raises(NoAnswerError):
        await AppendClient.connect(replace(server.door, key=b"x" * 32), 5)
    assert not server.connections


async def test_one_that_does_not_know_the_key_sends_nothing_through(server: AppendServer, shard: Shard) -> None:
    reader, writer = await asyncio.open_connection(server.door.host, server.door.port)
    writer.write(b"n" * 32 + b"p" * 32 + appends._HEAD.pack(1, 4) + b"body")
    assert len(await reader.read(1000)) == 64, "nonce and proof of the server, then the end"
    with pytest.raises(ConnectionResetError):
        await reader.read(1000)
    assert not shard.got
    writer.close()


async def test_one_that_says_nothing(server: AppendServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appends, "_HANDSHAKE_S", 0.05)
    reader, writer = await asyncio.open_connection(server.door.host, server.door.port)
    assert await asyncio.wait_for(reader.read(1), 5) == b"", "its end"
    writer.close()
    client = await AppendClient.connect(server.door, 5)
    await asyncio.sleep(0.1)  # longer than a stranger would be let
    assert await _said(client, b"still") == "still"
    client.close()


async def test_too_large(server: AppendServer, shard: Shard) -> None:
    client = await AppendClient.connect(server.door, 5)
    with pytest.raises(NoAnswerError):
        await client.append(bytes(_BYTES_MAX + 1), 5)
    assert not client.open
    assert not shard.got


async def test_late(server: AppendServer, shard: Shard) -> None:
    client = await AppendClient.connect(server.door, 5)
    other = asyncio.create_task(_said(client, b"wait other"))
    with pytest.raises(NoAnswerError, match="no answer"):
        await client.append(b"wait late", 0.05)
    assert not client.open
    with pytest.raises(NoAnswerError, match="closed"):
        await client.append(b"next", 5)
    shard.gate.set()
    assert await other == "wait other", "what was sent before still gets its answer"


async def test_the_server_ends(server: AppendServer, shard: Shard) -> None:
    client = await AppendClient.connect(server.door, 5)
    waits = asyncio.create_task(client.append(b"wait", 5))
    await shard.arrived.wait()
    server.close()
    with pytest.raises(NoAnswerError):
        await waits
    with pytest.raises(NoAnswerError):
        await AppendClient.connect(server.door, 5)


async def test_an_error_of_the_shard_is_an_unknown_outcome(server: AppendServer) -> None:
    client = await AppendClient.connect(server.door, 5)
    answer = await client.append(b"fail", 5)
    assert isinstance(answer, Refusal)
    assert answer.why is Refused.UNAVAILABLE
    assert await _said(client, b"next") == "next"
    client.close()


async def test_no_more_is_read_than_is_answered(
    server: AppendServer, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appends, "_UNANSWERED_MAX", 4)
    client = await AppendClient.connect(server.door, 5)
    waiting = [asyncio.create_task(_said(client, b"wait".ljust(200_000, b"."))) for _ in range(50)]
    for last in count():
        before = len(shard.got)
        await asyncio.sleep(0.02)  # nothing shows that nothing more will come
        if before and len(shard.got) == before:
            break
        assert last < 100
    assert len(shard.got) < 50
    shard.gate.set()
    assert {len(s) for s in await asyncio.gather(*waiting)} == {20}
    client.close()
