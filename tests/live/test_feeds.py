"""Feeds over a whole system in this process: what listeners are told, whatever happens to shards and partitions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from imray.core.replies import Refusal
from imray.engine.listening import Behind, Ended, HeadMoved, Signal
from tests.support.ears import Ear, listen, send
from tests.support.local_system import local_system


async def test_what_is_sent_is_told_in_order(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        ear = Ear()
        await listen(engine, ear, "tea")
        seqs = await send(engine, "tea", 20)
        await ear.until(lambda: ear.upto == 20)
        assert ear.seqs == seqs
        ear.check(0)


async def test_every_gateway_tells_the_same(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engines = [system.engine() for _ in range(3)]
        ears = [Ear() for _ in engines]
        for engine, ear in zip(engines, ears, strict=True):
            await listen(engine, ear, "tea")
        await asyncio.gather(*(send(engine, "tea", 20) for engine in engines))
        for ear in ears:
            await ear.until(lambda ear=ear: ear.upto == 60)
            ear.check(0)
        assert len({tuple(ear.seqs) for ear in ears}) == 1


async def test_who_comes_late_gets_what_it_missed_and_then_what_comes(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        await send(engine, "tea", 30)
        ear = Ear()
        answer = await listen(engine, ear, "tea", 10)
        assert (answer.after, answer.live, answer.stable) == (10, 31, 30)
        await send(engine, "tea", 5)
        await ear.until(lambda: ear.upto == 35)
        ear.check(10)
        assert ear.seqs == list(range(11, 36))


async def test_from_now_on_begins_with_the_next_message(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        await send(engine, "tea", 3)
        ear = Ear()
        assert (await listen(engine, ear, "tea", None)).after == 3
        await send(engine, "tea", 1)
        await ear.until(lambda: ear.upto == 4)
        assert ear.seqs == [4]


async def test_a_listener_without_room_is_told_that_it_is_behind_and_goes_on_live(tmp_path: Path) -> None:
    async with local_system(tmp_path, feed_bytes_max=2000) as system:
        engine = system.engine()
        slow = Ear()
        quick = Ear()
        await listen(engine, slow, "tea")
        await listen(engine, quick, "tea")
        slow.room = 2
        await send(engine, "tea", 50)
        await quick.until(lambda: quick.upto == 50)
        assert slow.upto == 2
        slow.room = 1 << 60
        engine.feeds.resume(slow)
        await slow.until(lambda: bool(slow.notices))
        assert slow.notices == [Behind("tea", 2, 50)]
        await send(engine, "tea", 1)
        await slow.until(lambda: slow.upto == 51)
        await listen(engine, slow, "tea", 2)
        await slow.until(lambda: slow.seqs[-49:] == list(range(3, 52)))


async def test_a_listener_that_was_away_for_a_moment_needs_no_read(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        ear = Ear()
        await listen(engine, ear, "tea")
        await send(engine, "tea", 10)
        await ear.until(lambda: ear.upto == 10)
        engine.feeds.leave(ear)
        await send(engine, "tea", 10)
        again = Ear()
        await listen(engine, again, "tea", 10)
        await again.until(lambda: again.upto == 20)
        again.check(10)
        assert engine.feeds.catch_up.reads == 0


async def test_catch_ups_of_one_conversation_share_one_read(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        await send(system.engine(), "tea", 40)
        engine = system.engine()
        ears = [Ear() for _ in range(100)]
        await asyncio.gather(*(listen(engine, ear, "tea", i % 7) for i, ear in enumerate(ears)))
        for i, ear in enumerate(ears):
            await ear.until(lambda ear=ear: ear.upto == 40)
            ear.check(i % 7)
        assert engine.feeds.catch_up.reads == 1


async def test_passive_listeners_get_heads_only(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        ear = Ear()
        await listen(engine, ear, "tea", 0, passive=True)
        await send(engine, "tea", 10)
        await ear.until(lambda: bool(ear.notices) and ear.notices[-1] == HeadMoved("tea", 10, 10))
        assert not ear.frames
        await listen(engine, ear, "tea", 0)
        await ear.until(lambda: ear.upto == 10)
        ear.check(0)


async def test_a_signal_reaches_listeners_at_other_gateways_and_is_not_stored(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        here = system.engine()
        there = system.engine()
        ada = Ear("ada")
        bob = Ear("bob")
        await listen(here, ada, "tea")
        await listen(there, bob, "tea")
        assert await here.feeds.signal(ada, "tea", "typing", b"true") is None
        await bob.until(lambda: bob.notices == [Signal("tea", "ada", "typing", b"true")])
        assert not ada.notices
        assert isinstance(await here.feeds.signal(ada, "coffee", "typing", b"true"), Refusal)


async def test_a_shard_that_is_replaced_loses_nothing(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        ear = Ear()
        await listen(engine, ear, "tea")
        await send(engine, "tea", 5)
        await system.replace(engine.shard_of("tea"))
        await send(engine, "tea", 5)
        await ear.until(lambda: ear.upto == 10)
        ear.check(0)


async def test_what_another_gateway_sends_while_a_shard_is_replaced_is_told(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        other = system.engine()
        ear = Ear()
        await listen(engine, ear, "tea")
        await send(other, "tea", 5)
        await system.replace(engine.shard_of("tea"))
        await send(other, "tea", 5)  # perhaps before the first gateway has subscribed again
        await ear.until(lambda: ear.upto == 10)
        ear.check(0)


async def test_an_old_shard_that_lives_on_is_left(tmp_path: Path) -> None:
    """Its connection is there, and it never says anything again: the beats stop."""
    async with local_system(tmp_path) as system:
        engine = system.engine()
        other = system.engine()
        ear = Ear()
        await listen(engine, ear, "tea")
        await send(other, "tea", 1)
        await ear.until(lambda: ear.upto == 1)
        await system.start(engine.shard_of("tea"))  # the old one is not stopped
        other.look_anew(engine.shard_of("tea"))
        await send(other, "tea", 1)
        await ear.until(lambda: ear.upto == 2)
        ear.check(0)


@pytest.mark.parametrize("kill", ["nobody", "a partition", "the home shard"])
async def test_a_hot_group_is_told_in_one_order(tmp_path: Path, kill: str) -> None:
    async with local_system(tmp_path, shards=1, grant_timeout_s=0.5, partition_deadline_s=0.5) as system:
        engine = system.engine()
        other = system.engine()
        ears = [Ear(), Ear()]
        await listen(engine, ears[0], "tea")
        await listen(other, ears[1], "tea")
        await send(engine, "tea", 3)
        assert await engine.make_hot("tea", 3) is None
        for _ in range(3):
            sending = [send(e, "tea", 10, f"user{n}") for n in range(4) for e in (engine, other)]
            await asyncio.gather(*sending)
            if kill != "nobody":
                await system.replace(10_001 if kill == "a partition" else 0)
        assert await engine.make_hot("tea", 0) is None
        await send(engine, "tea", 3)
        located = await engine.head("tea")
        assert not isinstance(located, Refusal)
        for ear in ears:
            await ear.until(lambda ear=ear: ear.upto == located.stable)
            ear.check(0)
            assert len(ear.seqs) == 3 + 240 + 3
        assert ears[0].seqs == ears[1].seqs


async def test_a_removed_listener_is_told_up_to_its_removal(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        ear = Ear()
        await listen(engine, ear, "tea")
        await send(engine, "tea", 3)
        await ear.until(lambda: ear.upto == 3)
        feed = engine.feeds.feeds["tea"]
        feed.removed(feed.subscriptions[ear], 5)
        await send(engine, "tea", 4)
        await ear.until(lambda: bool(ear.notices))
        assert isinstance(ear.notices[0], Ended)
        assert (ear.upto, ear.notices[0].after) == (5, 5)
        ear.check(0)
