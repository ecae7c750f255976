"""What goes wrong over a live connection and must end nothing else: frames that are malformed, no token, no welcome."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest

from imray.client import AsyncClient, AsyncLive, AuthError, InvalidError, LiveSignal, ServerError, UnavailableError
from imray.client.live_wire import FORMATS
from tests.support.live_callers import QUICK, WAIT_S, append, live_of, some
from tests.support.live_server import LiveServer, live_server


@pytest.fixture
async def server() -> AsyncIterator[LiveServer]:
    async with live_server() as running:
        yield running


@pytest.fixture
async def live(server: LiveServer) -> AsyncIterator[AsyncLive]:
    async with live_of(server) as client:
        yield client


def is_bad(item: dict[str, Any]) -> bool:
    return item.get("body") == "bad"


async def test_a_malformed_send_fails_alone_and_nobody_else_notices(server: LiveServer, live: AsyncLive) -> None:
    server.malformed = is_bad
    follower = live.follow("tea", 0)
    asked = [live.send("tea", body) for body in ("m1", "m2", "bad", "m3", "bad", "m4")]
    async with asyncio.timeout(WAIT_S):
        done = await asyncio.gather(*asked, live.pull("tea"), return_exceptions=True)
    assert [type(answer).__name__ for answer in done] == [
        *("Ack", "Ack", "InvalidError", "Ack", "InvalidError", "Ack", "HistoryPage"),
    ]
    assert "not valid" in str(done[2])
    assert sorted(item.split()[1] for item in await some(follower, 4)) == ["m1", "m2", "m3", "m4"]
    assert (await live.send("tea", "m5")).conv_seq == 5


async def test_who_asks_while_it_is_looked_into_gets_an_answer(server: LiveServer, live: AsyncLive) -> None:
    server.malformed = is_bad
    bad = [asyncio.create_task(live.send("tea", "bad")) for _ in range(3)]
    async with asyncio.timeout(WAIT_S):
        for n in range(20):
            assert (await live.send("tea", f"m{n + 1}")).conv_seq == n + 1
        for task in bad:
            with pytest.raises(InvalidError):
                await task


async def test_a_malformed_signal_costs_no_ask(server: LiveServer, live: AsyncLive) -> None:
    server.malformed = lambda item: item["t"] == "signal"
    await live.pull("tea")
    assert live.signal("tea", "typing")
    acks = await asyncio.gather(*(live.send("tea", f"m{n}") for n in range(5)))
    assert sorted(ack.conv_seq for ack in acks) == [1, 2, 3, 4, 5]


async def test_a_malformed_subscribe_ends_its_followers_only(server: LiveServer, live: AsyncLive) -> None:
    server.malformed = lambda item: item.get("conv_id") == "bad"
    other = live.follow("tea", 0)
    append(server, 1)
    assert await some(other, 1) == ["1 m1"]
    follower = live.follow("bad", 0)
    sending = asyncio.create_task(live.send("tea", "m2"))
    with pytest.raises(InvalidError, match="bad: not valid"):
        await some(follower, 1)
    assert (await sending).conv_seq == 2
    assert await some(other, 1) == ["2 m2"]


async def test_a_subscribe_that_is_not_valid_is_the_callers_fault(server: LiveServer, live: AsyncLive) -> None:
    server.forbidden.add("bad")
    server.forbidden_status = 422
    with pytest.raises(InvalidError, match="not yours") as e:
        await some(live.follow("bad", 0), 1)
    assert "imray server" not in str(e.value)
    await live.send("tea", "x")
    assert server.accepted == 1


async def test_an_error_is_a_fresh_one_each_time(server: LiveServer) -> None:
    server.token = "other"
    async with live_of(server) as live:
        follower = live.follow("tea", 0)
        depths = set()
        seen = set()
        for _ in range(5):
            for ask in (lambda: some(follower, 1), lambda: live.pull("tea"), follower.take):
                with pytest.raises(AuthError) as e:
                    await ask()
                seen.add(id(e.value))
                depths.add(len(traceback.extract_tb(e.value.__traceback__)))
                last = e.value
        assert max(depths) < 12
        assert last.__traceback__ is not None


async def test_without_a_token_it_says_so(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMRAY_TOKEN", raising=False)
    async with AsyncClient(server.url) as client:
        with pytest.raises(AuthError, match="IMRAY_TOKEN"):
            client.follow("tea", 0)
        with pytest.raises(AuthError, match="IMRAY_TOKEN"):
            await client.live.send("tea", "x")
    assert server.accepted == 0


async def test_a_connection_without_a_welcome_ends_who_follows(server: LiveServer) -> None:
    server.lose["welcome"] = 1_000_000
    async with live_of(server, timeout_s=0.3) as live:
        for follower in (live.follow("tea", 0), live.watch("milk")):
            with pytest.raises(UnavailableError, match=r"no welcome within 0\.3 s"):
                async with asyncio.timeout(WAIT_S):
                    await follower.take()
        server.lose.clear()
        server.cut()
        append(server, 1)
        assert await some(live.follow("tea", 0), 1) == ["1 m1"]


async def test_once_welcomed_it_waits(server: LiveServer) -> None:
    async with live_of(server, timeout_s=0.1) as live:
        follower = live.follow("tea", 0)
        append(server, 1)
        assert await some(follower, 1) == ["1 m1"]
        server.lose["welcome"] = 1
        server.cut()
        await server.until(lambda: server.accepted == 2)
        await asyncio.sleep(0.3)
        server.cut()
        append(server, 1)
        assert await some(follower, 1) == ["2 m2"]


async def test_tries_without_a_server_are_counted() -> None:
    async with AsyncLive("http://127.0.0.1:9", "me", config=QUICK, timeout_s=0.5) as live:
        with pytest.raises(
            UnavailableError, match=r"no answer within 0\.5 s, ([2-9]|\d\d+) tries; the last: ConnectionRefused"
        ):
            await live.pull("tea")


async def test_a_try_that_was_cut_counts_once(server: LiveServer) -> None:
    async with live_of(server, timeout_s=0.5) as live:
        await live.pull("tea")
        server.is_silent = True
        with pytest.raises(UnavailableError, match=r"within 0\.5 s, 1 tries; the last: no answer yet"):
            await live.read("tea", 1)


async def test_what_is_no_server_is_named(server: LiveServer) -> None:
    url = server.url.replace("http://", "http://me:secret@") + "/foo"
    async with AsyncLive(url, "me", config=QUICK) as live:
        with pytest.raises(ServerError, match=rf"{server.url}/foo: status 404") as e:
            await live.pull("tea")
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("name", list(FORMATS))
async def test_a_deeply_nested_signal_ends_nothing(
    server: LiveServer, live: AsyncLive, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imray.client.live_socket.FORMATS", {name: FORMATS[name]})
    signals: list[LiveSignal] = []
    follower = live.follow("tea", 0, on_signal=signals.append)
    append(server, 1)
    assert await some(follower, 1) == ["1 m1"]
    depth = 100_000
    nested = b"[" * depth + b"]" * depth if name == "imray.v1.json" else b"\x91" * depth + b"\xc0"
    spoken = FORMATS[name]
    (connection,) = server.connections
    head = spoken.encoded({"t": "signal", "conv_id": "tea", "kind": "k", "sender": "eve", "data": None})
    deep = head[:-5] + nested + b"}" if spoken.is_text else head[:-1] + nested
    await connection.socket.send(spoken.frame_of([deep]))
    append(server, 1)
    assert await some(follower, 1) == ["2 m2"]
    assert (await live.send("tea", "m3")).conv_seq == 3
