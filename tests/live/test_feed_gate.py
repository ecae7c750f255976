"""Who may listen, by a script: what a gateway tells nobody while it does not know who still may."""

from __future__ import annotations

import asyncio

import pytest

from imray.core.replies import Refusal, Refused
from imray.engine.listening import Ended, EndReason, HeadMoved
from imray.rpc.publications import MembersTold, SubscribedMarks
from tests.support.ears import Ear, turns
from tests.support.published import Only, hear, mark, page, publish, published, scripted, signalled


@pytest.mark.parametrize("how", ["published", "answered", "told after another", "created"])
async def test_nobody_is_told_more_while_it_is_asked_who_may_listen(how: str) -> None:
    async with scripted() as (shards, feeds):
        before, after = (-1, 1) if how == "created" else (2, 4)
        _, eve, service = ears = [Ear("ada"), Ear("eve"), Ear("ops")]
        service.service = True
        for ear in ears:
            await hear(shards, feeds, ear, mark(members=before))
        change = MembersTold("tea", 0, after, []) if how in ("told after another", "created") else None
        if how == "answered":
            feeds.on_lost(0)
            asked = await shards.subscribing.next()
            publish(feeds, mark(members=before), published("tea", [1]))
            asked.answer.set_result(SubscribedMarks(1, [mark(1, members=after)]))
            await turns()
        else:
            publish(feeds, mark(1, members=after), published("tea", [1]), change)
        assert [ear.seqs for ear in ears] == [[], [], [1]]
        asking = await shards.members.next()
        publish(feeds, mark(2, members=after), published("tea", [2]))
        assert [ear.seqs for ear in ears] == [[], [], [1, 2]]
        asking.answer.set_result(Only("ada"))
        await turns()
        assert [ear.seqs for ear in ears] == [[1, 2], [], [1, 2]]
        assert eve.notices == [Ended("tea", 0, EndReason.REMOVED)]


async def test_who_catches_up_or_hears_heads_only_waits_for_the_same_answer() -> None:
    async with scripted() as (shards, feeds):
        ada, passive = ears = [Ear("ada"), Ear("eve")]
        await hear(shards, feeds, ada, mark(5, members=2))
        await hear(shards, feeds, passive, passive=True)
        asked = await shards.reading.next()
        publish(feeds, mark(5, members=4))
        asked.answer.set_result(page(asked.what))
        await turns()
        assert not ada.seqs
        assert not passive.notices
        (await shards.members.next()).answer.set_result(Only(*(ear.sender for ear in ears)))
        await ada.until(lambda: ada.seqs == [1, 2, 3, 4, 5])
        await passive.until(lambda: passive.notices == [HeadMoved("tea", 5, 5)])


async def test_a_thousand_changes_are_one_check_that_runs() -> None:
    async with scripted() as (shards, feeds):
        ear = Ear()
        await hear(shards, feeds, ear, mark(members=2))
        before = len(asyncio.all_tasks())
        for version in range(3, 1003):
            publish(feeds, mark(members=version))
        checking = await shards.members.next()
        for version in range(1003, 2003):
            publish(feeds, mark(1, members=version), published("tea", [1]))
        assert len(asyncio.all_tasks()) == before + 1
        checking.answer.set_result(Only("ada"))
        last = await shards.members.next()  # what the first was told may be older than the last change
        assert not ear.seqs
        last.answer.set_result(Only("ada"))
        await turns()
        assert ear.seqs == [1]
        assert shards.members.count == 3  # with the one when it subscribed
        assert len(asyncio.all_tasks()) == before


async def test_who_was_not_admitted_neither_signals_nor_hears_signals() -> None:
    async with scripted() as (shards, feeds):
        ada = Ear("ada")
        eve = Ear("eve")
        await hear(shards, feeds, ada, mark(members=2))
        subscribing = asyncio.create_task(feeds.subscribe(eve, "tea", 0, False))
        asked = await shards.members.next()
        refused = await feeds.signal(eve, "tea", "typing", b"1")
        assert isinstance(refused, Refusal)
        assert not shards.signals
        signalled(feeds)
        assert not eve.notices
        assert len(ada.notices) == 1
        asked.answer.set_result(Only("ada"))
        assert isinstance(await subscribing, Refusal)


async def test_no_signal_is_heard_while_it_is_asked_who_may_listen() -> None:
    async with scripted() as (shards, feeds):
        eve = Ear("eve")
        await hear(shards, feeds, eve, mark(members=2))
        publish(feeds, mark(members=4))
        signalled(feeds)
        assert not eve.notices


async def test_a_member_that_became_a_reader_may_not_signal_any_more() -> None:
    async with scripted() as (shards, feeds):
        eve = Ear("eve")
        await hear(shards, feeds, eve, mark(members=2))
        assert await feeds.signal(eve, "tea", "typing", b"1") is None
        publish(feeds, mark(members=3), change=MembersTold("tea", 0, 3, []))
        (await shards.members.next()).answer.set_result(Only(readers=["eve"]))
        await turns()
        refused = await feeds.signal(eve, "tea", "typing", b"1")
        assert isinstance(refused, Refusal)
        assert refused.why is Refused.FORBIDDEN
        publish(feeds, mark(1, members=3), published("tea", [1]))
        assert eve.seqs == [1]


async def test_a_stalled_listener_that_is_removed_is_told_all_up_to_its_removal() -> None:
    async with scripted(feed_bytes_max=2000) as (shards, feeds):
        eve = Ear("eve")
        await hear(shards, feeds, eve, mark(members=2))
        eve.room = 2
        for seq in range(1, 51):
            version, change = (2, None) if seq <= 10 else (3, MembersTold("tea", 10, 3, ["eve"]))
            publish(feeds, mark(seq, members=version), published("tea", [seq]), change if seq == 11 else None)
        assert eve.seqs == [1, 2]
        assert not eve.notices
        eve.room = 1 << 60
        feeds.resume(eve)
        asked = await shards.reading.next()
        asked.answer.set_result(page(asked.what))
        await turns()
        assert eve.notices == [Ended("tea", 10, EndReason.REMOVED)]
        assert eve.seqs == list(range(1, 11))
