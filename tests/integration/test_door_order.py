"""Answers stay with their requests, and what a connection is counted for with the request that it belongs to."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.support.door_client import answer, get, post, read_all
from tests.support.door_server import DoorServer
from tests.support.process import until

_LINES = b"a: b\r\n"
_STRANGE_TARGETS = (b"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", b"GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n")


class Held:
    """An app whose answers to POST wait until they are let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Event()
        self.headers: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await Request(scope, receive).body()
            self.headers = [name for name, _ in scope["headers"]]
            self.begun += 1
            await asyncio.to_thread(self.go_on.wait, 20)  # the test has a thread of its own
        await Response(b"done", media_type="text/plain")(scope, receive, send)


def _held(body: bytes) -> bytes:
    return b"POST /held HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def test_a_request_in_work_has_its_own_answer_whatever_follows_it() -> None:
    for strange in _STRANGE_TARGETS:
        app = Held()
        with DoorServer(app) as running, running.connect() as raw:
            raw.sendall(_held(b"x"))
            until(lambda app=app: app.begun == 1, "the request is in work", 5)
            raw.sendall(strange)
            app.go_on.set()
            said = read_all(raw)
        assert said.startswith(b"HTTP/1.1 200 "), said[:200]
        assert said.count(b"HTTP/1.1 ") <= 2


def test_lines_after_a_body_are_no_headers_and_are_bounded() -> None:
    chunked = b"POST /held HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    app = Held()
    app.go_on.set()
    with DoorServer(app) as running:
        with running.connect() as raw:
            raw.sendall(chunked + b"Authorization: Bearer late\r\n\r\n")
            assert answer(raw)[0] == 200
        assert b"authorization" not in app.headers
        with running.connect() as raw, contextlib.suppress(ConnectionResetError):
            raw.sendall(chunked + _LINES * 5000)
            assert b" 431 " in read_all(raw).split(b"\r\n")[0]


def test_a_body_behind_another_request_stays_counted_until_its_own_answer() -> None:
    app = Held()
    with DoorServer(app) as running, running.connect() as raw:
        raw.sendall(_held(b"a" * 1000))
        until(lambda: app.begun == 1, "the first is in work", 5)
        raw.sendall(_held(b"b" * 3000)[:-1])
        until(lambda: running.limits.bytes == 3999, "both bodies are counted", 5)
        app.go_on.set()
        assert answer(raw)[0] == 200
        until(lambda: running.limits.bytes == 2999, "the second still is", 5)
        raw.sendall(b"b")
        assert answer(raw)[0] == 200
        until(lambda: running.limits.bytes == 0, "nothing is held", 5)


_LIVE = b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"


def test_idle_connections_without_a_token_make_room() -> None:
    """Whoever asks for health once on each of all places keeps nobody out."""
    with DoorServer(connections_per_peer_max=100, connections_max=8) as running, contextlib.ExitStack() as open_ones:
        for n in range(8):
            raw = open_ones.enter_context(running.connect(source=f"127.0.0.{2 + n}"))
            raw.sendall(_LIVE)
            assert answer(raw)[0] == 200
        with running.connect(source="127.0.0.99") as honest:
            honest.sendall(post(b"abc"))
            assert answer(honest)[0] == 200
            for _ in range(9):
                raw = open_ones.enter_context(running.connect(source="127.0.0.50"))
                raw.sendall(_LIVE)
                assert answer(raw)[0] == 200
            honest.sendall(get())
            assert answer(honest)[0] == 200, "who showed a token stays"
