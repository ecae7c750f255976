"""Pages over history and log equal a model, whatever was merged, merged again and deleted, and while it is."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analytics.history import HistoryReader
from analytics.tail import TailReader
from imray.core.errors import CorruptError, UnavailableError
from imray.log.segment import segment_name
from imray.settings import Settings
from tests.support.analytics_logs import FastStore
from tests.support.analytics_merges import compact, delete_merged, merge, snapshot_of
from tests.unit.test_analytics_history import CONV, SETTINGS, Chat
from tests.unit.test_analytics_hot_history import TOPICS, Room

TINY = replace(SETTINGS, history_cache_bytes=4096)


def _merge_step(r: random.Random, root: Path) -> None:
    match r.choices(["merge", "compact", "delete"], [5, 2, 3])[0]:
        case "merge":
            merge(root)
        case "compact":
            compact(root, first=r.randint(0, 2))
        case "delete":
            delete_merged(root)


def _merged_chat(root: Path, seed: int) -> Chat:
    r, chat = random.Random(seed), Chat(root)
    for _ in range(r.randint(4, 20)):
        match r.choices(["say", "void", "seal", "merge"], [8, 2, 3, 5])[0]:
            case "say":
                chat.say([b"x" * r.randint(0, 40) for _ in range(r.randint(1, 9))], others=r.randint(0, 3))
            case "void":
                chat.void(r.choice([1, 2, 30]))
            case "seal":
                chat.seal()
            case "merge":
                _merge_step(r, root)
    return chat


def _merged_room(root: Path, seed: int) -> Room:
    r, room = random.Random(seed), Room(root)
    room.log.make_hot("other", 1)
    partitions = 0
    for _ in range(r.randint(8, 30)):
        match r.choices(["send", "hold", "write", "lose", "seal", "heat", "merge"], [9, 4, 3, 1, 4, 2, 5])[0]:
            case "send":
                room.send(r.randint(0, partitions), r.randint(1, 6))
            case "hold" if partitions and len(room.held) < 4:
                room.hold(r.randint(1, partitions), r.randint(1, 4))
            case "write":
                room.write()
            case "lose":
                room.lose()
            case "seal":
                room.seal(lose=r.random() < 0.3)
            case "heat":
                partitions = r.randint(max(1, partitions), 3)
                room.log.make_hot(room.conv, partitions)
            case "merge":
                _merge_step(r, root)
    return room


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 10**6), data=st.data())
def test_random_pages_while_merging(seed: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        chat = _merged_chat(Path(folder), seed)
        reader = HistoryReader(folder, replace(TINY, history_bytes_max=data.draw(st.sampled_from([1, 60, 10**6]))))
        r = random.Random(seed)
        for _ in range(8):
            if r.random() < 0.3:
                _merge_step(r, chat.root)
            after = data.draw(st.integers(0, len(chat.model) + 2))
            before = data.draw(st.none() | st.integers(1, len(chat.model) + 2))
            limit = data.draw(st.integers(1, 12))
            descending = data.draw(st.booleans())
            page = chat.page(after, before, limit, descending, reader=reader)
            chat.check(page, after, before, limit, descending)


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 10**6), data=st.data())
def test_random_pages_of_hot_groups_while_merging(seed: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        room = _merged_room(Path(folder), seed)
        reader = HistoryReader(folder, TINY)
        head = max(room.model, default=1)
        for _ in range(6):
            room.page(
                data.draw(st.integers(0, head)),
                data.draw(st.none() | st.integers(1, head + 2)),
                data.draw(st.integers(1, 9)),
                data.draw(st.booleans()),
                data.draw(st.sampled_from([None, *TOPICS])),
                reader,
            )


def _chat_of(root: Path, commits: int, merged: int) -> Chat:
    """So many commits of two messages, the first ones merged."""
    chat = Chat(root)
    for n in range(commits):
        chat.say([b"m%d" % n, b"n%d" % n])
        if n + 1 == merged:
            chat.seal()
            assert merge(root)
    return chat


def test_what_is_merged_and_deleted_before_the_reader_comes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asked the shard, and read the table, before: it begins anew, and says nothing of corruption."""
    chat = _chat_of(tmp_path, 6, 0)
    chat.seal()
    chat.say([b"last"])
    reader = HistoryReader(tmp_path, SETTINGS)
    rows, calls = TailReader.rows, []

    def merged_first(self: TailReader, *asked: object) -> object:
        if not calls:
            calls.append(merge(tmp_path) and delete_merged(tmp_path))
        return rows(self, *asked)  # type: ignore[arg-type]

    monkeypatch.setattr(TailReader, "rows", merged_first)
    page = chat.page(reader=reader)
    chat.check(page, 0, None, 100, False)
    assert calls == [6]


def test_runs_that_are_replaced_and_deleted_before_the_reader_comes_to_them(tmp_path: Path) -> None:
    chat = _chat_of(tmp_path, 4, 4)
    reader = HistoryReader(tmp_path, replace(SETTINGS, history_cache_bytes=0))
    chat.check(chat.page(reader=reader), 0, None, 100, False)
    chat.say([b"more"])
    chat.seal()
    merge(tmp_path)
    stale = snapshot_of(tmp_path)
    assert compact(tmp_path)
    newest = reader._table.snapshot
    answers = [stale]
    reader._table.snapshot = lambda known=None: answers.pop() if answers else newest(known)  # type: ignore[method-assign]
    chat.check(chat.page(reader=reader), 0, None, 100, False)
    reader._table.snapshot = _always_older(tmp_path, stale)  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match="again and again"):
        chat.page(reader=reader)


def _always_older(root: Path, stale: object) -> Callable[..., object]:
    """A table that was replaced again whenever a reader begins anew."""
    newest = snapshot_of(root)
    turns = 0

    def snapshot(known: object = None) -> object:
        nonlocal turns
        turns += 1
        return stale if turns % 2 else newest

    return snapshot


def test_a_run_that_is_gone_is_corruption(tmp_path: Path) -> None:
    chat = _chat_of(tmp_path, 4, 4)
    for file in snapshot_of(tmp_path).files.values():
        (tmp_path / file.name).unlink()
    with pytest.raises(CorruptError, match="is not there"):
        chat.page(reader=HistoryReader(tmp_path, SETTINGS))


def test_merged_segments_are_not_opened(tmp_path: Path) -> None:
    """Nor are the intervals that lead to them."""
    chat = _chat_of(tmp_path, 8, 6)
    for segment in range(2, 8):
        (tmp_path / segment_name(0, segment)).write_bytes(b"ruined")
    for path in (tmp_path / "sealed/shard=0000").iterdir():
        path.write_bytes(b"ruined")
    chat.check(chat.page(), 0, None, 100, False)
    chat.check(chat.page(descending=True), 0, None, 100, True)


def test_the_first_segment_above_the_table_follows_it(tmp_path: Path) -> None:
    """Another log's segment in its place has another predecessor."""
    chat = _chat_of(tmp_path / "a", 4, 2)
    other = _chat_of(tmp_path / "b", 4, 0)
    name = segment_name(0, 4)
    assert snapshot_of(chat.root).merged == {0: 3}
    (chat.root / name).write_bytes((other.root / name).read_bytes())
    with pytest.raises(CorruptError, match="follows a segment with digest"):
        chat.page(after=4, before=7)


def test_a_number_that_a_run_lacks_is_never_left_out(tmp_path: Path) -> None:
    chat = _chat_of(tmp_path, 4, 4)
    found = chat.committer.locate(CONV, 1, 9)
    reader = HistoryReader(tmp_path, SETTINGS)
    asked = {"after": 0, "before": None, "limit": 20, "descending": False}
    with pytest.raises(CorruptError, match="number 9 is neither"):
        reader.read(0, CONV, found.stable + 1, found.intervals, found.spans, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("messages", [1, 40, 41, 42, 43])
def test_a_merged_void_explains_numbers_far_above_its_row(tmp_path: Path, messages: int) -> None:
    """Also where the row stands in a run that has nothing else of the page, or in an earlier row group."""
    chat = Chat(tmp_path)
    for _ in range(messages):
        chat.say([b"x" * 30])
    chat.void(50)
    chat.say([b"y"] * messages)
    chat.seal()
    merge(tmp_path)
    chat.say([b"z"])
    chat.seal()
    merge(tmp_path)
    reader = HistoryReader(tmp_path, SETTINGS)
    for after in range(messages - 1, messages + 52):
        chat.check(chat.page(after, after + 4, reader=reader), after, after + 4, 100, False)


@pytest.mark.parametrize("descending", [False, True])
def test_a_warm_page_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descending: bool) -> None:
    """But for the look at the table's next version."""
    chat = _chat_of(tmp_path, 9, 6)
    reader = HistoryReader(tmp_path, SETTINGS)
    chat.page(limit=50, descending=descending, reader=reader)
    before = reader.bytes_read
    chat.check(chat.page(limit=50, descending=descending, reader=reader), 0, None, 50, descending)
    assert before > 0
    assert reader.bytes_read == before


def test_a_page_reads_little_beyond_its_rows(tmp_path: Path) -> None:
    """Not the runs that lie before or behind its numbers, as far as those nearer to the asked end have them all."""
    chat = Chat(tmp_path)
    for _ in range(6):
        chat.say([b"y" * 100] * 50)
        chat.seal()
        merge(tmp_path, settings=Settings(run_group_bytes=1024))
    whole = sum(file.bytes for file in snapshot_of(tmp_path).files.values())
    for after, descending in ((0, False), (0, True), (130, False), (170, False)):
        reader = HistoryReader(tmp_path, SETTINGS)
        chat.check(chat.page(after, limit=5, descending=descending, reader=reader), after, None, 5, descending)
        assert reader.bytes_read < whole / 3
    assert FastStore(tmp_path).list("wal/shard=0000/")
