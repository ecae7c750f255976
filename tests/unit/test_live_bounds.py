"""What one live connection may hold and ask for: each bound is told, and costs nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from api.live_formats import JSON
from imray.engine.listening import HeadMoved, Signal
from tests.support.live_peer import Peer, known, peer_maker
from tests.support.live_system import batch_of, token_of

ID = "0198c0de-0000-7000-8000-000000000001"
SEND = {"t": "send", "ref": 1, "conv_id": "c", "client_msg_id": ID, "body": "hello"}
Made = Callable[..., Peer]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return peer_maker(tmp_path)


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


@pytest.mark.parametrize(
    "frame",
    [Frame(Opcode.PING, b"").serialize(mask=True), Frame(Opcode.PONG, b"").serialize(mask=True), b""],
    ids=["pings", "pongs", "parts"],
)
async def test_frames_that_say_nothing_are_bounded(made: Made, frame: bytes) -> None:
    peer = await known(made())
    if not frame:
        peer.server.data_received(Frame(Opcode.TEXT, b" ", fin=False).serialize(mask=True))
        frame = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)
    now = peer.server.loop.time()
    peer.server.data_received(frame * 190)
    await peer.heard()
    peer.server.look(now + 1.5)
    peer.server.data_received(frame * 140)
    await peer.heard()
    assert peer.close_code is None
    peer.server.data_received(frame * 40_000)
    told = [item for item in await peer.heard() if item["t"] == "error"]
    assert [(item["status"], item["kind"]) for item in told] == [(429, "too-many")]
    assert peer.close_code == 4429
    assert len(peer.transport.data) < 5000, "it was not read to its end"
    assert not peer.transport.reading


async def test_a_stranger_may_say_hardly_anything(made: Made) -> None:
    peer = made()
    ping = Frame(Opcode.PING, b"").serialize(mask=True)
    peer.server.data_received(ping * 10)
    await peer.heard()
    assert peer.close_code is None
    peer.server.data_received(ping)
    await peer.heard()
    assert peer.close_code == 4429


@pytest.mark.parametrize("kind", ["ping", "auth", "send"])
async def test_items_that_ask_for_nothing_are_bounded(made: Made, kind: str) -> None:
    peer = await known(made())
    item: dict[str, Any] = {"t": kind, "ref": 1}
    if kind == "auth":
        item = {"t": kind, "token": token_of("ada")}  # made now: a whole run takes longer than it holds
    peer.say(*[item] * 150)
    await peer.heard()
    assert peer.close_code is None
    peer.server.data_received(peer.frame([item]) * 1000)
    told = await peer.heard()
    assert (told[-1]["status"], peer.close_code) == (429, 4429)


async def test_others_have_their_turn_while_much_of_one_connection_is_read(made: Made) -> None:
    peer = await known(made())
    frame = peer.frame([{"t": "unsubscribe", "ref": 1, "conv_id": "c"}])
    peer.server.data_received(frame * 800)
    assert not peer.transport.reading, "what came is read first"
    assert peer.limits.bytes > 0, "and counts"
    peer.server.data_received(peer.frame([{"t": "ping", "ref": 2}]))
    told: list[dict[str, Any]] = []
    turns = 0
    while peer.server._reader.waiting:
        before = len(peer.transport.data)
        await asyncio.sleep(0)
        turns += 1
        assert len(peer.transport.data) - before < 20_000
    assert turns > 3
    told = await peer.heard()
    told += await peer.heard()
    told += await peer.heard()
    assert len(told) == 801
    assert {"t": "pong", "ref": 2} in told
    assert peer.transport.reading
    assert peer.limits.bytes == 0


async def test_what_waits_to_be_read_goes_with_its_connection(made: Made) -> None:
    peer = await known(made())
    peer.server.data_received(peer.frame([{"t": "pull", "ref": 1, "conv_id": "c"}]) * 500)
    peer.server.connection_lost(None)
    await peer.heard()
    assert len(peer.engine.read) == 0
    assert peer.limits.bytes == 0


async def test_nothing_is_read_while_enough_is_in_work_even_of_what_has_come(made: Made) -> None:
    peer = await known(made(live_sends_in_flight_max=100))
    answers = asyncio.Event()
    send_batches = peer.engine.send_batches

    async def late(batches: Any) -> Any:
        await answers.wait()
        return await send_batches(batches)

    peer.engine.send_batches = late
    peer.server.data_received(peer.frame([SEND, SEND]) * 1000)
    await peer.heard()
    assert peer.server._session._sends.in_flight < 400
    answers.set()
    told: list[dict[str, Any]] = []
    for _ in range(100):
        told += await peer.heard()
    assert [item["t"] for item in told] == ["ack"] * 2000


async def test_every_frame_counts_as_the_requests_that_are_in_it(made: Made) -> None:
    peer = await known(made(caller_requests_per_s=0.001, caller_burst_s=10_000.0))
    pulls = [{"t": "pull", "ref": i, "conv_id": "c"} for i in range(4)]
    auth = {"t": "auth", "token": token_of("ada"), "ref": 9}
    peer.say(
        *pulls, {"t": "subscribe", "ref": 5, "conv_id": "c"}, auth, {"t": "read", "ref": 6, "conv_id": "c", "seq": 1}
    )
    assert all(item["t"] != "error" for item in await peer.heard())
    peer.say(auth, *pulls)
    assert {(item["t"], item["status"]) for item in await peer.heard()} == {("error", 429)}
    peer.say({"t": "ping", "ref": 1})
    peer.say(auth)
    assert [item["t"] for item in await peer.heard()] == ["pong", "ok"], "ten are ten"
    peer.say(auth)
    assert [item["status"] for item in await peer.heard()] == [429]


async def test_subscriptions_of_a_caller_have_a_rate(made: Made) -> None:
    peer = await known(made(live_subscribes_per_s=0.5, live_subscribes_burst=3))
    peer.say(*({"t": "subscribe", "ref": i, "conv_id": f"c{i}"} for i in range(4)))
    told = sorted(await peer.heard(), key=lambda item: item["ref"])
    assert [item["t"] for item in told] == ["subscribed"] * 3 + ["error"]
    assert (told[3]["status"], told[3]["kind"]) == (429, "too-many")
    assert 1 < told[3]["retry_after_s"] <= 2
    assert len(peer.engine.feeds.listeners) == 3
    peer = made(live_subscribes_per_s=0.5, live_subscribes_burst=1)
    peer.say({"t": "auth", "token": token_of("bot", service=True)})
    peer.say(*({"t": "subscribe", "ref": i, "conv_id": f"c{i}"} for i in range(4)))
    assert [item["t"] for item in await peer.heard()] == ["welcome"] + ["subscribed"] * 4
