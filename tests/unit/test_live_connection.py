"""One live connection over a transport of the test's: bytes in any pieces, bounds, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.frames import Frame, Opcode

from api.live_formats import FRAME_BYTES_MAX, JSON, MSGPACK, Format
from api.live_items import SignalledItem
from imray.core.replies import Refusal, Refused
from imray.engine.listening import HeadMoved
from tests.support.live_peer import Peer, known, peer_maker
from tests.support.live_system import batch_of, token_of

BOTH = pytest.mark.parametrize("spoken", [JSON, MSGPACK], ids=["json", "msgpack"])
ID = "0198c0de-0000-7000-8000-000000000001"
SEND = {"t": "send", "ref": 1, "conv_id": "c", "client_msg_id": ID, "body": "hello"}
Made = Callable[..., Peer]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return peer_maker(tmp_path)


def _stream(peer: Peer) -> bytes:
    """Everything that a client may do in a stream of bytes: small frames, large ones, pieces, pings between them."""
    auth = peer.frame([{"t": "auth", "token": token_of("ada")}])
    data = peer.format.encode([{"t": "ping", "ref": 2}])
    kind = Opcode(peer.format.opcode)
    pieces = [
        Frame(kind, data[:3], fin=False).serialize(mask=True),
        Frame(Opcode.PING, b"still there?").serialize(mask=True),
        Frame(Opcode.CONT, data[3:9], fin=False).serialize(mask=True),
        Frame(Opcode.CONT, b"", fin=False).serialize(mask=True),
        Frame(Opcode.CONT, data[9:]).serialize(mask=True),
    ]
    long = peer.frame([{**SEND, "body": "x" * 60_000}])
    return auth + peer.frame([SEND]) + b"".join(pieces) + long + peer.frame([{"t": "ping", "ref": 3}])


@BOTH
@pytest.mark.parametrize("step", [10**9, 1, 7, 1000])
async def test_bytes_may_come_in_any_pieces(made: Made, spoken: Format, step: int) -> None:
    peer = made(spoken)
    stream = _stream(peer)
    for at in range(0, len(stream), step):
        peer.server.data_received(stream[at : at + step])
    told = await peer.heard()
    assert told[0]["t"] == "welcome"
    assert sorted((item["t"], item["ref"]) for item in told[1:]) == [("ack", 1), ("ack", 1), ("pong", 2), ("pong", 3)]
    assert peer.close_code is None


@BOTH
@pytest.mark.parametrize(
    "after", [b"\x00", b"\x81\x05hello", b"\xf1\x80\x00\x00\x00\x00"], ids=["junk", "bare", "bits"]
)
async def test_what_breaks_the_protocol_behind_a_good_frame_closes_after_its_answer(
    made: Made, spoken: Format, after: bytes
) -> None:
    peer = await known(made(spoken))
    peer.say({"t": "ping", "ref": 1})
    assert await peer.heard() == [{"t": "pong", "ref": 1}]
    peer.server.data_received(peer.frame([{"t": "ping", "ref": 2}]) + after + b"\x00" * 20)
    assert await peer.heard() == [{"t": "pong", "ref": 2}]
    assert peer.close_code == 1002
    assert peer.transport.ended


@BOTH
async def test_malformed_frames_are_told_and_closed(made: Made, spoken: Format) -> None:
    for items in ([], [{"t": "nothing"}], [{"t": "ping", "ref": 1}] * 1001):
        peer = await known(made(spoken))
        peer.say(*items)
        (error,) = await peer.heard()
        assert (error["t"], error["status"], "ref" in error) == ("error", 400, False)
        assert peer.close_code == 4400


async def test_a_frame_of_the_wrong_kind_is_closed_with_1003(made: Made) -> None:
    for spoken, other in ((JSON, MSGPACK), (MSGPACK, JSON)):
        peer = await known(made(spoken))
        data = Frame(Opcode(other.opcode), other.encode([SEND])).serialize(mask=True)
        peer.server.data_received(data)
        assert [item["t"] for item in await peer.heard()] == ["error"]
        assert peer.close_code == 1003


@pytest.mark.parametrize("pieces", [1, 40])
async def test_a_frame_over_the_bound_is_closed_with_1009(made: Made, pieces: int) -> None:
    peer = await known(made(live_frame_bytes_max=10_000))
    part = b" " * (10_001 // pieces + 1)
    peer.server.data_received(Frame(Opcode.TEXT, part, fin=pieces == 1).serialize(mask=True))
    for _ in range(pieces - 1):
        peer.server.data_received(Frame(Opcode.CONT, part, fin=False).serialize(mask=True))
    await peer.heard()
    assert peer.close_code == 1009


async def test_what_was_asked_before_a_close_is_answered_before_it(made: Made) -> None:
    peer = await known(made())
    closing = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
    peer.server.data_received(peer.frame([{"t": "ping", "ref": 2}]) + closing)
    assert await peer.heard() == [{"t": "pong", "ref": 2}]
    assert peer.close_code == 1000


async def test_nothing_is_said_after_a_close(made: Made) -> None:
    peer = await known(made())
    peer.say({"t": "subscribe", "ref": 1, "conv_id": "c"})
    await peer.heard()
    peer.server.data_received(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
    peer.server.data_received(peer.frame([{"t": "ping", "ref": 2}]))
    assert peer.server.offer(b"x")
    peer.server.notify(HeadMoved("c", 1, 1))
    assert await peer.heard() == []
    assert peer.close_code == 1000


async def test_a_subscription_that_is_being_made_does_not_outlive_its_connection(made: Made) -> None:
    peer = await known(made())
    feeds = peer.engine.feeds
    feeds.gate.clear()
    peer.say({"t": "subscribe", "ref": 1, "conv_id": "c"})
    await peer.heard()
    peer.server.connection_lost(None)
    assert feeds.left == []
    await peer.heard()
    assert feeds.left == [peer.server]
    assert not any(feeds.listeners.values())
    assert (peer.limits.connections, peer.limits.callers(), peer.siblings) == (0, [], set())


async def test_a_connection_that_is_closed_works_for_nobody(made: Made) -> None:
    peer = await known(made())
    peer.say({"t": "subscribe", "ref": 1, "conv_id": "c"})
    await peer.heard()
    peer.server.pause_writing()
    peer.say({"t": "pull", "ref": 2, "conv_id": "c"})
    peer.server.close(4401)
    await peer.heard()
    assert peer.engine.feeds.left == [peer.server]
    peer.server.connection_lost(None)
    await peer.heard()
    assert peer.engine.read == []
    assert peer.engine.feeds.left == [peer.server], "once"


async def test_a_refused_subscription_ends_the_one_before(made: Made) -> None:
    peer = await known(made(live_subscriptions_max=1))
    peer.say({"t": "subscribe", "ref": 1, "conv_id": "c"})
    await peer.heard()

    async def refuse(*_: Any) -> Refusal:
        return Refusal(Refused.BUSY, "not now")

    subscribe = peer.engine.feeds.subscribe
    peer.engine.feeds.subscribe = refuse
    peer.say({"t": "subscribe", "ref": 2, "conv_id": "c"})
    assert [item["status"] for item in await peer.heard()] == [503]
    peer.engine.feeds.subscribe = subscribe
    peer.say({"t": "subscribe", "ref": 3, "conv_id": "d"})
    assert [item["t"] for item in await peer.heard()] == ["subscribed"]


async def test_a_read_mark_is_known_where_heads_are_told(made: Made) -> None:
    peer = await known(made())
    peer.say({"t": "read", "ref": 1, "conv_id": "c", "seq": 7})
    assert await peer.heard() == [{"t": "ok", "ref": 1}]
    assert peer.engine.feeds.reads == [(peer.server, "c", 7)]


@BOTH
async def test_a_bad_field_costs_its_item_only(made: Made, spoken: Format) -> None:
    peer = await known(made(spoken))
    peer.say({"t": "ping", "ref": 1}, {"t": "read", "ref": 2, "conv_id": "c", "seq": -1}, {"t": "ping", "ref": 3})
    first, error, last = await peer.heard()
    assert (first["ref"], last["ref"]) == (1, 3)
    assert (error["t"], error["ref"], error["status"], error["kind"]) == ("error", 2, 422, "invalid")
    stranger = made(spoken)
    stranger.say({"t": "auth", "token": 7, "ref": 1}, {"t": "ping", "ref": 3})
    (error,) = await stranger.heard()
    assert (error["status"], stranger.close_code) == (401, 4401)


async def test_what_is_told_at_once_fits_in_frames_that_clients_take(made: Made) -> None:
    peer = await known(made())
    peer.server.tell([SignalledItem("c", "ada", "k", msgspec.Raw(b'"' + b"x" * 4000 + b'"'))] * 900)
    heard = peer.heard()
    assert len(await heard) == 900
    assert peer.frame_bytes_max < FRAME_BYTES_MAX + 20


async def test_a_subscription_is_told_before_its_first_message(made: Made) -> None:
    peer = await known(made())
    feeds = peer.engine.feeds
    start = feeds.start

    def start_with_messages(listener: Any, conv_id: str) -> None:
        start(listener, conv_id)
        feeds.publish(batch_of(conv_id, 3, [b"x"]))

    feeds.start = start_with_messages
    peer.say({"t": "subscribe", "ref": 1, "conv_id": "c", "after": 3})
    assert [item["t"] for item in await peer.heard()] == ["subscribed", "messages"]
    peer.say({"t": "unsubscribe", "ref": 2, "conv_id": "c"}, {"t": "subscribe", "ref": 3, "conv_id": "d"})
    await peer.heard()
    feeds.publish(batch_of("c", 4, [b"x"]))
    assert await peer.heard() == []


async def test_the_moments_of_a_connection(made: Made) -> None:
    peer = await known(made())
    now = peer.server.loop.time()
    peer.server.look(now + 1)
    peer.server.look(now + 20.9)
    assert not peer.transport.data.endswith(b"\x89\x00")
    peer.server.look(now + 21.5)
    assert peer.transport.data.endswith(b"\x89\x00"), "a ping"
    peer.transport.unsent = 10
    peer.server.look(now + 42)
    assert not peer.transport.closed, "it took something since"
    peer.server.look(now + 83)
    assert peer.transport.closed


async def test_a_server_that_ends_waits_for_answers_and_says_when_to_come_back(made: Made) -> None:
    peer = await known(made(live_reconnect_s_max=2.0))
    answers = asyncio.Event()
    send = peer.engine.send

    async def late(one: Any) -> Any:
        await answers.wait()
        return await send(one)

    peer.engine.send = late
    peer.say(SEND)
    await peer.heard()
    peer.server.shutdown()
    peer.server.shutdown()
    (drain,) = await peer.heard()
    assert drain["t"] == "drain"
    assert 0.5 <= drain["reconnect_in_s"] <= 2.0
    assert peer.close_code is None
    answers.set()
    assert [item["t"] for item in await peer.heard()] == ["ack"]
    assert peer.close_code == 1001
    reading = await known(made())
    reading.server.data_received(reading.frame([{"t": "unsubscribe", "ref": 1, "conv_id": "c"}]) * 400)
    reading.server.shutdown()
    told = []
    while reading.close_code is None:
        told += await reading.heard()
    assert len(told) == 401, "what has come is read, and answered"
    assert reading.close_code == 1001
    quiet = await known(made())
    quiet.server.shutdown()
    assert [item["t"] for item in await quiet.heard()] == ["drain"]
    assert quiet.close_code == 1001
