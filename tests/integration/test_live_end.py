"""Listeners that do not read, peers that are gone, and gateways that end. Each costs its neighbours nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_client import CONV, every_item, joined
from tests.support.live_system import LiveServer, batch_of, token_of
from tests.support.process import until

MB = 1024 * 1024


@pytest.fixture(autouse=True)
def _no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def raw_listener(server: LiveServer, read_buffer: int = 4096) -> socket.socket:
    """A listener that has subscribed by the time that this returns, and reads what its test reads."""
    raw = socket.socket()
    raw.settimeout(20)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_buffer)
    raw.connect(("127.0.0.1", server.port))
    head = (
        "GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token_of('slow')}\r\n\r\n"
    )
    raw.sendall(head.encode())
    item = b'[{"t":"subscribe","ref":1,"conv_id":"c","after":3}]'
    heard = b""
    while b"welcome" not in heard:
        heard += raw.recv(4096)
    raw.sendall(bytes((0x81, 0x80 | len(item), 0, 0, 0, 0)) + item)
    while b"subscribed" not in heard:
        heard += raw.recv(4096)
    return raw


def unsent_of(server: LiveServer) -> int:
    """What waits for all connections of the server."""
    return server.call(
        lambda: sum(one.transport.get_write_buffer_size() for one in server.server.server_state.connections)
    )


def test_a_slow_listener_is_bounded_and_its_neighbour_gets_everything(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as running, joined(running, "fast") as fast, raw_listener(running) as slow:
        fast.ask({**every_item()["subscribe"], "after": 3})
        body = b"x" * 10_000
        for at in range(1000):
            running.publish(batch_of(CONV, 3 + at, [body]))
            heard = fast.hear()
            assert (heard["after"], heard["upto"]) == (3 + at, 4 + at)
        assert unsent_of(running) <= running.settings.listener_queue_bytes_max
        refused = len(running.engine.feeds.refused)
        assert 300 < refused < 1000, "the kernel takes some megabytes, and the queue one"
        assert running.engine.feeds.resumed == []
        received = 0
        while running.call(lambda: not running.engine.feeds.resumed):
            received += len(slow.recv(MB))
        until(lambda: unsent_of(running) < running.settings.listener_queue_bytes_max // 2, "it reads on", 5)
        running.publish(batch_of(CONV, 1003, [body]))
        assert len(running.engine.feeds.refused) == refused, "there is room again"


def test_who_gives_no_sign_of_life_is_closed_and_who_answers_pings_stays(tmp_path: Path) -> None:
    with (
        LiveServer(tmp_path, live_ping_interval_s=0.4) as running,
        joined(running, "alive", ping_interval=None) as alive,
        raw_listener(running) as dead,
    ):
        began = time.monotonic()
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := dead.recv(4096):
                heard += chunk
        assert b"\x89\x00" in heard, "it was pinged"
        assert 0.7 < time.monotonic() - began < 5
        # the library answers pings by itself
        with pytest.raises(TimeoutError):
            alive.hear(timeout_s=1.2)
        assert alive.ask(every_item()["ping"])["t"] == "pong"


def test_who_reads_nothing_while_much_waits_is_closed(tmp_path: Path) -> None:
    settings = {"live_ping_interval_s": 0.4, "listener_queue_bytes_max": 4 * MB}
    with LiveServer(tmp_path, **settings) as running, raw_listener(running):
        for at in range(300):
            running.publish(batch_of(CONV, 3 + at, [b"x" * 20_000]))
        assert unsent_of(running) > MB
        until(lambda: running.app._limits.connections == 0, "it is closed", 5)
        assert running.call(lambda: not any(running.engine.feeds.listeners.values()))


def test_who_reads_slowly_but_steadily_is_not_closed(tmp_path: Path) -> None:
    settings = {"live_ping_interval_s": 0.4, "listener_queue_bytes_max": 4 * MB}
    with LiveServer(tmp_path, **settings) as running, raw_listener(running, 65_536) as slow:
        for at in range(300):
            running.publish(batch_of(CONV, 3 + at, [b"x" * 20_000]))
        began = time.monotonic()
        while time.monotonic() - began < 2.0:
            assert slow.recv(20_000)
            time.sleep(0.02)
        assert running.app._limits.connections == 1


def test_a_gateway_that_ends_deals_its_connections_moments_and_ends_in_time(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        running = opened.enter_context(LiveServer(tmp_path))
        clients = [opened.enter_context(joined(running, f"user {at}")) for at in range(20)]
        deaf = opened.enter_context(raw_listener(running))
        began = time.monotonic()
        running.stop()
        moments = []
        for client in clients:
            drain = client.hear()
            assert drain["t"] == "drain"
            moments.append(drain["reconnect_in_s"])
            assert client.end() == (1001, [])
        assert all(0.5 <= moment <= running.settings.live_reconnect_s_max for moment in moments)
        assert len(set(moments)) > 15
        running.join()
        assert time.monotonic() - began < 8, "one that does not answer the close frame holds nobody up"
        deaf.close()


def test_what_was_sent_before_the_end_is_answered(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as running, joined(running) as client:
        send = running.engine.send
        gate = asyncio.Event()

        async def late(one: object) -> object:
            await gate.wait()
            return await send(one)

        running.engine.send = late
        client.say(every_item()["send"])
        client.say(every_item()["ping"])
        assert client.hear()["t"] == "pong"
        running.stop()
        assert client.hear()["t"] == "drain"
        running.call(gate.set)
        code, told = client.end()
        assert (code, [item["t"] for item in told]) == (1001, ["ack"])
