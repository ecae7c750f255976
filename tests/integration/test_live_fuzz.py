"""Frames of strange make: each is answered, or closes its connection with a documented code; none is a fault."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from api.live_formats import JSON, MSGPACK, Format
from tests.support.live_client import ID, LiveClient, every_item, joined
from tests.support.live_system import LiveServer, token_of

DOCUMENTED = {1001, 1002, 1003, 1007, 1009, 1013, 4400, 4401, 4429}
"""With 1002 and 1007, which RFC 6455 says of broken frames."""
_QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
kinds = st.sampled_from(["auth", *every_item(), "welcome", "ack", "", "x"])
fields = st.fixed_dictionaries(
    {"t": kinds},
    optional={
        "ref": st.integers(-5, 2**53) | values,
        "conv_id": st.text(max_size=150) | values,
        "client_msg_id": st.just(ID) | st.text(max_size=40) | values,
        "body": st.text(max_size=200) | values,
        "after": st.integers(-1, 2**63) | values,
        "before": st.integers(-1, 2**63) | values,
        "limit": st.integers(-1, 20_000) | values,
        "seq": st.integers(-1, 2**63) | values,
        "order": st.sampled_from(["asc", "desc", "up"]) | values,
        "passive": st.booleans() | values,
        "kind": st.text(max_size=40) | values,
        "data": values,
        "token": st.text(max_size=40) | values,
        "topic": st.text(max_size=10) | values,
        "client_ts": values,
        "sender": st.text(max_size=10) | values,
        "more": values,
    },
)
valid = st.sampled_from(list(every_item().values()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("fuzz")) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def answers_or_closes(client: LiveClient, data: bytes, expected: list[Any]) -> None:
    """After a frame the connection answers a ping, and every valid item of the frame, or it is closed."""
    text: Any = data
    if client.format is JSON:
        text = data.decode()
    client.socket.send(text)
    refs = [item["ref"] for item in expected]
    heard = []
    try:
        client.say({"t": "ping", "ref": 2**50})
        while True:
            told = client.hear()
            heard.append(told.get("ref"))
            if told.get("ref") == 2**50 and told["t"] == "pong":
                break
        while any(heard.count(ref) < refs.count(ref) for ref in refs):
            heard.append(client.hear().get("ref"))
    except ConnectionClosed as e:
        closed = e.rcvd
    else:
        return
    assert closed is not None, "it closes with a frame"
    assert closed.code in DOCUMENTED


@pytest.mark.parametrize("spoken", [JSON, MSGPACK], ids=["json", "msgpack"])
@_QUIET
@given(items=st.lists(fields | valid | valid, max_size=6))
def test_items_of_strange_make(server: LiveServer, spoken: Format, items: list[dict[str, Any]]) -> None:
    data = spoken.encode(items)
    good = [item for item in items if item in every_item().values()]
    with joined(server, spoken=spoken) as client:
        answers_or_closes(client, data, good if len(good) == len(items) else [])


@pytest.mark.parametrize("spoken", [JSON, MSGPACK], ids=["json", "msgpack"])
@_QUIET
@given(data=st.data())
def test_good_frames_with_a_few_bytes_changed(server: LiveServer, spoken: Format, data: st.DataObject) -> None:
    frame = bytearray(spoken.encode(list(every_item().values())))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 127 if spoken is JSON else 255))
    with joined(server, spoken=spoken) as client:
        answers_or_closes(client, bytes(frame), [])


HEAD = (
    "GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n\r\n"
)


@_QUIET
@given(data=st.data())
def test_bytes_of_strange_make_behind_a_handshake(server: LiveServer, data: st.DataObject) -> None:
    good = Frame(Opcode.TEXT, msgspec.json.encode([every_item()["ping"]])).serialize(mask=True)
    ping = Frame(Opcode.PING, b"x").serialize(mask=True)
    parts = data.draw(st.lists(st.binary(min_size=1, max_size=30) | st.just(good) | st.just(ping), max_size=6))
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(HEAD.format(token=token_of("ada")).encode())
        for part in parts:
            try:
                raw.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break  # it is closed already
        raw.shutdown(socket.SHUT_WR)
        heard = b""
        try:
            while chunk := raw.recv(65536):
                heard += chunk
        except ConnectionResetError:
            return
    assert heard.startswith(b"HTTP/1.1 101 ")
    assert b"welcome" in heard


def test_a_gateway_that_was_fuzzed_holds_nothing(server: LiveServer, tmp_path: Path) -> None:
    with joined(server) as client:
        for kind, item in every_item().items():
            assert client.ask(item)["t"] != "error", kind
    assert server.call(lambda: server.app._limits.bytes) == 0
