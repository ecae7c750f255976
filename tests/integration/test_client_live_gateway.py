"""The live client against the gateway's real server: both sides of the contract, in each format."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imray.client import AsyncLive, AuthError, LiveSignal
from imray.client.live_wire import FORMATS
from imray.engine.listening import Behind, Ended, EndReason, Notice
from tests.support.live_callers import QUICK, RETRY, WAIT_S, some
from tests.support.live_system import MEMBER, PRIVATE, LiveServer, batch_of, token_of


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(tmp_path, live_reconnect_s_max=0.6) as running:
        yield running


@pytest.fixture(params=list(FORMATS))
def spoken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("imray.client.live_socket.FORMATS", {request.param: FORMATS[request.param]})
    return str(request.param)


def live_of(gateway: LiveServer, sender: str = "ada") -> AsyncLive:
    return AsyncLive(gateway.http, token_of(sender), config=QUICK, retry=RETRY, timeout_s=10)


async def until_listening(gateway: LiveServer, conv_id: str, count: int = 1) -> None:
    """So many listen, and messages flow to them."""

    def look() -> None:
        deadline = time.monotonic() + WAIT_S
        while gateway.call(lambda: sum(gateway.engine.feeds.listeners.get(conv_id, {}).values())) != count:
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.005)  # the server's thread tells nobody

    await asyncio.to_thread(look)


def notice_and_forget(gateway: LiveServer, notice: Notice) -> None:
    """Who listens from then on has subscribed again."""
    gateway.engine.feeds.notice(notice)
    gateway.engine.feeds.listeners.clear()


async def test_messages_come_in_order_over_behind_and_unavailable(gateway: LiveServer, spoken: str) -> None:
    async with live_of(gateway) as live:
        follower = live.follow("tea", 0)
        await until_listening(gateway, "tea")
        gateway.publish(batch_of("tea", 0, ["ünï".encode(), b"m2"]))
        assert await some(follower, 2) == ["1 ünï", "2 m2"]
        gateway.call(lambda: notice_and_forget(gateway, Behind("tea", 2, 5)))
        await until_listening(gateway, "tea")
        gateway.publish(batch_of("tea", 2, [b"m3", b"\xff\xfe"]))
        assert await some(follower, 2) == ["3 m3", r"4 b'\xff\xfe'"]
        gateway.call(lambda: notice_and_forget(gateway, Ended("tea", 4, EndReason.UNAVAILABLE)))
        await until_listening(gateway, "tea")
        gateway.publish(batch_of("tea", 4, [b"m5"]))
        assert await some(follower, 1) == ["5 m5"]


async def test_sends_pulls_read_marks(gateway: LiveServer, spoken: str) -> None:
    async with live_of(gateway) as live:
        ack = await live.send("tea", "hello", content_type="text/plain", topic="t", client_ts=1)
        assert ack.conv_seq == 1
        assert not ack.duplicate
        page = await live.pull("tea", limit=3, topic="t")
        assert [m.conv_seq for m in page.messages] == [1, 2, 3]
        await live.read("tea", 3)
        assert gateway.engine.members.marks == [("tea", "ada", 3)]


async def test_signals_reach_the_others(gateway: LiveServer, spoken: str) -> None:
    came = asyncio.Event()
    signals: list[LiveSignal] = []

    def note(signal: LiveSignal) -> None:
        signals.append(signal)
        came.set()

    async with live_of(gateway, "ada") as ada, live_of(gateway, "bob") as bob:
        ada.follow("tea", 0, on_signal=note)
        bob.follow("tea", 0)
        await until_listening(gateway, "tea", 2)
        assert bob.signal("tea", "typing", {"on": [1, "x", None]})
        async with asyncio.timeout(WAIT_S):
            await came.wait()
    assert signals == [LiveSignal("tea", "bob", "typing", {"on": [1, "x", None]})]


async def test_who_may_not_listen_is_told_so(gateway: LiveServer, spoken: str) -> None:
    async with live_of(gateway, "eve") as eve, live_of(gateway, MEMBER) as member:
        with pytest.raises(AuthError, match="only members"):
            await some(eve.follow(PRIVATE, 0), 1)
        follower = member.follow(PRIVATE, 0)
        await until_listening(gateway, PRIVATE)
        gateway.publish(batch_of(PRIVATE, 0, [b"m1"]))
        gateway.call(lambda: gateway.engine.feeds.notice(Ended(PRIVATE, 1, EndReason.REMOVED)))
        assert await some(follower, 1) == ["1 m1"]
        with pytest.raises(AuthError, match="removed"):
            await some(follower, 1)


async def test_a_token_that_is_not_taken_is_said_so(gateway: LiveServer, spoken: str) -> None:
    async with AsyncLive(gateway.http, token_of("ada", key=b"x" * 32), config=QUICK) as live:
        with pytest.raises(AuthError):
            await live.send("tea", "x")


async def test_a_gateway_that_ends_is_left_and_another_one_goes_on(gateway: LiveServer, tmp_path: Path) -> None:
    async with live_of(gateway) as live:
        follower = live.follow("tea", 0)
        await until_listening(gateway, "tea")
        gateway.publish(batch_of("tea", 0, [b"m1"]))
        assert await some(follower, 1) == ["1 m1"]
        gateway.stop()
        folder = tmp_path / "next"
        folder.mkdir()
        with LiveServer(folder) as successor:
            live._driver._base = live._driver._base.copy_with(port=successor.port)
            await until_listening(successor, "tea")
            successor.publish(batch_of("tea", 1, [b"m2"]))
            assert await some(follower, 1) == ["2 m2"]
