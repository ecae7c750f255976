"""Following over a server that cuts, repeats, loses, is behind: the caller sees the log, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from imray.client import (
    AsyncLive,
    AuthError,
    Hole,
    InvalidError,
    Message,
    ServerError,
)
from imray.client.follower import QUEUE_ITEMS_MAX
from tests.support.live_callers import WAIT_S, append, expected, live_of, some, written
from tests.support.live_server import LiveServer, live_server


@pytest.fixture
async def server() -> AsyncIterator[LiveServer]:
    async with live_server() as running:
        yield running


@pytest.fixture
async def live(server: LiveServer) -> AsyncIterator[AsyncLive]:
    async with live_of(server) as client:
        yield client


async def test_what_was_missed_and_what_comes_are_one_stream(server: LiveServer, live: AsyncLive) -> None:
    append(server, 250)
    follower = live.follow("tea", 3)
    assert await some(follower, 247) == expected(4, 250)
    server.void("tea", 2)
    append(server, 1)
    assert await some(follower, 3) == ["251..251", "252..252", "253 m253"]
    assert follower.last_shown == 253


async def test_from_now_on(server: LiveServer, live: AsyncLive) -> None:
    append(server, 5)
    follower = live.follow("tea")
    await server.until(lambda: bool(server.said("subscribe")))
    append(server, 1)
    assert await some(follower, 1) == ["6 m6"]


async def test_after_every_cut_it_goes_on_where_it_was(server: LiveServer, live: AsyncLive) -> None:
    follower = live.follow("tea", 0)
    shown: list[str] = []
    for round_ in range(5):
        append(server, 7)
        shown += await some(follower, 7)
        server.cut()
        append(server, 3)
        shown += await some(follower, 3)
        assert server.accepted >= round_ + 2
    assert shown == expected(1, 50)
    assert [item["after"] for item in server.said("subscribe")] == [0, 7, 17, 27, 37, 47]


async def test_lost_and_repeated_items_do_not_show(server: LiveServer, live: AsyncLive) -> None:
    server.repeat = True
    follower = live.follow("tea", 0)
    append(server, 10)
    assert await some(follower, 10) == expected(1, 10)
    server.lose["messages"] = 2
    append(server, 4)
    assert await some(follower, 4) == expected(11, 14)


async def test_an_answer_that_is_lost_is_asked_for_again(server: LiveServer, live: AsyncLive) -> None:
    server.lose["subscribed"] = 2
    append(server, 2)
    assert await some(live.follow("tea", 0), 2) == expected(1, 2)


async def test_behind_is_caught_up_with(server: LiveServer, live: AsyncLive) -> None:
    follower = live.follow("tea", 0)
    append(server, 2)
    assert await some(follower, 2) == expected(1, 2)
    server.fall_behind("tea", [f"m{n}" for n in range(3, 90)])
    assert await some(follower, 87) == expected(3, 89)
    append(server, 1)
    assert await some(follower, 1) == ["90 m90"]


async def test_a_server_that_says_nothing_is_left(server: LiveServer) -> None:
    server.ping_interval_s = 0.05
    async with live_of(server) as live:
        follower = live.follow("tea", 0)
        append(server, 1)
        assert await some(follower, 1) == ["1 m1"]
        server.is_silent = True
        append(server, 1)
        await server.until(lambda: server.accepted == 2)
        server.is_silent = False
        assert await some(follower, 1) == ["2 m2"]
        assert server.said("ping")


async def test_a_drained_gateway_is_left_in_its_time(server: LiveServer, live: AsyncLive) -> None:
    follower = live.follow("tea", 0)
    append(server, 1)
    assert await some(follower, 1) == ["1 m1"]
    server.tell({"t": "drain", "reconnect_in_s": 0.05})
    await server.until(lambda: server.accepted == 2)
    append(server, 1)
    assert await some(follower, 1) == ["2 m2"]


async def test_a_caller_that_is_slow_holds_up_nobody_and_loses_nothing(server: LiveServer, live: AsyncLive) -> None:
    count = 3 * QUEUE_ITEMS_MAX
    slow = live.follow("slow", 0)
    quick = live.follow("quick", 0)
    append(server, count, "slow")
    await server.until(lambda: bool(server.said("unsubscribe")))  # nobody takes anything of it
    append(server, 5, "quick")
    assert await some(quick, 5) == expected(1, 5)
    assert (await live.send("quick", "m6")).conv_seq == 6
    assert len(slow._waiting) < QUEUE_ITEMS_MAX + server.part_max
    assert await some(slow, count) == expected(1, count)


async def test_who_was_replaced_makes_no_room_for_its_successor(server: LiveServer, live: AsyncLive) -> None:
    append(server, 3 * QUEUE_ITEMS_MAX)
    first = live.follow("tea", 0)
    await server.until(lambda: len(server.said("unsubscribe")) == 1)
    second = live.follow("tea", 0)
    await server.until(lambda: len(server.said("unsubscribe")) == 2)
    assert await first.take()
    await live.pull("tea")
    assert len(second._waiting) < QUEUE_ITEMS_MAX + server.part_max
    assert await some(second, 3 * QUEUE_ITEMS_MAX) == expected(1, 3 * QUEUE_ITEMS_MAX)


async def test_each_calls_back_one_after_the_other(server: LiveServer, live: AsyncLive) -> None:
    append(server, 20)
    taken: list[str] = []
    busy = False

    async def take(item: Message | Hole) -> None:
        nonlocal busy
        assert not busy
        busy = True
        await asyncio.sleep(0)
        busy = False
        taken.append(written(item))
        if len(taken) == 20:
            await follower.aclose()

    follower = live.follow("tea", 0)
    async with asyncio.timeout(WAIT_S):
        await follower.each(take)
    assert taken == expected(1, 20)


async def test_a_second_follower_takes_the_place_of_the_first(server: LiveServer, live: AsyncLive) -> None:
    append(server, 3)
    first = live.follow("tea", 0)
    second = live.follow("tea", 2)
    assert await some(second, 1) == ["3 m3"]
    with pytest.raises(InvalidError, match="followed anew"):
        await some(first, 1)
    await first.aclose()  # which is none of the second's business
    append(server, 1)
    assert await some(second, 1) == ["4 m4"]


async def test_a_removed_member_is_told_so_after_the_last_message(server: LiveServer, live: AsyncLive) -> None:
    follower = live.follow("tea", 0)
    append(server, 2)
    await server.until(lambda: bool(server.said("subscribe")))
    server.remove("tea")
    assert await some(follower, 2) == expected(1, 2)
    with pytest.raises(AuthError, match="removed"):
        await some(follower, 1)
    with pytest.raises(AuthError, match="not yours"):
        await some(live.follow("tea", 0), 1)


async def test_a_token_that_is_not_taken_ends_it(server: LiveServer) -> None:
    server.token = "other"
    async with live_of(server) as live:
        follower = live.follow("tea", 0)
        with pytest.raises(AuthError, match="the token is not taken"):
            await some(follower, 1)
        with pytest.raises(AuthError):
            await live.send("tea", "x")
        with pytest.raises(AuthError):
            live.follow("coffee", 0)


async def test_a_new_token_is_fetched_for_every_connection_and_when_one_expires(server: LiveServer) -> None:
    tokens = iter(["a", "b", "c"])

    async def fetch() -> str:
        return next(tokens)

    async with live_of(server, token=fetch) as live:
        await live.send("tea", "m1")
        server.tell({"t": "expiring", "expires_in_s": 60})
        await server.until(lambda: bool(server.said("auth")))
        assert server.said("auth")[0]["token"] == "b"
        server.cut()
        await live.send("tea", "m2")
        assert [message["sender"] for message in server.log["tea"] if message] == ["a", "c"]


async def test_a_handshake_that_is_refused_for_now_is_tried_again(server: LiveServer, live: AsyncLive) -> None:
    server.statuses = [(503, {"Retry-After": "0"}), (429, {}), (502, {})]
    append(server, 1)
    assert await some(live.follow("tea", 0), 1) == ["1 m1"]
    assert server.statuses == []


async def test_a_server_without_live_delivery_is_said_so(server: LiveServer, live: AsyncLive) -> None:
    server.statuses = [(404, {})]
    with pytest.raises(ServerError, match="404"):
        await some(live.follow("tea", 0), 1)


async def test_a_frame_that_is_not_understood_leads_to_another_connection(server: LiveServer, live: AsyncLive) -> None:
    follower = live.follow("tea", 0)
    append(server, 1)
    assert await some(follower, 1) == ["1 m1"]
    server.tell({"t": "messages", "conv_id": "tea"})
    append(server, 1)
    assert await some(follower, 1) == ["2 m2"]
    assert server.accepted == 2


async def test_watching_tells_the_newest_head_only(server: LiveServer, live: AsyncLive) -> None:
    watcher = live.watch("tea", 2)
    append(server, 5)
    await live.pull("tea")  # everything before it was told
    async with asyncio.timeout(WAIT_S):
        heads = [await anext(watcher)]
    append(server, 3)
    await live.pull("tea")
    async with asyncio.timeout(WAIT_S):
        heads.append(await anext(watcher))
    assert [(head.conv_seq, head.unread) for head in heads] == [(5, 3), (8, 6)]
