"""Server-Sent Events of a running gateway."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import orjson
import pytest

from imray.engine.listening import Behind, Ended, EndReason, HeadMoved
from tests.support.api_system import KEY
from tests.support.live_client import CONV
from tests.support.live_system import PRIVATE, READER, STRANGER, LiveServer, batch_of, token_of
from tests.support.process import until

MB = 1024 * 1024


@pytest.fixture(autouse=True)
def _no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(tmp_path) as running:
        yield running


class Follower:
    """Reads events."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._chunks = answer.iter_raw()
        self._data = b""

    def next(self) -> dict[str, str]:
        """The next event, or comment under ""; StopIteration: the stream has ended."""
        while b"\n\n" not in self._data:
            self._data += next(self._chunks)
        event, _, self._data = self._data.partition(b"\n\n")
        lines = [line.partition(":") for line in event.decode().split("\n")]
        return {name: value.strip() for name, _, value in lines}

    def rest(self) -> list[dict[str, str]]:
        """All events up to the stream's end."""
        found = []
        with contextlib.suppress(StopIteration):
            while True:
                found.append(self.next())
        return found

    def event(self) -> tuple[str, str | None, Any]:
        """The next event that is no comment: its name, its id, its data."""
        while True:
            found = self.next()
            if "data" in found:
                return found["event"], found.get("id"), orjson.loads(found["data"])


@contextlib.contextmanager
def following(
    server: LiveServer, query: str = "", conv_id: str = CONV, sender: str = "ada", token: str = "", **headers: str
) -> Iterator[Follower]:
    url = f"{server.http}/v1/conversations/{conv_id}/events{query}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    known = {"Authorization": f"Bearer {token or token_of(sender)}", **named}
    with httpx.stream("GET", url, headers=known, timeout=10) as answer:
        if answer.status_code != 200:
            answer.read()
        yield Follower(answer)


def test_events_carry_messages_and_where_to_go_on(server: LiveServer) -> None:
    with following(server, "?after=3") as stream:
        assert stream.answer.headers["content-type"] == "text/event-stream"
        assert stream.next() == {"": ""}, "a comment at once"
        server.publish(batch_of(CONV, 3, [b"one\ntwo", b"\xff"]))
        name, at, data = stream.event()
        assert (name, at, data["t"], data["upto"]) == ("messages", "5", "messages", 5)
        assert [message.get("body") for message in data["messages"]] == ["one\ntwo", None]
        server.call(lambda: server.engine.feeds.notice(HeadMoved(CONV, 9, 1)))
        server.call(lambda: server.engine.feeds.notice(Behind(CONV, 5, 9)))
        assert stream.event() == ("behind", None, {"t": "behind", "conv_id": CONV, "after": 5, "head": 9})
        server.call(lambda: server.engine.feeds.notice(Ended(CONV, 9, EndReason.REMOVED)))
        assert stream.event()[0] == "ended"
        with pytest.raises(StopIteration):
            stream.event()
    until(lambda: len(server.engine.feeds.left) == 1, "it has left", 5)


@pytest.mark.parametrize(
    ("query", "headers", "after"),
    [
        ("", {}, None),
        ("?after=7", {}, 7),
        ("?after=7", {"Last_Event_ID": "9"}, 9),
        ("?after=7", {"Last_Event_ID": ""}, 7),
    ],
)
def test_a_browser_that_comes_back_goes_on_where_it_was(
    server: LiveServer, query: str, headers: dict[str, str], after: int | None
) -> None:
    asked = []
    subscribe = server.engine.feeds.subscribe

    async def noted(listener: Any, conv_id: str, position: int | None, passive: bool) -> Any:
        asked.append((position, passive))
        return await subscribe(listener, conv_id, position, passive)

    server.engine.feeds.subscribe = noted
    with following(server, query, **headers) as stream:
        stream.next()
    assert asked == [(after, False)]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?after=-1", {}, 422),
        ("?after=1.5", {}, 422),
        ("?after=9223372036854775808", {}, 422),
        ("?after=" + "9" * 5000, {}, 422),
        ("?before=1", {}, 422),
        ("", {"Last_Event_ID": "x"}, 422),
        ("", {"Authorization": "Bearer x"}, 401),
    ],
)
def test_what_is_wrong_is_refused_as_a_problem(
    server: LiveServer, query: str, headers: dict[str, str], status: int
) -> None:
    with following(server, query, **headers) as stream:
        assert stream.answer.status_code == status
        assert stream.answer.json()["status"] == status
    assert server.engine.feeds.listeners.get(CONV, {}) == {}


def test_members_follow_and_strangers_do_not(server: LiveServer) -> None:
    with following(server, conv_id=PRIVATE, sender=STRANGER) as stream:
        assert stream.answer.status_code == 403
    with following(server, conv_id=PRIVATE, sender=READER) as stream:
        assert stream.next() == {"": ""}
    until(lambda: len(server.engine.feeds.left) == 2, "both have left", 5)


def test_an_idle_stream_gets_comments_and_meets_no_deadline(tmp_path: Path) -> None:
    deadlines = {"header_deadline_s": 0.2, "request_deadline_s": 0.2, "write_deadline_s": 0.2}
    with LiveServer(tmp_path, live_ping_interval_s=0.15, **deadlines) as running, following(running) as stream:
        began = time.monotonic()
        for at in range(8):
            assert stream.next() == {"": ""}
            running.publish(batch_of(CONV, 3 + at, [b"x"]))
            assert stream.event()[0] == "messages"
        assert time.monotonic() - began > 0.9
        assert sorted(running.app._limits.callers()) == ["peer 127.0.0.1", "subject ada"]
        assert running.app._limits.connections == 1


def test_a_stream_ends_with_its_token(server: LiveServer) -> None:
    # whole seconds, as they are compared: with the ten that clocks may differ it lives for two to three more
    token = jwt.encode({"sub": "ada", "exp": int(time.time()) - 7}, KEY, algorithm="HS256")
    with following(server, token=token) as stream:
        began = time.monotonic()
        assert {comment for event in stream.rest() for comment in event} == {""}
        assert time.monotonic() - began < 8


def test_a_stream_ends_with_the_server_and_says_when_to_come_back(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        running = opened.enter_context(LiveServer(tmp_path))
        streams = [opened.enter_context(following(running, sender=f"user {at}")) for at in range(5)]
        for stream in streams:
            stream.next()
        running.stop()
        moments = set()
        for stream in streams:
            moments.add(int(stream.next()["retry"]))
            with pytest.raises(StopIteration):
                stream.next()
        running.join()
    assert len(moments) > 2
    assert all(500 <= moment <= 15_000 for moment in moments)


def _slow(running: LiveServer) -> socket.socket:
    raw = socket.socket()
    raw.settimeout(20)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", running.port))
    head = (
        f"GET /v1/conversations/{CONV}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token_of('slow')}\r\n\r\n"
    )
    raw.sendall(head.encode())
    heard = b""
    while b":\n\n" not in heard:
        heard += raw.recv(4096)
    return raw


def test_who_does_not_read_its_stream_is_bounded_and_cut_off(tmp_path: Path) -> None:
    with LiveServer(tmp_path, write_deadline_s=1.0) as running, _slow(running):
        feeds = running.engine.feeds
        for at in range(600):
            running.publish(batch_of(CONV, 3 + at, [b"x" * 10_000]))
        # what the kernel takes, what one write has, and the queue
        assert len(feeds.refused) > 100
        until(lambda: running.app._limits.connections == 0, "it is cut off", 10)
        assert running.call(lambda: feeds.listeners[CONV]) == {}


def test_who_has_read_on_is_told_more(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as running, _slow(running) as slow:
        feeds = running.engine.feeds
        for at in range(600):
            running.publish(batch_of(CONV, 3 + at, [b"x" * 10_000]))
        assert feeds.resumed == []
        while not feeds.resumed:
            assert slow.recv(MB)
        before = len(feeds.refused)
        running.publish(batch_of(CONV, 700, [b"x"]))
        assert len(feeds.refused) == before
