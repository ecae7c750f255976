"""Bounds of delivery: heads, feeds, bytes that are held back, and what a gateway that did not read is owed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from imray.core import feed as core_feed
from imray.core.replies import Refusal, Refused
from imray.engine import heads as engine_heads
from imray.engine.heads import Heads
from imray.engine.listening import HeadMoved
from imray.engine.live_feed import LiveFeed
from imray.engine.subscriptions import Subscription
from imray.rpc.endpoint import Parts
from imray.rpc.frames import size_of
from imray.rpc.methods import Method
from imray.rpc.publications import NAMES_MAX, Mark, SubscribeArgs, decode_publication
from imray.shard import publisher
from tests.support.ears import Ear, turns
from tests.support.published import hear, mark, page, publish, published, scripted

_PUSH_BYTES_MAX = 8 * 1024 * 1024


class _Feed:
    """A conversation with one passive listener. Its second message comes in the very turn of the event loop in which
    the listener is found to know the first."""

    conv_id = "tea"
    checking = False

    def __init__(self, ear: Ear, heads: Heads) -> None:
        self.position = 1
        self._subscription = Subscription(ear, 0, passive=True, read=0)
        self._heads = heads

    @property
    def passive(self) -> dict[Subscription, None]:
        """Of `LiveFeed`."""
        if self._subscription.told_head == self.position == 1:
            asyncio.get_running_loop().call_soon(self._next)
        return {self._subscription: None}

    def _next(self) -> None:
        self.position = 2
        self.moved()

    def moved(self) -> None:
        """Somebody must be told."""
        self._heads.moved(cast(LiveFeed, self))


async def test_the_last_head_reaches_passive_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_heads, "_HEAD_S_MIN", 0.01)
    heads = Heads()
    ear = Ear()
    _Feed(ear, heads).moved()
    await ear.until(lambda: HeadMoved("tea", 2, 2) in ear.notices, 2.0)
    heads.close()


async def test_heads_of_many_conversations_are_not_one_pause_each() -> None:
    async with scripted() as (shards, feeds):
        ears = []
        for n in range(300):
            ears.append(Ear())
            await hear(shards, feeds, ears[-1], mark(5, conv_id=f"tea{n}"), passive=True)
        async with asyncio.timeout(2.0):
            for ear in ears:
                await ear.until(lambda ear=ear: bool(ear.notices))


async def test_what_was_read_is_not_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_heads, "_HEAD_S_MIN", 0.0)
    async with scripted() as (shards, feeds):
        ear = Ear()
        await hear(shards, feeds, ear, mark(10), passive=True)
        await ear.until(lambda: ear.notices == [HeadMoved("tea", 10, 10)])
        feeds.read(ear, "tea", 9)
        feeds.read(ear, "tea", 3)  # older, and says nothing
        publish(feeds, mark(11), published("tea", [11]))
        await ear.until(lambda: ear.notices[-1] == HeadMoved("tea", 11, 2))


async def test_a_full_gateway_lets_the_feed_go_that_is_idle_for_the_longest_time() -> None:
    async with scripted(feeds_max=3) as (shards, feeds):
        ear = Ear()
        for name in ("a", "b", "c"):
            await hear(shards, feeds, ear, mark(conv_id=name))
        busy = await feeds.subscribe(ear, "d", 0, False)
        assert isinstance(busy, Refusal)
        assert busy.why is Refused.BUSY
        for name in ("b", "a"):
            feeds.unsubscribe(ear, name)
        await hear(shards, feeds, ear, mark(conv_id="d"))
        assert set(feeds.feeds) == {"a", "c", "d"}
        await hear(shards, feeds, ear, mark(conv_id="a"))  # it is still known, and wanted again
        assert isinstance(await feeds.subscribe(ear, "b", 0, False), Refusal)


async def test_what_is_held_back_behind_a_hole_is_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_feed, "HELD_BYTES_MAX", 100_000)
    async with scripted() as (shards, feeds):
        ear = Ear()
        await hear(shards, feeds, ear)
        for seq in range(2, 102):
            publish(feeds, mark(seq), published("tea", [seq], 10_000))
            assert feeds.bytes <= 100_000
        assert feeds.bytes > 80_000
        while ear.upto < 101:  # what was dropped is read again
            asked = await shards.reading.next()
            asked.answer.set_result(page(asked.what))
            await turns()
        assert ear.seqs == list(range(1, 102))
        publish(feeds, mark(105), published("tea", [105], 10_000))
        feeds.close()
        assert feeds.bytes == 0


class _Reader:
    """A gateway's connection, whose buffer is empty once it reads."""

    def __init__(self) -> None:
        self.reads = False
        self.largest = 0
        self.marks: dict[str, Mark] = {}
        self.told = asyncio.Event()

    def push(self, log_number: int, method: Method, content: Parts) -> bool:
        """As `ServerConnection.push` with an empty buffer."""
        if not self.reads or size_of(content) > _PUSH_BYTES_MAX:
            return False
        self.largest = max(self.largest, size_of(content))
        head = decode_publication(memoryview(bytearray(b"".join(content)))).head
        self.marks |= {mark.conv_id: mark for mark in head.marks}
        self.told.set()
        return True

    def add_close_callback(self, callback: Callable[[], None]) -> None:
        """It stays."""


async def test_marks_of_seventy_thousand_conversations_are_owed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_OWED_AGAIN_S", 0.001)
    reader = _Reader()

    async def is_writer() -> bool:
        return True

    told = publisher.Publisher(0, is_writer)
    names = [f"{n:07d}" + "x" * 120 for n in range(70_000)]
    for begin in range(0, len(names), NAMES_MAX):
        assert told.subscribe(reader, SubscribeArgs(names[begin : begin + NAMES_MAX], [])) is None
    told.publish(None, [mark(5, conv_id=name) for name in names])
    assert not reader.marks
    reader.reads = True
    told.publish(None, [mark(6, conv_id=names[-1])])  # what is newer is told at once
    assert reader.marks == {names[-1]: mark(6, conv_id=names[-1])}
    async with asyncio.timeout(10.0):
        while len(reader.marks) < len(names):
            reader.told.clear()
            await reader.told.wait()
    told.end()
    assert reader.marks[names[-1]].stable == 6
    assert reader.largest < 1024 * 1024
