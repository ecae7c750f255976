"""What fails costs nobody else anything, and is tried again: shards that refuse or are away, errors nobody foresaw."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from imray.core.replies import Refusal, Refused
from imray.engine import clients, feed_links
from imray.engine.catch_up import CatchUp
from imray.engine.feed_links import FeedLink
from imray.engine.listening import Batch, Encoder, Ended, EndReason, Notice, Signal
from imray.rpc.publications import Mark, SubscribedMarks
from tests.support.ears import Ear, plain, send, turns
from tests.support.local_system import local_system
from tests.support.published import Only, Scripted, hear, mark, page, publish, published, scripted, signalled

_REFUSED = Refusal(Refused.UNAVAILABLE, "it recovers")


class _Link:
    """The subscriptions to log 0 over scripted shards."""

    def __init__(self) -> None:
        self.shards = Scripted()
        self.marks: list[Mark] = []
        self.link = FeedLink(0, self.shards, lambda epoch, marks: self.marks.extend(marks))

    async def want(self, *names: str) -> None:
        """And have it answered."""
        for name in names:
            self.link.want(name)
        await self.shards.answer(*(mark(conv_id=name) for name in names))
        await turns()


async def test_what_is_left_and_wanted_again_while_another_ask_waits_is_asked_for() -> None:
    links = _Link()
    await links.want("tea")
    links.link.want("coffee")
    other = await links.shards.subscribing.next()
    links.link.leave("tea")
    links.link.want("tea")
    other.answer.set_result(SubscribedMarks(1, [mark(conv_id="coffee")]))
    assert (await links.shards.answer(mark(7))).add == ["tea"]
    await turns()
    assert mark(7) in links.marks
    links.link.close()


async def test_what_is_wanted_again_while_it_is_taken_back_is_asked_for() -> None:
    links = _Link()
    await links.want("tea", "coffee")
    links.link.leave("tea")
    taking_back = await links.shards.subscribing.next()
    assert taking_back.what.drop == ["tea"]
    links.link.want("tea")
    taking_back.answer.set_result(_REFUSED)  # it may have been executed
    asked = await links.shards.answer(mark(7))
    assert (asked.add, asked.drop) == (["tea"], [])
    links.link.close()


async def test_what_was_left_while_its_shard_refused_is_taken_back_later() -> None:
    links = _Link()
    links.link.want("tea")
    asked = await links.shards.subscribing.next()
    asked.answer.set_result(_REFUSED)  # it may have been executed
    await turns()
    links.link.leave("tea")
    asked = await links.shards.subscribing.next()
    assert asked.what.drop == ["tea"]
    asked.answer.set_result(_REFUSED)
    await turns()
    assert not links.link.idle
    assert (await links.shards.answer()).drop == ["tea"]
    await turns()
    assert links.link.idle
    links.link.close()


async def test_a_writer_that_refuses_for_long_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_links, "SILENCE_S_MAX", 0.1)
    links = _Link()
    links.link.want("tea")
    refused = 0
    while not links.shards.doubted:
        (await links.shards.subscribing.next()).answer.set_result(_REFUSED)
        refused += 1
        assert refused < 10
    links.link.close()


async def test_an_old_writer_that_refuses_reads_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_DOUBT_S", 0.1)
    async with local_system(tmp_path, shards=1, send_deadline_s=5.0) as system:
        engine = system.engine()
        await send(engine, "tea", 1)
        await system.start(0)  # the old one is not stopped, and nobody sends to it
        located = await engine.head("tea")
        assert not isinstance(located, Refusal), located
        assert located.head == 1


async def test_an_ask_that_fails_in_an_unforeseen_way_is_asked_again() -> None:
    async with scripted() as (shards, feeds):
        ear = Ear()
        await hear(shards, feeds, ear)
        feeds.on_lost(0)
        (await shards.subscribing.next()).answer.set_exception(RuntimeError("can't start new thread"))
        assert (await shards.answer(mark())).add == ["tea"]
        publish(feeds, mark(1), published("tea", [1]))
        assert ear.seqs == [1]


@pytest.mark.parametrize("hole", [False, True], ids=["a listener that catches up", "a hole"])
async def test_a_read_that_fails_in_an_unforeseen_way_is_tried_again(hole: bool) -> None:
    async with scripted(feed_bytes_max=0) as (shards, feeds):
        ear = Ear()
        await hear(shards, feeds, ear, mark(0 if hole else 3))
        if hole:
            publish(feeds, mark(3), published("tea", [3]))
        failed = await shards.reading.next()
        failed.answer.set_exception(OSError(24, "too many open files"))
        asked = await shards.reading.next()
        assert asked.what == failed.what
        asked.answer.set_result(page(asked.what))
        await turns()
        assert ear.seqs == [1, 2, 3]
        publish(feeds, mark(4), published("tea", [4]))
        assert ear.seqs == [1, 2, 3, 4]


async def test_a_frame_that_cannot_be_made_costs_its_listener_only() -> None:
    async with scripted() as (shards, feeds):
        before, failing, behind = ears = [Ear(), Ear(), Ear()]
        failing.encoder = _failing_once()
        for ear in ears:
            await hear(shards, feeds, ear)
        publish(feeds, mark(1), published("tea", [1]))
        publish(feeds, mark(2), published("tea", [2]))
        assert failing.notices == [Ended("tea", 0, EndReason.UNAVAILABLE)]
        await hear(shards, feeds, failing)
        for ear in (before, failing, behind):
            assert ear.seqs == [1, 2]


def _failing_once() -> Encoder:
    failed: list[Batch] = []

    def encoder(batch: Batch) -> bytes:
        if not failed:
            failed.append(batch)
            raise MemoryError("one frame could not be made")
        return plain(batch)

    return encoder


async def test_a_listener_that_cannot_be_notified_costs_the_others_no_signal() -> None:
    class Broken(Ear):
        def notify(self, notice: Notice) -> None:
            raise RuntimeError("its connection is broken")

    async with scripted() as (shards, feeds):
        ears = [Broken("ada"), Ear("eve")]
        for ear in ears:
            await hear(shards, feeds, ear)
        signalled(feeds)
        assert ears[1].notices == [Signal("tea", "bob", "typing", b"1")]


async def test_rights_that_fail_in_an_unforeseen_way_end_only_who_was_asked_about() -> None:
    async with scripted() as (shards, feeds):
        eve = Ear("eve")
        service = Ear("ops")
        service.service = True
        await hear(shards, feeds, eve, mark(members=2))
        await hear(shards, feeds, service)
        publish(feeds, mark(1, members=4), published("tea", [1]))
        (await shards.members.next()).answer.set_exception(RuntimeError("unforeseen"))
        await turns()
        assert eve.notices == [Ended("tea", 0, EndReason.UNAVAILABLE)]
        assert service.seqs == [1]
        await hear(shards, feeds, eve)
        assert eve.seqs == [1]
        publish(feeds, mark(1, members=6))  # and the next change is asked about again
        (await shards.members.next()).answer.set_result(Only())
        await turns()
        assert eve.notices[-1] == Ended("tea", 1, EndReason.REMOVED)


async def test_a_dead_shard_does_not_stop_reads_of_others_nor_catch_ups_those_of_holes() -> None:
    shards = Scripted()
    catch_up = CatchUp(shards, 1 << 20)
    shards.elsewhere = {"well"}
    waiting = [asyncio.create_task(catch_up.read(f"dead{n}", 0, 5)) for n in range(50)]
    waiting.append(asyncio.create_task(catch_up.read("well", 0, 5)))
    waiting.append(asyncio.create_task(catch_up.read("hole", 0, 5, hole=True)))
    await turns()
    assert shards.reading.count == 8 + 2  # the dead one is not asked for everything at once
    told = set()
    for _ in range(shards.reading.count):
        asked = await shards.reading.next()
        if not asked.what.conv_id.startswith("dead"):
            asked.answer.set_result(page(asked.what))
            told.add(asked.what.conv_id)
    assert told == {"well", "hole"}
    for task in waiting[-2:]:
        found = await task
        assert not isinstance(found, Refusal)
        assert found[-1].upto == 5
    catch_up.close()
    await asyncio.gather(*waiting, return_exceptions=True)
