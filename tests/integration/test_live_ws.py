"""The WebSocket of a running gateway: who may open one, who may say what, and how each ends."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from api.live_formats import JSON, MSGPACK, Format
from tests.support.api_system import KEY, page_of
from tests.support.live_client import BOTH_FORMATS, CONV, every_item, joined
from tests.support.live_system import MEMBER, PRIVATE, READER, STRANGER, LiveBackend, LiveServer, batch_of, token_of
from tests.support.process import until

BOTH = pytest.mark.parametrize("spoken", BOTH_FORMATS, ids=["json", "msgpack"])
OTHER_KEY = b"o" * 32
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ANSWERS = {
    "send": "ack",
    "subscribe": "subscribed",
    "unsubscribe": "ok",
    "pull": "page",
    "read": "ok",
    "signal": "ok",
    "ping": "pong",
}


@pytest.fixture
def server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[LiveServer]:
    """With the real deadlines. Nothing that a client does may reach the log as an error."""
    with LiveServer(tmp_path) as running:
        yield running
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def expired(sender: str = "ada") -> str:
    return token_of(sender, lifetime_s=-60)


def expiring(sender: str, left_s: float) -> str:
    """A token that is taken for so long, leeway included."""
    return jwt.encode({"sub": sender, "exp": time.time() - 10 + left_s}, KEY, algorithm="HS256")


# the handshake


def shake(
    server: LiveServer, *more: str, path: str = "/v1/ws", key: str = "dGhlIHNhbXBsZSBub25jZQ=="
) -> httpx.Response:
    """A handshake that is refused, by a client that knows HTTP only."""
    lines = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    headers = [*lines, ("Sec-WebSocket-Key", key), *(tuple(line.split(": ", 1)) for line in more)]
    return httpx.get(f"{server.http}{path}", headers=headers, timeout=10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (["imray.v1.json"], "imray.v1.json"),
        (["imray.v1.msgpack"], "imray.v1.msgpack"),
        (["other", "imray.v1.msgpack", "imray.v1.json"], "imray.v1.msgpack"),
        (None, None),
    ],
)
def test_the_first_sub_protocol_that_is_known_is_spoken(
    server: LiveServer, asked: list[str] | None, taken: str | None
) -> None:
    protocols = None if asked is None else [Subprotocol(name) for name in asked]
    headers = {"Authorization": f"Bearer {token_of('ada')}"}
    with connect(server.url, subprotocols=protocols, additional_headers=headers) as client:
        assert client.subprotocol == taken
        assert isinstance(client.recv(timeout=10), bytes) is (taken == MSGPACK.subprotocol)
        assert "permessage-deflate" not in str(client.response)


def test_a_handshake_that_cannot_be_is_refused_over_http(server: LiveServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(server.url, subprotocols=[Subprotocol("imray.v9")])
    assert refused.value.response.status_code == 400
    for answer, status in (
        (shake(server, key="short"), 400),
        (shake(server, "Authorization: Bearer nonsense"), 401),
        (shake(server, f"Authorization: Bearer {expired()}"), 401),
        (shake(server, f"Authorization: Bearer {token_of('ada', key=OTHER_KEY)}"), 401),
        (httpx.get(f"{server.http}/v1/ws"), 426),
        (shake(server, path="/v1/wsx"), 404),
        (httpx.post(f"{server.http}/v1/ws"), 405),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
    until(lambda: server.app._limits.connections == 0, "all is given back", 5)


def test_frames_that_come_with_the_handshake_are_read(server: LiveServer) -> None:
    head = (
        f"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token_of('ada')}\r\n\r\n"
    )
    ping = JSON.encode([{"t": "ping", "ref": 5}])
    frame = bytes((0x81, 0x80 | len(ping), 0, 0, 0, 0)) + ping
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        raw.sendall(head.encode() + frame + frame)
        heard = b""
        while heard.count(b'{"t":"pong","ref":5}') < 2:
            chunk = raw.recv(65536)
            assert chunk, heard
            heard += chunk
        assert heard.startswith(b"HTTP/1.1 101 ")


def test_an_upgrade_behind_a_request_in_work_is_no_upgrade(server: LiveServer) -> None:
    first = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    second = "GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall((first + second).encode())
        heard = b""
        while chunk := raw.recv(65536):
            heard += chunk
    assert heard.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 426 " in heard


# who may say what


@BOTH
@pytest.mark.parametrize("kind", list(ANSWERS))
@pytest.mark.parametrize("token", [None, "expired", "wrong key", "nonsense"])
def test_nobody_unknown_is_answered(server: LiveServer, spoken: Format, kind: str, token: str | None) -> None:
    """Without a token, or with one that is not good, an item ends the connection with 4401, and does nothing."""
    tokens = {"expired": expired(), "wrong key": token_of("ada", key=OTHER_KEY), "nonsense": "a.b.c"}
    with joined(server, None, spoken=spoken) as client:
        first = [] if token is None else [{"t": "auth", "token": tokens[token], "ref": 9}]
        client.say(*first, every_item()[kind])
        code, told = client.end()
        assert code == 4401
        (error,) = told
        assert (error["t"], error["status"], error["kind"], "ref" in error) == ("error", 401, "unauthenticated", False)
    assert server.engine.read == []
    assert server.engine.feeds.listeners == {}
    assert server.engine.members.marks == []


@BOTH
@pytest.mark.parametrize(
    ("sender", "service", "forbidden"),
    [
        (STRANGER, False, {"subscribe", "pull", "read", "signal"}),
        (READER, False, {"signal"}),
        (MEMBER, False, set()),
        ("bot", True, set()),
    ],
    ids=["stranger", "reader", "member", "service"],
)
def test_callers_may_do_what_their_role_allows(
    server: LiveServer, spoken: Format, sender: str, service: bool, forbidden: set[str]
) -> None:
    for by_header in (True, False):
        with joined(server, sender if by_header else None, service, spoken) as client:
            if not by_header:
                client.say({"t": "auth", "token": token_of(sender, service)})
                assert client.hear()["t"] == "welcome"
            for kind, item in every_item(PRIVATE).items():
                answer = client.ask(item)
                if kind in forbidden:
                    assert (answer["t"], answer["status"], answer["kind"]) == ("error", 403, "forbidden"), kind
                else:
                    assert answer["t"] == ANSWERS[kind], (kind, answer)
            for kind, item in every_item(CONV).items():
                assert client.ask(item)["t"] == ANSWERS[kind], "it is open to all"


def test_only_a_service_speaks_for_others(server: LiveServer) -> None:
    item = {**every_item()["send"], "sender": "somebody"}
    with joined(server, "ada") as client:
        assert client.ask(item)["status"] == 403
    with joined(server, "bot", service=True) as client:
        assert client.ask(item)["t"] == "ack"


@BOTH
def test_every_item_with_bad_fields_is_told_so_and_the_connection_goes_on(server: LiveServer, spoken: Format) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [(kind, {"conv_id": ""}) for kind in ANSWERS if kind != "ping"]
    bad += [(kind, {"conv_id": "x" * 129}) for kind in ANSWERS if kind != "ping"]
    bad += [("send", {"client_msg_id": "?"}), ("send", {"client_ts": -1}), ("send", {"topic": ""})]
    bad += [("pull", {"limit": 0}), ("pull", {"limit": 10_001}), ("pull", {"topic": "\n"})]
    bad += [("signal", {"kind": ""}), ("signal", {"kind": "x" * 33}), ("signal", {"data": "x" * 1100})]
    with joined(server, spoken=spoken) as client:
        for kind, fields in bad:
            answer = client.ask({**every_item()[kind], **fields})
            assert (answer["t"], answer["status"], answer["kind"]) == ("error", 422, "invalid"), (kind, fields)
        assert client.ask(every_item()["ping"])["t"] == "pong"


# tokens


def test_who_is_silent_at_first_is_closed(tmp_path: Path) -> None:
    with LiveServer(tmp_path, header_deadline_s=0.3) as running, joined(running, None) as client:
        code, told = client.end()
        assert code == 4401
        assert [item["status"] for item in told] == [401]


def test_a_token_ends_and_a_renewed_one_goes_on(tmp_path: Path) -> None:
    with (
        LiveServer(tmp_path, write_deadline_s=0.5) as running,
        joined(running, token=expiring("ada", 1.5)) as ends,
        joined(running, token=expiring("ada", 1.5)) as goes_on,
    ):
        warning = goes_on.hear()
        assert warning["t"] == "expiring"
        assert warning["expires_in_s"] <= 2
        assert goes_on.ask({"t": "auth", "token": token_of("ada"), "ref": 8}) == {"t": "ok", "ref": 8}
        code, told = ends.end()
        assert code == 4401
        assert [item["t"] for item in told] == ["expiring", "error"]
        assert goes_on.ask({"t": "ping", "ref": 1})["t"] == "pong"


def test_a_renewal_is_for_the_same_caller_only(server: LiveServer) -> None:
    for token in (token_of("bob"), expired("ada"), token_of("ada", key=OTHER_KEY)):
        with joined(server) as client:
            client.say({"t": "auth", "token": token, "ref": 1}, every_item()["ping"])
            code, told = client.end()
            assert code == 4401
            assert [(item["t"], "ref" in item) for item in told] == [("error", False)]


@pytest.mark.parametrize("service", [False, True])
def test_a_renewal_is_for_the_same_role_only(server: LiveServer, service: bool) -> None:
    with joined(server, "bot", service=service) as client:
        assert client.ask({**every_item()["subscribe"], "conv_id": CONV})["t"] == "subscribed"
        client.say({"t": "auth", "token": token_of("bot", service=not service), "ref": 9})
        code, told = client.end()
        assert (code, [item["status"] for item in told]) == (4401, [401])


# what it counts as


def test_a_connection_counts_for_its_peer_and_for_its_caller(tmp_path: Path) -> None:
    with LiveServer(tmp_path, connections_per_peer_max=2) as running:
        limits = running.app._limits
        with joined(running, "ada"), joined(running, "bob"):
            assert sorted(limits.callers()) == ["peer 127.0.0.1", "subject ada", "subject bob"]
            with pytest.raises(InvalidStatus) as refused:
                connect(running.url)
            assert refused.value.response.status_code == 429
            assert httpx.get(f"{running.http}/livez").status_code == 200
        until(lambda: limits.connections == 0 and limits.callers() == [], "all is given back", 5)
        with joined(running, None) as newcomer, joined(running, "ada"), joined(running, "bob"):
            assert newcomer.end()[0] is None, "who has not said who it is makes room"


@BOTH
def test_messages_signals_and_notices_reach_who_listens(server: LiveServer, spoken: Format) -> None:
    with joined(server, "ada", spoken=spoken) as ada, joined(server, "bob") as bob:
        for client in (ada, bob):
            assert client.ask({**every_item()["subscribe"], "after": 3})["after"] == 3
        server.publish(batch_of(CONV, 3, [b"one", b"\xff"]))
        heard = ada.hear()
        assert [message["conv_seq"] for message in heard["messages"]] == [4, 5]
        assert heard["messages"][1].get("body", heard["messages"][1].get("body_base64")) in (b"\xff", "/w==")
        assert bob.hear()["upto"] == 5
        bob.ask({**every_item()["signal"], "data": {"x": [1, "é"]}})
        assert ada.hear() == {
            "t": "signal",
            "conv_id": CONV,
            "sender": "bob",
            "kind": "typing",
            "data": {"x": [1, "é"]},
        }
    until(lambda: server.call(lambda: not any(server.engine.feeds.listeners.values())), "both have left", 5)


def test_a_page_larger_than_a_frame_should_be_is_told_in_parts(tmp_path: Path) -> None:
    page = page_of([b"x" * 60_000] * 10)
    with LiveServer(tmp_path, lambda settings: LiveBackend(settings, page)) as running, joined(running) as client:
        told = client.ask(every_item()["pull"])
        assert [message["conv_seq"] for message in told["messages"]] == [1, 2, 3, 4, 5, 6]
        assert told["next"] == 6


def test_what_there_is_to_say_is_served_and_linked(server: LiveServer) -> None:
    page = httpx.get(f"{server.http}/docs/live")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "imray.v1.msgpack" in page.text
    document = httpx.get(f"{server.http}/openapi.json").json()
    assert "/docs/live" in document["info"]["description"]
    answers = document["paths"]["/v1/conversations/{conv_id}/events"]["get"]["responses"]
    assert list(answers["200"]["content"]) == ["text/event-stream"]
