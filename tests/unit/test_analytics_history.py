"""Pages of history equal a model that reads everything, in both orders, whatever the log looks like."""

from __future__ import annotations

import base64
import pickle
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics import history, spans
from analytics.history import MESSAGES_SCHEMA, HistoryReader
from imray.core.errors import CorruptError, DerivedError
from imray.core.pages import Page
from imray.log.segment import segment_name
from imray.settings import Settings
from imray.shard.committer import Committer
from tests.support.analytics_logs import NOT_UTF8, FastStore, craft, open_shard, seal, void, writer_of
from tests.support.batches import Msg, commit, msg_id

CONV = "tea"
SETTINGS = Settings()
Model = dict[int, Msg | str]
"""Each number: its message, or the reason of the void."""


class Chat:
    """Conversation `tea` of shard 0, written with others around it, and what it must read as."""

    def __init__(self, root: Path) -> None:
        self.root, self.model, self.ids = root, Model(), 0
        self.committer: Committer = open_shard(root, 0)

    def say(self, bodies: list[bytes], others: int = 1) -> None:
        mine = [Msg(CONV, self._id(), b, f"user-{len(b)}", "t" if len(b) % 2 else None, None, len(b)) for b in bodies]
        noise = [Msg(f"other-{i}", self._id(), b"noise") for i in range(others)]
        commit(self.committer, [*noise, *mine])
        for message in mine:
            self.model[len(self.model) + 1] = message

    def void(self, numbers: int) -> None:
        head = len(self.model)
        self.committer.writer.close()
        void(self.root, 0, CONV, head + 1, head + numbers, f"void after {head}")
        self.model |= {head + 1 + i: f"void after {head}" for i in range(numbers)}
        self.committer = open_shard(self.root, 0)

    def seal(self) -> None:
        seal(self.committer, self.root)

    def _id(self) -> bytes:
        self.ids += 1
        return msg_id(self.ids)

    def page(
        self,
        after: int = 0,
        before: int | None = None,
        limit: int = 100,
        descending: bool = False,
        stable: int | None = None,
        reader: HistoryReader | None = None,
    ) -> Page[pa.Table]:
        found = self.committer.locate(CONV, after + 1, 2**63 - 1 if before is None else before - 1)
        return (reader or HistoryReader(str(self.root), SETTINGS)).read(
            0, CONV, found.stable if stable is None else stable, found.intervals, found.spans,
            after=after, before=before, limit=limit, descending=descending,
        )  # fmt: skip

    def check(self, page: Page[pa.Table], after: int, before: int | None, limit: int, descending: bool) -> None:
        """The page says exactly what the model has for its range, and the range is as large as it must be."""
        low, high = after + 1, min(len(self.model), len(self.model) if before is None else before - 1)
        numbers = range(page.low, page.high + 1)
        assert page.messages.schema == MESSAGES_SCHEMA
        assert rows(page) == [
            (n, m.id, m.sender, m.topic, m.content_type, m.client_ts, m.body)
            for n in (reversed(numbers) if descending else numbers)
            if isinstance(m := self.model[n], Msg)
        ]
        assert {n: why for a, b, why in page.holes for n in range(a, b + 1)} == {
            n: why for n in numbers if isinstance(why := self.model[n], str)
        }
        assert sum(b - a + 1 for a, b, _ in page.holes) + page.messages.num_rows == len(numbers)
        if low > high:
            assert (len(numbers), page.next) == (0, None)
            return
        assert (page.high == high) if descending else (page.low == low)
        exhausted = (page.low == low) if descending else (page.high == high)
        assert page.next == (None if exhausted else (page.low if descending else page.high))
        assert page.messages.num_rows <= limit
        if not exhausted and page.messages.num_rows < limit:
            assert page.messages.num_rows > 0, "a page that leads on has a message"


def rows(page: Page[pa.Table]) -> list[tuple[object, ...]]:
    """The page's messages as tuples."""
    table = page.messages.set_column(5, "client_ts", page.messages["client_ts"].cast(pa.int64()))
    return [tuple(r.values()) for r in table.drop_columns(["server_ts"]).to_pylist()]


def random_chat(root: Path, seed: int) -> Chat:
    """Commits, restarts, void ranges and sealed intervals in random order."""
    r, chat = random.Random(seed), Chat(root)
    for _ in range(r.randint(3, 14)):
        match r.choices(["say", "others", "void", "seal", "restart"], [8, 2, 2, 3, 1])[0]:
            case "say":
                chat.say([r.choice([b"", NOT_UTF8, b"x" * r.randint(1, 40)]) for _ in range(r.randint(1, 9))])
            case "others":
                chat.say([], others=3)
            case "void":
                chat.void(r.choice([1, 2, 30]))
            case "seal":
                chat.seal()
            case "restart":
                chat.committer.writer.close()
                chat.committer = open_shard(root, 0)
    return chat


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_random_pages_of_a_random_log(seed: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        chat = random_chat(Path(folder), seed)
        reader = HistoryReader(folder, replace(SETTINGS, history_bytes_max=data.draw(st.sampled_from([1, 60, 10**6]))))
        for _ in range(8):
            after = data.draw(st.integers(0, len(chat.model) + 2))
            before = data.draw(st.none() | st.integers(1, len(chat.model) + 2))
            limit = data.draw(st.integers(1, 12))
            descending = data.draw(st.booleans())
            page = chat.page(after, before, limit, descending, reader=reader)
            chat.check(page, after, before, limit, descending)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_pages_one_after_the_other_are_the_whole_history(tmp_path: Path, seed: int, descending: bool) -> None:
    chat = random_chat(tmp_path, seed)
    reader = HistoryReader(tmp_path, SETTINGS)
    found: list[tuple[object, ...]] = []
    after, before = 0, None
    for _ in range(1000):
        page = chat.page(after, before, 3, descending, reader=reader)
        chat.check(page, after, before, 3, descending)
        found += rows(page)
        if page.next is None:
            break
        after, before = (after, page.next) if descending else (page.next, before)
    numbers = [n for n in range(1, len(chat.model) + 1) if isinstance(chat.model[n], Msg)]
    assert [r[0] for r in found] == (numbers[::-1] if descending else numbers)


def test_nothing_above_stable_appears(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.say([b"a", b"b", b"c"])
    assert chat.page(stable=2).messages["conv_seq"].to_pylist() == [1, 2]
    assert chat.page(stable=2, descending=True, before=9).messages["conv_seq"].to_pylist() == [2, 1]
    page = chat.page(stable=0)
    assert (page.messages.num_rows, page.low, page.high, page.next) == (0, 1, 0, None)


@pytest.mark.parametrize("descending", [False, True])
def test_bytes_end_a_page_early_but_give_one_message(tmp_path: Path, descending: bool) -> None:
    chat = Chat(tmp_path)
    chat.say([b"x" * 50] * 3)
    chat.void(4)
    chat.say([b"y" * 900, b"z"])
    for room, first in ((10, 1), (50, 1), (100, 2), (149, 2), (150, 3), (1050, 4), (1051, 5)):
        reader = HistoryReader(tmp_path, replace(SETTINGS, history_bytes_max=room))
        page = chat.page(reader=reader)
        chat.check(page, 0, None, 100, False)
        assert page.messages.num_rows == first
    reader = HistoryReader(tmp_path, replace(SETTINGS, history_bytes_max=100))
    page = chat.page(descending=descending, reader=reader)
    chat.check(page, 0, None, 100, descending)
    assert page.messages["conv_seq"].to_pylist() == ([9] if descending else [1, 2])
    assert page.holes == []


def test_a_large_void_is_one_hole_of_one_page(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.say([b"a"])
    chat.void(5000)
    chat.say([b"b"])
    for descending in (False, True):
        page = chat.page(limit=2, descending=descending)
        chat.check(page, 0, None, 2, descending)
        assert (page.holes, page.next) == ([(2, 5001, "void after 1")], None)
    page = chat.page(after=100, before=300)
    assert (page.messages.num_rows, page.holes, page.next) == (0, [(101, 299, "void after 1")], None)


def test_many_segments_are_read_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (history, spans):
        monkeypatch.setattr(module, "FILES_MAX", 3)
    chat = Chat(tmp_path)
    for i in range(20):
        chat.say([b"m%d" % i])
        if i in (7, 13):
            chat.seal()
    for descending in (False, True):
        for after in range(20):
            page = chat.page(after, limit=10, descending=descending)
            chat.check(page, after, None, 10, descending)
            assert page.messages.num_rows == min(3, 20 - after)


def test_only_the_files_that_can_hold_the_answer_are_read(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    for i in range(10):
        chat.say([b"m%d" % i])
        if i == 5:
            chat.seal()
    for segment in (2, 3, 9, 10, 11):
        (tmp_path / segment_name(0, segment)).write_bytes(b"ruined")
    assert chat.page(2, 8).messages["conv_seq"].to_pylist() == [3, 4, 5, 6, 7]
    assert chat.page(2, limit=5).messages["conv_seq"].to_pylist() == [3, 4, 5, 6, 7]
    assert chat.page(before=8, limit=5, descending=True).messages["conv_seq"].to_pylist() == [7, 6, 5, 4, 3]
    with pytest.raises(CorruptError, match=segment_name(0, 3)):
        chat.page(1, 8)


def test_a_byte_flipped_after_a_page_was_read_is_found(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.say([b"hello there"])
    reader = HistoryReader(tmp_path, SETTINGS)
    assert chat.page(reader=reader).messages.num_rows == 1
    path = tmp_path / segment_name(0, 2)
    data = path.read_bytes()
    at = data.index(b"hello")
    path.write_bytes(data[:at] + b"j" + data[at + 1 :])
    with pytest.raises(CorruptError) as e:
        chat.page(reader=reader)
    assert e.value.file == segment_name(0, 2)


def test_postings_that_were_merged_away_are_no_corruption(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.say([b"a"])
    chat.seal()
    path = next((tmp_path / "sealed/shard=0000").glob("*.postings.parquet"))
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"x" + data[-8:])
    with pytest.raises(DerivedError, match=path.name):
        chat.page()
    path.unlink()
    with pytest.raises(DerivedError, match=path.name) as e:
        chat.page()
    assert pickle.loads(pickle.dumps(e.value)).file == e.value.file, "it goes through Ray"
    path.write_bytes(data)
    assert chat.page().messages.num_rows == 1


@pytest.mark.parametrize(("seqs", "what"), [([3], "number 2 is neither"), ([1], "number 1 stands in the log twice")])
def test_a_number_that_nothing_explains_is_never_left_out(tmp_path: Path, seqs: list[int], what: str) -> None:
    chat = Chat(tmp_path)
    chat.say([b"a"])
    writer = writer_of(tmp_path, 0)
    writer.append(craft([{"conv_id": CONV, "conv_seq": n, "client_msg_id": msg_id(99)} for n in seqs], 1), 1)
    reader = HistoryReader(tmp_path, SETTINGS)
    asked = [(2, 1, 1), (4, seqs[0], seqs[0])]
    with pytest.raises(CorruptError, match=what):
        reader.read(0, CONV, max(seqs), [], asked, after=0, before=None, limit=9, descending=False)
    with pytest.raises(CorruptError, match="number 1 is neither"):
        reader.read(0, "nobody", 1, [], [], after=0, before=None, limit=9, descending=False)


def test_bodies_are_the_same_bytes(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    bodies = [bytes([b]) for b in range(256)] + [b"", b"\x00" * 9, "\u2615 tea".encode(), base64.b64encode(NOT_UTF8)]
    chat.say(bodies)
    assert chat.page(limit=999).messages["body"].to_pylist() == bodies
    assert FastStore(tmp_path).get(segment_name(0, 2)) is not None
