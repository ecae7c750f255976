"""Sends, pulls and signals over a live connection: each has its answer, or an error that says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imray.client import (
    Ack,
    AsyncLive,
    AsyncOutbox,
    AuthError,
    ConflictError,
    InvalidError,
    LiveSignal,
    ServerError,
    UnavailableError,
    UnknownOutcomeError,
)
from imray.client.live_wire import FORMATS
from tests.support.live_callers import WAIT_S, append, live_of, some
from tests.support.live_server import LiveServer, live_server


@pytest.fixture
async def server() -> AsyncIterator[LiveServer]:
    async with live_server() as running:
        yield running


@pytest.fixture
async def live(server: LiveServer) -> AsyncIterator[AsyncLive]:
    async with live_of(server) as client:
        yield client


async def test_many_sends_are_in_flight_and_each_has_its_answer(server: LiveServer, live: AsyncLive) -> None:
    acks = await asyncio.gather(*(live.send("tea", f"m{n}") for n in range(1, 1501)))
    assert [ack.conv_seq for ack in acks] == list(range(1, 1501))
    assert all(isinstance(ack, Ack) and not ack.duplicate for ack in acks)
    assert server.accepted == 1


async def test_a_send_without_an_answer_is_sent_again_with_its_id(server: LiveServer, live: AsyncLive) -> None:
    server.cut_before_ack = 2
    ack = await live.send("tea", "once")
    assert (ack.conv_seq, ack.duplicate) == (1, True)
    assert len(server.log["tea"]) == 1
    assert len({item["client_msg_id"] for item in server.said("send")}) == 1


async def test_a_send_that_is_refused_for_now_is_sent_again(server: LiveServer, live: AsyncLive) -> None:
    busy = {"status": 503, "kind": "busy", "detail": "full", "retry_after_s": 0.01}
    server.refuse = [busy, {"status": 504, "kind": "unavailable", "detail": "unknown"}]
    assert (await live.send("tea", "x")).conv_seq == 1
    assert len(server.said("send")) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, AuthError), (401, AuthError), (413, InvalidError), (422, InvalidError), (500, ServerError)],
)
async def test_a_refusal_says_what_to_do(
    server: LiveServer, live: AsyncLive, status: int, error: type[Exception]
) -> None:
    server.refuse = [{"status": status, "kind": "k", "detail": "because"}]
    with pytest.raises(error, match="because"):
        await live.send("tea", "x")


async def test_a_refusal_of_a_retry_leaves_the_outcome_unknown(server: LiveServer, live: AsyncLive) -> None:
    server.refuse = [
        {"status": 504, "kind": "unavailable", "detail": "?"},
        {"status": 403, "kind": "k", "detail": "no"},
    ]
    with pytest.raises(UnknownOutcomeError, match="says nothing of the tries before it") as e:
        await live.send("tea", "x", client_msg_id="0190b0f2-6f2e-7c3a-9d27-0242ac120002")
    assert e.value.client_msg_ids == ("0190b0f2-6f2e-7c3a-9d27-0242ac120002",)


async def test_a_page_that_is_refused_after_a_try_without_an_answer_is_just_refused(
    server: LiveServer, live: AsyncLive
) -> None:
    server.lose["page"] = 1
    pulling = asyncio.create_task(live.pull("tea"))
    await server.until(lambda: len(server.said("pull")) == 1)
    server.token = "another"
    server.cut()
    with pytest.raises(AuthError):
        await pulling


async def test_another_payload_is_a_conflict(server: LiveServer, live: AsyncLive) -> None:
    first = await live.send("tea", "one")
    with pytest.raises(ConflictError) as e:
        await live.send("tea", "two", client_msg_id=first.client_msg_id)
    assert (e.value.conv_seq, e.value.client_msg_id) == (1, first.client_msg_id)


async def test_a_deadline_passes_with_the_id_at_hand(server: LiveServer) -> None:
    server.is_silent = True
    async with live_of(server, timeout_s=0.1) as live:
        with pytest.raises(UnknownOutcomeError, match=r"no answer within 0\.1 s") as e:
            await live.send("tea", "x")
        assert len(e.value.client_msg_ids) == 1
        with pytest.raises(UnavailableError):
            await live.read("tea", 1)
        assert list(live._driver.asks) == []


async def test_a_message_that_fits_no_frame_is_refused_here(server: LiveServer) -> None:
    server.frame_bytes_max = 5_000
    async with live_of(server) as live:
        await live.send("tea", "x" * 4_500)
        with pytest.raises(InvalidError, match="too much for one frame"):
            await live.send("tea", "x" * 5_000)
        acks = await asyncio.gather(*(live.send("tea", "x" * 1_500) for _ in range(10)))
        assert [ack.conv_seq for ack in acks] == list(range(2, 12))


async def test_pages_read_marks_and_signals(server: LiveServer, live: AsyncLive) -> None:
    append(server, 10)
    signals: list[LiveSignal] = []
    came = asyncio.Event()

    def note(signal: LiveSignal) -> None:
        signals.append(signal)
        came.set()

    follower = live.follow("tea", 9, on_signal=note)
    assert await some(follower, 1) == ["10 m10"]
    page = await live.pull("tea", limit=3, order="desc")
    assert ([m.conv_seq for m in page.messages], page.next) == ([10, 9, 8], 8)
    await live.read("tea", 10)
    assert server.cursors == {"tea": 10}
    async with live_of(server, token="bob") as bob:
        assert not bob.signal("tea", "typing"), "there is no connection yet"
        await bob.pull("tea")
        assert bob.signal("tea", "typing", {"on": True})
        async with asyncio.timeout(WAIT_S):
            await came.wait()
    assert signals == [LiveSignal("tea", "bob", "typing", {"on": True})]


async def test_an_outbox_keeps_ids_over_clients(server: LiveServer, tmp_path: Path) -> None:
    server.cut_before_ack = 1
    async with live_of(server, timeout_s=0.2) as live, AsyncOutbox(tmp_path / "outbox", live) as outbox:
        server.statuses = [(503, {"Retry-After": "20"})] * 2
        first = asyncio.create_task(outbox.send("tea", "m1"))
        with pytest.raises(UnknownOutcomeError):
            await first
    server.statuses.clear()
    async with live_of(server) as live, AsyncOutbox(tmp_path / "outbox", live) as outbox:
        (answer,) = await outbox.resend()
        assert answer.ack is not None
        assert (await outbox.send("tea", "m2")).conv_seq == answer.ack.conv_seq + 1
    assert [message["body"] for message in server.log["tea"] if message] == ["m1", "m2"]


async def test_closing_ends_followers_and_leaves_no_task(server: LiveServer) -> None:
    before = asyncio.all_tasks()
    live = live_of(server)
    follower = live.follow("tea", 0)
    append(server, 1)
    assert await some(follower, 1) == ["1 m1"]
    waiting = asyncio.create_task(anext(follower, None))
    await asyncio.sleep(0)
    await live.aclose()
    async with asyncio.timeout(WAIT_S):
        assert await waiting is None
    await server.until(lambda: not server.connections)
    assert {task for task in asyncio.all_tasks() - before if "live_driver" in repr(task)} == set()
    with pytest.raises(UnavailableError, match="closed"):
        await live.send("tea", "x")


@pytest.mark.parametrize("name", ["imray.v1.json", "imray.v1.msgpack"])
async def test_both_formats_carry_the_same(
    server: LiveServer, live: AsyncLive, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imray.client.live_socket.FORMATS", {name: FORMATS[name]})
    text = "ünïcode \u2028 \x00 😀"
    ack = await live.send("tea", text)
    assert await some(live.follow("tea", 0), 1) == [f"{ack.conv_seq} {text}"]
    assert [connection.socket.subprotocol for connection in server.connections] == [name]
