"""Clients that leave at bad moments, flood, or do not read: none keeps anything of a gateway, or stops its loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.frames import Frame, Opcode

from tests.support.live_client import joined
from tests.support.live_system import LiveServer, token_of
from tests.support.process import until

UPGRADE = (
    "GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
_STALL_S_MAX = 0.25


def _follow(server: LiveServer, name: str) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = f"GET /v1/conversations/{name}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token_of('ada')}\r\n\r\n"
    raw.sendall(head.encode())
    return raw


def _tasks(server: LiveServer) -> int:
    return len(server.server.server_state.tasks)


def _listeners(server: LiveServer) -> int:
    return sum(map(len, server.engine.feeds.listeners.values()))


def test_streams_of_clients_that_left_while_they_were_made_end(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        feeds = server.engine.feeds
        server.call(feeds.gate.clear)
        leaving = [_follow(server, f"x{i}") for i in range(20)]
        stays = _follow(server, "x")
        until(lambda: _tasks(server) == 21, "all are being made", 5)
        for raw in leaving:
            raw.close()
        until(lambda: len(server.server.server_state.connections) == 1, "they are gone", 5)
        server.call(feeds.gate.set)
        until(lambda: _tasks(server) == 1, "their streams have ended", 5)
        assert server.call(lambda: _listeners(server)) == 1
        assert stays.recv(100).startswith(b"HTTP/1.1 200 ")
        stays.close()
        until(lambda: _tasks(server) == 0, "and the last one", 5)


@pytest.mark.parametrize("steps", range(6))
def test_a_stream_ends_at_whichever_step_its_client_leaves(tmp_path: Path, steps: int) -> None:
    with LiveServer(tmp_path) as server:
        feeds = server.engine.feeds
        server.call(feeds.gate.clear)
        raw = _follow(server, "x")
        until(lambda: _tasks(server) == 1, "it is being made", 5)

        async def leave() -> None:
            feeds.gate.set()
            for _ in range(steps):
                await asyncio.sleep(0)
            for connection in list(server.server.server_state.connections):
                connection.transport.abort()

        server.wait(leave())
        until(lambda: _tasks(server) == 0, "it has ended", 5)
        assert server.call(lambda: _listeners(server)) == 0
        raw.close()


def test_a_stream_that_is_made_while_the_server_ends_ends_too(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        feeds = server.engine.feeds
        server.call(feeds.gate.clear)
        raw = _follow(server, "x")
        until(lambda: _tasks(server) == 1, "it is being made", 5)
        server.stop()
        time.sleep(0.3)
        server.call(feeds.gate.set)
        heard = b""
        while chunk := raw.recv(65536):
            heard += chunk
        assert b"retry: " in heard
        server.join()


def test_a_blocked_transport_does_not_become_a_websocket(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(10)
        raw.connect(("127.0.0.1", server.port))

        until(lambda: server.server.server_state.connections, "it is connected", 5)

        def connection() -> Any:
            (found,) = server.server.server_state.connections
            return found

        for _ in range(400):
            before = connection()._running

            def answered(before: Any = before) -> bool:
                running = connection()._running
                return running is not before and running.response_complete

            raw.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            until(answered, "it is answered", 5)
            if connection().flow.write_paused:
                break
        assert connection().flow.write_paused
        raw.sendall(UPGRADE.encode())
        time.sleep(0.3)
        assert type(connection()).__name__ == "BoundProtocol"
        heard = b""
        while b"HTTP/1.1 426 " not in heard:
            chunk = raw.recv(65536)
            assert chunk
            heard = heard[-20:] + chunk
        raw.close()


async def _longest_stall(over: asyncio.Event) -> float:
    longest_s = 0.0
    while not over.is_set():
        began = time.perf_counter()
        await asyncio.sleep(0.002)
        longest_s = max(longest_s, time.perf_counter() - began)
    return longest_s


@pytest.mark.parametrize("kind", ["pings", "parts", "items"])
def test_a_flood_does_not_stop_the_event_loop(tmp_path: Path, kind: str) -> None:
    part = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)
    item = Frame(Opcode.TEXT, b'[{"t":"unsubscribe","ref":1,"conv_id":"c"}]').serialize(mask=True)
    frame = {"pings": Frame(Opcode.PING, b"").serialize(mask=True), "parts": part, "items": item}[kind]
    with LiveServer(tmp_path) as server:
        over = asyncio.Event()
        measured = asyncio.run_coroutine_threadsafe(_longest_stall(over), server.loop)
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        token = f'[{{"t":"auth","token":"{token_of("ada")}"}}]'.encode() if kind == "items" else b""
        raw.sendall(UPGRADE.encode() + Frame(Opcode.TEXT, token, fin=bool(token)).serialize(mask=True))
        raw.setblocking(False)
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            try:
                raw.send(frame * 50_000)
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                break
        assert httpx.get(f"{server.http}/livez", timeout=10).status_code == 200
        raw.close()
        server.call(over.set)
        assert measured.result(10) < _STALL_S_MAX


def test_strangers_do_not_fill_the_log(tmp_path: Path) -> None:
    records: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    with LiveServer(tmp_path) as server:
        handler = Kept()
        logging.getLogger("uvicorn.error").addHandler(handler)
        try:
            for said in (
                b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
                b"\x16\x03\x01 nonsense\r\n\r\n",
                UPGRADE.replace("websocket", "nothing").encode(),
            ):
                with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
                    raw.sendall(said)
                    assert raw.recv(100).startswith(b"HTTP/1.1 ")
        finally:
            logging.getLogger("uvicorn.error").removeHandler(handler)
    assert records == []


def test_streams_of_a_caller_have_a_rate(tmp_path: Path) -> None:
    with LiveServer(tmp_path, live_subscribes_per_s=0.1, live_subscribes_burst=2) as server:
        streams = [_follow(server, "x") for _ in range(2)]
        for stream in streams:
            assert stream.recv(100).startswith(b"HTTP/1.1 200 ")
        headers = {"Authorization": f"Bearer {token_of('ada')}"}
        refused = httpx.get(f"{server.http}/v1/conversations/x/events", headers=headers, timeout=10)
        assert (refused.status_code, int(refused.headers["retry-after"]) > 5) == (429, True)
        with joined(server) as client:
            assert client.ask({"t": "subscribe", "ref": 1, "conv_id": "x"})["status"] == 429, "over all its connections"
        for stream in streams:
            stream.close()
