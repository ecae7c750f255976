"""One live connection over a transport of the test's: bytes in any pieces, bounds, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from api.live_formats import JSON, MSGPACK, Format
from imray.engine.listening import HeadMoved, Signal
from imray.settings import Settings
from tests.support.api_system import KEY
from tests.support.live_peer import Peer
from tests.support.live_system import LiveBackend, batch_of, token_of

BOTH = pytest.mark.parametrize("spoken", [JSON, MSGPACK], ids=["json", "msgpack"])
ID = "0198c0de-0000-7000-8000-000000000001"
SEND = {"t": "send", "ref": 1, "conv_id": "c", "client_msg_id": ID, "body": "hello"}
Made = Callable[..., Peer]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "key").write_bytes(KEY)

    def make(spoken: Format = JSON, **settings: Any) -> Peer:
        engine = LiveBackend(replace(Settings(), **settings))
        return Peer(engine, {"key_file": str(tmp_path / "key")}, spoken)

    return make


async def known(peer: Peer, sender: str = "ada") -> Peer:
    """Whose token was taken."""
    peer.say({"t": "auth", "token": token_of(sender)})
    (welcome,) = await peer.heard()
    assert (welcome["t"], welcome["sender"]) == ("welcome", sender)
    return peer


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


async def test_who_sends_faster_than_it_is_answered_is_not_read_from(made: Made) -> None:
    peer = await known(made(live_sends_in_flight_max=3))
    answers = asyncio.Event()
    send_batches = peer.engine.send_batches

    async def late(batches: Any) -> Any:
        await answers.wait()
        return await send_batches(batches)

    peer.engine.send_batches = late
    peer.say(SEND, SEND)
    assert peer.transport.reading
    peer.say(SEND, SEND)
    assert not peer.transport.reading
    answers.set()
    assert len(await peer.heard()) == 4
    assert peer.transport.reading


async def test_a_listener_that_does_not_read_is_bounded_and_told_when_there_is_room(made: Made) -> None:
    peer = await known(made(listener_queue_bytes_max=1000))
    peer.say({"t": "subscribe", "ref": 1, "conv_id": "c"})
    await peer.heard()
    frame = batch_of("c", 3, [b"x" * 100]).encoded(JSON.encoder)
    assert peer.server.offer(frame)
    peer.server.pause_writing()
    peer.transport.unsent = 1000 - len(frame)
    assert peer.server.offer(frame)
    peer.transport.unsent = 1001 - len(frame)
    assert not peer.server.offer(frame)
    peer.transport.unsent = 1001
    peer.server.notify(Signal("c", "bob", "typing", b"1"))
    peer.server.notify(HeadMoved("c", 9, 1))
    peer.say({"t": "ping", "ref": 7})
    assert not peer.transport.reading, "what it asks for would have to be kept, too"
    assert [item["t"] for item in await peer.heard()] == ["messages", "messages", "head", "pong"]
    assert peer.engine.feeds.resumed == []
    peer.transport.unsent = 0
    peer.server.resume_writing()
    assert peer.engine.feeds.resumed == [peer.server]
    assert peer.transport.reading


async def test_a_page_waits_until_there_is_room(made: Made) -> None:
    peer = await known(made())
    peer.server.pause_writing()
    peer.say({"t": "pull", "ref": 1, "conv_id": "c"})
    assert await peer.heard() == []
    assert peer.engine.read == []
    peer.server.resume_writing()
    assert [item["t"] for item in await peer.heard()] == ["page"]


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


async def test_subscriptions_of_a_connection_are_bounded(made: Made) -> None:
    peer = await known(made(live_subscriptions_max=2))
    peer.say(*({"t": "subscribe", "ref": i, "conv_id": f"c{i}"} for i in range(3)))
    told = sorted(await peer.heard(), key=lambda item: item["ref"])
    assert [item["t"] for item in told] == ["subscribed", "subscribed", "error"]
    assert (told[2]["status"], told[2]["kind"]) == (429, "too-many")
    peer.say({"t": "subscribe", "ref": 4, "conv_id": "c1"})
    assert [item["t"] for item in await peer.heard()] == ["subscribed"], "it takes the place of what was"
    peer.say({"t": "unsubscribe", "ref": 5, "conv_id": "c0"})
    peer.say({"t": "subscribe", "ref": 6, "conv_id": "c2"})
    assert [item["t"] for item in await peer.heard()] == ["ok", "subscribed"]


async def test_signals_are_bounded(made: Made) -> None:
    peer = await known(made(live_signals_per_s=2.0))
    signal = {"t": "signal", "conv_id": "c", "kind": "typing", "data": 1}
    peer.say(*({**signal, "ref": i} for i in range(4)), signal)
    told = sorted(await peer.heard(), key=lambda item: item["ref"])
    assert [(item["t"], item.get("status")) for item in told] == [("ok", None)] * 2 + [("error", 429)] * 2
    assert peer.close_code is None


async def test_a_caller_over_its_rate_is_told_so_for_each_item(made: Made) -> None:
    peer = await known(made(caller_requests_per_s=0.001, caller_burst_s=2000.0))
    peer.say({"t": "ping", "ref": 1})
    assert [item["t"] for item in await peer.heard()] == ["pong"]
    peer.say({"t": "ping", "ref": 2}, SEND)
    told = await peer.heard()
    assert [(item["t"], item["ref"], item["status"]) for item in told] == [("error", 2, 429), ("error", 1, 429)]
    assert peer.close_code is None


async def test_the_moments_of_a_connection(made: Made) -> None:
    peer = await known(made())
    now = peer.server.loop.time()
    peer.server.look(now + 1)
    peer.server.look(now + 20.9)
    assert not peer.transport.data.endswith(b"\x89\x00")
    peer.server.look(now + 21)
    assert peer.transport.data.endswith(b"\x89\x00"), "a ping"
    peer.transport.unsent = 10
    peer.server.look(now + 41)
    assert not peer.transport.closed, "it took something since"
    peer.server.look(now + 82)
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
    quiet = await known(made())
    quiet.server.shutdown()
    assert [item["t"] for item in await quiet.heard()] == ["drain"]
    assert quiet.close_code == 1001


async def test_a_message_that_is_not_complete_counts_and_must_come_in_time(made: Made) -> None:
    peer = await known(made(request_deadline_s=5.0))
    whole = peer.frame([{**SEND, "body": "x" * 50_000}])
    peer.server.data_received(whole[:30_000])
    assert 29_000 < peer.limits.bytes <= 30_000
    peer.server.data_received(whole[30_000:] + Frame(Opcode.TEXT, b"x" * 500, fin=False).serialize(mask=True))
    assert [item["t"] for item in await peer.heard()] == ["ack"]
    assert peer.limits.bytes == 500
    now = peer.server.loop.time()
    peer.server.look(now)
    peer.server.data_received(Frame(Opcode.CONT, b"x" * 100, fin=False).serialize(mask=True))
    peer.server.look(now + 4)
    assert peer.close_code is None
    peer.server.look(now + 6)
    (error,) = await peer.heard()
    assert (error["status"], error["kind"], peer.close_code) == (408, "late", 4400)


async def test_half_messages_are_bounded_over_all_connections_of_a_caller(made: Made) -> None:
    peer = await known(made(flight_bytes_per_caller_max=1000))
    peer.server.data_received(Frame(Opcode.TEXT, b"x" * 900, fin=False).serialize(mask=True))
    assert peer.close_code is None
    peer.server.data_received(Frame(Opcode.CONT, b"x" * 900, fin=False).serialize(mask=True))
    (error,) = await peer.heard()
    assert (error["status"], error["kind"], peer.close_code) == (503, "busy", 1013)


async def test_what_waits_for_listeners_that_do_not_read_is_bounded_over_all_of_them(made: Made) -> None:
    peer = await known(made(flight_bytes_max=1000))
    peer.say({"t": "subscribe", "ref": 1, "conv_id": "c"})
    await peer.heard()
    peer.server.pause_writing()
    assert peer.server.offer(b"x" * 600)
    assert peer.limits.bytes == 600
    assert not peer.server.offer(b"x" * 600)
    peer.server.resume_writing()
    assert peer.limits.bytes == 0
    assert peer.server.offer(b"x" * 600)
    assert peer.limits.bytes == 0
