"""The blocking live client: the same server, from a thread without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from imray.client import AsyncClient, AuthError, Client, Hole, Live, LiveSignal, Message, UnavailableError
from tests.support.live_callers import QUICK, RETRY, WAIT_S, expected, live_of, some, written
from tests.support.live_server import LiveServer, live_server


class Running:
    """A server in a thread of its own, and a way to have something done there."""

    def __init__(self) -> None:
        self.server = LiveServer()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    async def _serve(self) -> None:
        async with live_server(self.server):
            self._ready.set()
            await self._ended.wait()

    def append(self, *bodies: str, conv_id: str = "tea") -> None:
        for body in bodies:
            self._loop.call_soon_threadsafe(self.server.append, conv_id, body)

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self.server.cut)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self._loop.close()


@pytest.fixture
def running() -> Iterator[Running]:
    started = Running()
    yield started
    started.stop()


@pytest.fixture
def live(running: Running) -> Iterator[Live]:
    with Live(running.server.url, "me", retry=RETRY, config=QUICK, timeout_s=10) as client:
        yield client


def test_follow_goes_on_over_cuts(running: Running, live: Live) -> None:
    running.append(*(f"m{n}" for n in range(1, 31)))
    follower = live.follow("tea", 0)
    assert [written(item) for item in islice(follower, 10)] == expected(1, 10)
    assert follower.last_shown == 10
    running.cut()
    running.append("m31")
    assert [written(item) for item in islice(follower, 21)] == expected(11, 31)
    assert follower.last_shown == 31


def test_each_calls_back_in_the_callers_thread(running: Running, live: Live) -> None:
    running.append("m1", "m2", "m3")
    taken: list[str] = []
    follower = live.follow("tea", 1)

    def take(item: Message | Hole) -> None:
        assert threading.current_thread() is here
        taken.append(written(item))
        if len(taken) == 2:
            follower.close()

    here = threading.current_thread()
    follower.each(take)
    assert taken == expected(2, 3)


def test_threads_share_a_connection(running: Running, live: Live) -> None:
    with ThreadPoolExecutor(8) as pool:
        acks = list(pool.map(lambda n: live.send("tea", f"m{n}"), range(200)))
    assert sorted(ack.conv_seq for ack in acks) == list(range(1, 201))
    assert running.server.accepted == 1


def test_pages_read_marks_heads_and_signals(running: Running, live: Live) -> None:
    running.append("m1", "m2")
    came = threading.Event()
    signals: list[LiveSignal] = []

    def note(signal: LiveSignal) -> None:
        signals.append(signal)
        came.set()

    with live.follow("tea", 1, on_signal=note) as follower:
        assert written(next(follower)) == "2 m2"
        assert [m.conv_seq for m in live.pull("tea").messages] == [1, 2]
        live.read("tea", 2)
        with Live(running.server.url, "bob", config=QUICK) as bob:
            bob.pull("tea")
            assert bob.signal("tea", "typing")
            assert came.wait(WAIT_S)
    assert signals == [LiveSignal("tea", "bob", "typing", None)]
    assert running.server.cursors == {"tea": 2}
    with live.watch("tea", 0) as watcher:
        assert next(watcher).unread == 2


def test_closing_ends_a_wait_in_another_thread(running: Running) -> None:
    live = Live(running.server.url, "me", config=QUICK)
    follower = live.follow("tea", 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: list(follower))
        live.pull("tea")
        live.close()
        assert waiting.result(WAIT_S) == []
    live.close()
    with pytest.raises(UnavailableError, match="closed"):
        live.send("tea", "x")
    assert "imray-live" not in {thread.name for thread in threading.enumerate()}


def test_errors_reach_the_caller(running: Running) -> None:
    running.server.token = "other"
    with Live(running.server.url, "me", config=QUICK) as live, pytest.raises(AuthError):
        next(live.follow("tea", 0))


def test_follow_is_on_the_client_itself(running: Running) -> None:
    running.append("m1", "m2")
    with Client(running.server.url, "me") as client:
        assert [written(item) for item in islice(client.follow("tea", 0), 2)] == expected(1, 2)
        assert client.live.send("tea", "m3").conv_seq == 3
    assert "imray-live" not in {thread.name for thread in threading.enumerate()}


async def test_follow_is_on_the_async_client_itself() -> None:
    async with live_server() as server, AsyncClient(server.url, "me") as client:
        server.append("tea", "m1")
        assert await some(client.follow("tea", 0), 1) == ["1 m1"]
        async with live_of(server) as other:
            await other.send("tea", "m2")
        assert await some(client.follow("tea", 1), 1) == ["2 m2"]
