"""Pages of a hot group's history equal a model, over all its logs, whatever was lost; and pages of one topic."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analytics import audit, history, spans
from analytics.history import HistoryReader
from imray.core.errors import CorruptError
from imray.core.pages import Page
from imray.log import checkpoint
from imray.log.manifest import create_or_open
from imray.log.segment import segment_name
from imray.settings import Settings
from tests.support.analytics_logs import SHARDS, FastStore, HotLog, name_in
from tests.support.batches import Msg, msg_id

ROOM = name_in(0)
TOPICS = ["red", "green", "blue"]
SETTINGS = Settings()


class Room:
    """One conversation, hot most of the time, and what it must read as."""

    conv = ROOM

    def __init__(self, root: Path) -> None:
        create_or_open(FastStore(root), SHARDS)
        self.root, self.log, self.model = root, HotLog(root), dict[int, Msg]()
        self.held: list[tuple[Any, list[Msg]]] = []
        self.ids = 0

    def messages(self, n: int, topic: str | None = None) -> list[Msg]:
        """New ones."""
        self.ids += n
        return [
            Msg(
                ROOM, msg_id(self.ids - i), b"%d" % (self.ids - i) * (i + 1), "ada", topic or TOPICS[(self.ids - i) % 3]
            )
            for i in range(n)
        ]

    def send(self, slot: int, n: int = 1, topic: str | None = None) -> None:
        """Through a partition or the home shard. A partition writes its blocks in the order in which it got them."""
        self.write(slot)
        mine = self.messages(n, topic)
        self.model |= dict(zip(self.log.send(slot, *mine), mine, strict=True))

    def hold(self, slot: int, n: int = 1) -> None:
        """A block that is granted and not written yet."""
        mine = self.messages(n)
        self.held.append((self.log.ask(slot, *mine), mine))

    def write(self, slot: int | None = None) -> None:
        """All that is held becomes durable, or what one partition holds."""
        held, self.held = self.held, []
        for asked, mine in held:
            if slot in (None, asked[3]):
                self.model |= dict(zip(self.log.write(*asked), mine, strict=True))
            else:
                self.held.append((asked, mine))

    def lose(self) -> None:
        """Or void."""
        for slot in sorted({asked[3] for asked, _ in self.held}):
            self.log.open_partition(slot)
        self.held = []

    def seal(self, lose: bool = False) -> None:
        """A checkpoint; blocks in flight are settled after the freeze."""
        committer = self.log.committer
        if not committer.log_moved:
            return
        snap = committer.freeze()
        if lose:
            self.lose()
        self.write()
        assert committer.frozen_settled()
        committer.sealed(checkpoint.write(FastStore(self.root), snap, committer.intervals))

    def page(
        self,
        after: int = 0,
        before: int | None = None,
        limit: int = 100,
        descending: bool = False,
        topic: str | None = None,
        reader: HistoryReader | None = None,
    ) -> Page[pa.Table]:
        """One page, as the history actor reads it, checked against the model."""
        found = self.log.committer.locate(ROOM, after + 1, 2**63 - 1 if before is None else before - 1)
        page = (reader or HistoryReader(self.root, SETTINGS)).read(
            0, ROOM, found.stable, found.intervals, found.spans,
            after=after, before=before, limit=limit, descending=descending, topic=topic,
        )  # fmt: skip
        low, high = after + 1, found.stable if before is None else min(found.stable, before - 1)
        mine = {n: m for n, m in sorted(self.model.items()) if page.low <= n <= page.high}
        wanted = [(n, m.id, m.topic, m.body) for n, m in mine.items() if topic in (None, m.topic)]
        columns = [page.messages[c].to_pylist() for c in ("conv_seq", "client_msg_id", "topic", "body")]
        assert list(zip(*columns, strict=True)) == (wanted[::-1] if descending else wanted)
        assert sum(b - a + 1 for a, b, _ in page.holes) + len(mine) == max(0, page.high - page.low + 1)
        assert not any(a <= n <= b for a, b, _ in page.holes for n in mine)
        assert page.messages.num_rows <= limit
        if low <= high:
            assert page.high >= page.low, "a page leads on"
            assert (page.high == high) if descending else (page.low == low)
            done = (page.low == low) if descending else (page.high == high)
            assert page.next == (None if done else page.low if descending else page.high)
        else:
            assert (page.messages.num_rows, page.holes, page.next) == (0, [], None)
        return page


def random_room(root: Path, seed: int) -> Room:
    """Blocks written, held and lost, restarts, checkpoints, hot and cold turns in random order."""
    r, room = random.Random(seed), Room(root)
    room.send(0, 2)
    partitions = 0
    for _ in range(r.randint(5, 25)):
        match r.choices(["send", "hold", "write", "lose", "seal", "heat", "cool", "restart"], [9, 4, 3, 2, 3, 3, 1, 1])[
            0
        ]:
            case "send":
                room.send(r.randint(0, partitions), r.randint(1, 6))
            case "hold" if partitions and len(room.held) < 4:
                room.hold(r.randint(1, partitions), r.randint(1, 4))
            case "write":
                room.write()
            case "lose":
                room.lose()
            case "seal":
                room.seal(lose=r.random() < 0.5)
            case "heat":
                partitions = r.randint(max(1, partitions), 3)
                room.log.make_hot(ROOM, partitions)
            case "cool" if partitions:
                room.write()
                room.log.make_cold(ROOM)
                partitions = 0
            case "restart":
                room.held = []
                room.log.restart()
    return room  # fmt: skip


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 10**6), data=st.data())
def test_random_pages_of_random_hot_logs(seed: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        room = random_room(Path(folder), seed)
        reader = HistoryReader(folder, replace(SETTINGS, history_bytes_max=data.draw(st.sampled_from([1, 30, 10**6]))))
        head = max(room.model)
        for _ in range(6):
            near = data.draw(st.sampled_from(sorted(room.model)))
            room.page(
                data.draw(st.integers(0, 5) | st.just(near)),
                data.draw(st.none() | st.integers(1, head + 2) | st.just(near + 3)),
                data.draw(st.integers(1, 9)),
                data.draw(st.booleans()),
                data.draw(st.sampled_from([None, *TOPICS, "none"])),
                reader,
            )
        room.write()
        report = audit.run(folder)
        assert report.ok, report.to_text()
        assert report["unsettled_blocks"].total == 0


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("topic", [None, "red"])
@pytest.mark.parametrize("seed", range(3))
def test_pages_one_after_the_other(tmp_path: Path, seed: int, topic: str | None, descending: bool) -> None:
    room = random_room(tmp_path, seed + 70)
    room.write()
    reader = HistoryReader(tmp_path, SETTINGS)
    found: list[int] = []
    after, before = 0, None
    for _ in range(200):
        page = room.page(after, before, 3, descending, topic, reader)
        found += page.messages["conv_seq"].to_pylist()
        if page.next is None:
            break
        after, before = (after, page.next) if descending else (page.next, before)
    assert found == sorted((n for n, m in room.model.items() if topic in (None, m.topic)), reverse=descending)


def test_what_was_lost_after_the_freeze_stands_below_what_was_sealed(tmp_path: Path) -> None:
    """Its void record is newer than the checkpoint, and numbers above it are older."""
    room = Room(tmp_path)
    room.log.make_hot(ROOM, 2)
    room.send(1, 3)
    room.hold(1, 2)
    room.send(2, 4)
    room.seal(lose=True)
    room.send(2, 2)
    for after in range(11):
        for descending in (False, True):
            for limit in (1, 2, 100):
                room.page(after, None, limit, descending)
    room.log.restart()
    for after in range(11):
        room.page(after)


def test_nothing_above_a_block_in_flight(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.log.make_hot(ROOM, 2)
    room.send(1, 2)
    room.hold(1, 1)
    room.send(2, 2)
    assert room.page().messages["conv_seq"].to_pylist() == [1, 2]
    room.write()
    assert room.page().messages["conv_seq"].to_pylist() == [1, 2, 3, 4, 5]


def test_a_missing_partitions_segment_is_never_left_out_silently(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.log.make_hot(ROOM, 1)
    room.send(1, 2)
    room.send(0, 2)
    (tmp_path / segment_name(10_001, 2)).unlink()
    with pytest.raises(CorruptError) as e:
        room.page()
    assert e.value.file == segment_name(10_001, 2)
    assert room.page(after=2).messages.num_rows == 2


def test_a_rare_topic_is_followed_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page looks through so many numbers and files at most; `next` leads on over pages without messages."""
    monkeypatch.setattr(history, "TOPIC_NUMBERS_MAX", 20)
    monkeypatch.setattr(history, "_STEP_NUMBERS_MAX", 4)
    room = Room(tmp_path)
    room.log.make_hot(ROOM, 2)
    for i in range(30):
        room.send(i % 3, 2, "rare" if i in (20, 21, 22) else "usual")
    reader = HistoryReader(tmp_path, SETTINGS)
    for descending, limit in ((False, 100), (True, 100), (False, 2), (True, 1)):
        after, before, pages, found = 0, None, 0, []
        while True:
            page = room.page(after, before, limit, descending, "rare", reader)
            assert page.high - page.low < 20
            pages += 1
            found += page.messages["conv_seq"].to_pylist()
            if page.next is None:
                break
            after, before = (after, page.next) if descending else (page.next, before)
        assert found == (list(range(46, 40, -1)) if descending else list(range(41, 47)))
        assert pages >= 3
    for module in (history, spans):
        monkeypatch.setattr(module, "FILES_MAX", 3)
    monkeypatch.setattr(history, "_STEP_NUMBERS_MAX", 512)
    page = room.page(topic="rare")
    assert (page.messages.num_rows, page.low, page.high, page.next) == (0, 1, 6, 6)


def test_the_limit_ends_a_page_of_a_topic_before_its_next_message(tmp_path: Path) -> None:
    room = Room(tmp_path)
    for topic in ("a", "b", "a", "b", "b", "a", "b"):
        room.send(0, 1, topic)
    page = room.page(topic="a", limit=2)
    assert (page.messages["conv_seq"].to_pylist(), page.high, page.next) == ([1, 3], 5, 5)
    page = room.page(after=5, topic="a", limit=2)
    assert (page.messages["conv_seq"].to_pylist(), page.high, page.next) == ([6], 7, None)
    page = room.page(topic="a", limit=1, descending=True)
    assert (page.messages["conv_seq"].to_pylist(), page.low, page.next) == ([6], 4, 4)
