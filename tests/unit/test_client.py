"""The clients against a real HTTP server that keeps the contract, and breaks it where a test says so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from imray.client import (
    AsyncClient,
    AuthError,
    Client,
    ConflictError,
    InvalidError,
    Outgoing,
    RetryPolicy,
    ServerError,
    UnavailableError,
    UnknownOutcomeError,
)
from tests.support.fake_imray import HANG, LOSE_ANSWER, FakeImray, Server

ID = "0190b0f2-6f2e-7c3a-9d27-0242ac120002"
QUICK = RetryPolicy(try_timeout_s=10, pause_s_min=0.001, pause_s_max=0.002)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeImray, str]]:
    app = FakeImray()
    server = Server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.up.wait(10)
    yield app, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def server(running: tuple[FakeImray, str]) -> FakeImray:
    app, _ = running
    app.__init__()  # type: ignore[misc]
    return app


class Either:
    """One client, whichever it is: `await client.do("send", ...)`. `pauses_s` are the pauses it was told to make."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.pauses_s: list[float] = []
        options = {"timeout_s": 30.0, "retry": QUICK} | options
        self.client: Any = (
            AsyncClient(url, "secret", sleep=self.note_async, **options)
            if kind == "async"
            else Client(url, "secret", sleep=self.pauses_s.append, **options)
        )

    async def note_async(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)

    async def do(self, name: str, *args: Any, **named: Any) -> Any:
        method = getattr(self.client, name)
        if isinstance(self.client, AsyncClient):
            return await method(*args, **named)
        return await asyncio.to_thread(method, *args, **named)

    async def pages(self, *args: Any, **named: Any) -> list[Any]:
        if isinstance(self.client, AsyncClient):
            return [page async for page in self.client.iter_history(*args, **named)]
        return await asyncio.to_thread(lambda: list(self.client.iter_history(*args, **named)))

    async def close(self) -> None:
        if isinstance(self.client, AsyncClient):
            await self.client.aclose()
        else:
            self.client.close()


@pytest.fixture(params=["async", "sync"])
async def client(request: pytest.FixtureRequest, running: Any, server: FakeImray) -> AsyncIterator[Either]:
    either = Either(request.param, running[1])
    yield either
    await either.close()


async def test_send(client: Either, server: FakeImray) -> None:
    result = await client.do("send", "room", "hello", topic="t", client_ts=3)
    assert (result.conv_id, result.conv_seq, result.duplicate) == ("room", 1, False)
    assert (result.shard, result.segment, result.row, result.stable_seq) == (7, 1, 0, 1)
    ((method, path, headers, content),) = server.requests
    assert (method, path) == ("POST", "/v1/conversations/room/messages")
    assert headers["authorization"] == "Bearer secret"
    assert content == {"client_msg_id": result.client_msg_id, "body": "hello", "topic": "t", "client_ts": 3}


@pytest.mark.parametrize("conv_id", ["a/b", "..", ".", "a?b#c%2F", "房 间", "a;b", "%2e%2e"])
async def test_any_conv_id_arrives_as_it_is(client: Either, server: FakeImray, conv_id: str) -> None:
    assert (await client.do("send", conv_id, "x")).conv_id == conv_id
    assert (await client.do("head", conv_id)).conv_seq == 1
    assert list(server.stored) == [conv_id]


@pytest.mark.parametrize("fault", [LOSE_ANSWER, (502, {}), (503, {}), (504, b"<html>"), (429, {})])
async def test_the_id_is_kept_over_retries(client: Either, server: FakeImray, fault: Any) -> None:
    server.script.extend([fault, fault])
    result = await client.do("send", "room", "hello")
    ids = {content["client_msg_id"] for _, _, _, content in server.requests}
    assert ids == {result.client_msg_id}
    assert len(server.requests) == 3
    assert len(server.stored["room"]) == 1


async def test_retry_after_is_waited_for(client: Either, server: FakeImray) -> None:
    server.script.append((503, {"detail": "busy"}, {"retry-after": "3"}))
    await client.do("send", "room", "hello")
    (pause_s,) = client.pauses_s
    assert 3 <= pause_s <= 3 + QUICK.pause_s_max


async def test_a_retry_after_past_the_deadline_ends_the_call_at_once(client: Either, server: FakeImray) -> None:
    server.script.append((503, {"detail": "busy"}, {"retry-after": "60"}))
    with pytest.raises(UnknownOutcomeError, match=r"503: busy.*same ids") as e:
        await client.do("send", "room", "hello", client_msg_id=ID)
    assert e.value.client_msg_ids == (ID,)
    assert client.pauses_s == []


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_server_that_hangs_is_asked_again(kind: str, running: Any, server: FakeImray) -> None:
    server.script.append(HANG)
    client = Either(kind, running[1], retry=RetryPolicy(try_timeout_s=0.5, pause_s_min=0.001))
    result = await client.do("send", "room", "hello")
    assert {content["client_msg_id"] for _, _, _, content in server.requests} == {result.client_msg_id}
    assert len(server.requests) >= 2
    assert len(server.stored["room"]) == 1
    await client.close()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_the_deadline_covers_all_tries(kind: str, running: Any, server: FakeImray) -> None:
    server.script.extend([HANG] * 99)
    client = Either(kind, running[1], timeout_s=1, retry=RetryPolicy(try_timeout_s=0.3, pause_s_min=0.001))
    started_s = time.monotonic()
    with pytest.raises(UnknownOutcomeError, match=r"no answer within 1 s") as e:
        await client.do("send", "room", "hello", client_msg_id=ID)
    assert 0.9 < time.monotonic() - started_s < 5
    assert e.value.client_msg_ids == (ID,)
    await client.close()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_nobody_listens(kind: str, unused_tcp_port: int) -> None:
    client = Either(kind, f"http://127.0.0.1:{unused_tcp_port}", timeout_s=0.2)
    with pytest.raises(UnavailableError, match=r"no answer within 0\.2 s"):
        await client.do("head", "room")
    with pytest.raises(UnavailableError):
        await client.do("ready")
    await client.close()


async def test_conflict(client: Either) -> None:
    await client.do("send", "room", "one", client_msg_id=ID.upper())
    with pytest.raises(ConflictError, match="another payload") as e:
        await client.do("send", "room", "two", client_msg_id=ID)
    assert (e.value.conv_seq, e.value.client_msg_id) == (1, ID)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidError),
        (404, InvalidError),
        (401, AuthError),
        (403, AuthError),
        (500, ServerError),
        (301, ServerError),
    ],
)
async def test_refusals(client: Either, server: FakeImray, status: int, error: type[Exception]) -> None:
    server.script.append((status, {"detail": "because"}))
    with pytest.raises(error, match=f"status {status}: because"):
        await client.do("send", "room", "hello")
    assert len(server.requests) == 1


async def test_a_refused_retry_after_an_unknown_try_keeps_the_id(client: Either, server: FakeImray) -> None:
    server.script.extend([LOSE_ANSWER, (401, {"detail": "expired"})])
    with pytest.raises(UnknownOutcomeError, match="expired") as e:
        await client.do("send", "room", "hello", client_msg_id=ID)
    assert e.value.client_msg_ids == (ID,)


async def test_an_answer_that_is_not_imrays(client: Either, server: FakeImray) -> None:
    server.script.extend([(200, b"<html>"), (200, {"conv_id": "room"})])
    for _ in range(2):
        with pytest.raises(ServerError, match="not that of an imray server") as e:
            await client.do("send", "room", "hello", client_msg_id=ID)
        assert e.value.client_msg_ids == (ID,)


async def test_batch_retries_only_the_open_ones(client: Either, server: FakeImray) -> None:
    server.batch_statuses.extend([[201, 503, 504, 409], [503, 201]])
    messages = [Outgoing("a", "1"), {"conv_id": "a", "body": "2"}, Outgoing("b", "3"), Outgoing("b", "4")]
    outcomes = await client.do("send_batch", messages)
    assert [o.status for o in outcomes] == [201, 201, 201, 409]
    assert [o.stored for o in outcomes] == [True, True, True, False]
    sent = [[(m["body"], m["client_msg_id"]) for m in r[3]["messages"]] for r in server.requests]
    assert [[body for body, _ in request] for request in sent] == [["1", "2", "3", "4"], ["2", "3"], ["2"]]
    assert len({msg_id for request in sent for _, msg_id in request}) == 4
    assert [o.client_msg_id for o in outcomes] == [msg_id for _, msg_id in sent[0]]


async def test_batch_at_the_deadline_tells_what_is_known(client: Either, server: FakeImray) -> None:
    server.batch_statuses.append([201, 504])
    server.script.extend([None, (503, {}, {"retry-after": "60"})])
    with pytest.raises(UnknownOutcomeError) as e:
        await client.do("send_batch", [Outgoing("a", "1"), Outgoing("a", "2", ID)])
    assert e.value.client_msg_ids == (ID,)
    assert [o.status for o in e.value.outcomes] == [201, 504]


async def test_an_empty_batch_asks_nobody(client: Either, server: FakeImray) -> None:
    assert await client.do("send_batch", []) == []
    assert server.requests == []


async def test_history_page_by_page(client: Either, server: FakeImray) -> None:
    for n in range(5):
        await client.do("send", "room", str(n))
    server.stored["room"][2] |= {"body": None, "body_base64": "/w=="}
    pages = await client.pages("room", limit=2)
    assert [[m.body for m in page.messages] for page in pages] == [["0", "1"], [b"\xff", "3"], ["4"]]
    assert pages[0].holes[0].reason == "lost grant"
    backwards = await client.pages("room", after=1, before=5, limit=2, order="desc")
    assert [[m.conv_seq for m in page.messages] for page in backwards] == [[4, 3], [2]]


async def test_version_and_ready(client: Either) -> None:
    assert (await client.do("version")).shards == 8
    ready = await client.do("ready")
    assert (ready.ready, ready.shards) == (False, {"3": "recovering"})
