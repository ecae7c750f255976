"""A folder with very many segments that nobody merged, as a long life without a merger leaves it: opened, served,
merged, deleted, and opened again. The short form runs without Ray; the long one is `imray up`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from conftest import start, stop

from analytics import audit
from imray.core.columns import RowStatus
from imray.core.pages import PageAsk
from imray.core.replies import Appended, Refusal
from imray.engine.engine import Engine
from imray.engine.sends import Send
from imray.history.merger import Merger
from imray.log.reader import read_segment
from imray.log.store import LocalStore
from tests.support.local_system import LocalSystem, local_system
from tests.support.many_segments import ManySegments, make_segments

SEGMENTS = 3000
SEGMENTS_LONG = 200_000
CONVERSATIONS = 16
LEFT_MAX = 100
"""Segments of a log in a quiet system."""
_PAGE = 50
_MERGED_S_MAX = 30.0
_MERGED_LONG_S_MAX = 1500.0
_WAIT_S = 0.2
"""Between checkpoints, and until what is merged is deleted."""


def segments_left(root: Path) -> int:
    return len(list((root / "wal" / "shard=0000").iterdir()))


async def page_of(engine: Engine, ask: PageAsk) -> list[int]:
    answer = await engine.history(ask)
    assert not isinstance(answer, Refusal), answer
    assert answer[1].holes == []
    return answer[1].messages["conv_seq"].to_pylist()


async def check_pages(engine: Engine, made: ManySegments, heads: dict[str, int]) -> None:
    """The first, the last and some in the middle, of each conversation."""
    for name in made.conversations:
        head = heads[name]
        assert await page_of(engine, PageAsk(name, 0, None, _PAGE, True)) == list(range(head, head - _PAGE, -1))
        for after in (0, head // 2):
            found = await page_of(engine, PageAsk(name, after, None, _PAGE, False))
            assert found == list(range(after + 1, after + 1 + _PAGE))


async def send_again(engine: Engine, send: Send) -> tuple[int, bool]:
    """Its number, and whether it was there already."""
    sent = await engine.send(send)
    assert isinstance(sent.answer, Appended), sent.answer
    own = sent.answer.slice(sent.row, 1)
    return int(own.seqs()[0]), own.firsts is not None and own.firsts.status.tolist() == [RowStatus.DUPLICATE]


def first_message(made: ManySegments) -> Send:
    """The first message of all, as its sender would send it again."""
    row = read_segment(LocalStore(made.root), 0, 2).table().to_pylist()[0]
    return Send(row["conv_id"], row["client_msg_id"], row["sender"], None, None, None, row["body"])


async def until_few_are_left(system: LocalSystem) -> Merger:
    """Merge until the log is as short as a quiet system's; a merger's steps are for a thread."""
    merger = Merger(LocalStore(system.root), 1, system.settings, time.monotonic, lambda: time.time_ns() // 1_000_000)
    deadline = time.monotonic() + _MERGED_S_MAX
    while segments_left(system.root) > LEFT_MAX:
        assert time.monotonic() < deadline, f"{segments_left(system.root)} segments are left"
        if not await asyncio.to_thread(merger.step, 0):
            await asyncio.sleep(0.02)  # it waits for a checkpoint, or for readers' time
    return merger


async def test_thousands_of_unmerged_segments_are_opened_served_and_merged(tmp_path: Path) -> None:
    made = make_segments(tmp_path, SEGMENTS, conversations=CONVERSATIONS)
    old = first_message(made)
    heads = {name: made.head(name) for name in made.conversations}
    waits = {"checkpoint_wait_s": _WAIT_S, "read_s_max": _WAIT_S}
    async with local_system(tmp_path, 1, **waits) as system:
        engine = system.engine()
        await check_pages(engine, made, heads)
        heads[old.conv_id] += 1
        new = Send(old.conv_id, b"a new message!!!", "bob", None, None, None, b"new")
        assert await send_again(engine, new) == (heads[old.conv_id], False)
        merger = await until_few_are_left(system)
        assert merger.done.segments >= SEGMENTS
        assert merger.done.segments_deleted >= SEGMENTS - LEFT_MAX
        await check_pages(engine, made, heads)
        assert await send_again(engine, old) == (1, True)
    async with local_system(tmp_path, 1, **waits) as system:
        engine = system.engine()
        await check_pages(engine, made, heads)
        assert await send_again(engine, old) == (1, True)
        assert await send_again(engine, new) == (heads[old.conv_id], True)
    report = await asyncio.to_thread(audit.run, tmp_path)
    assert report.ok, report.to_text()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_hundred_thousand_segments_are_opened_served_and_merged(tmp_path: Path) -> None:
    made = make_segments(tmp_path / "data", SEGMENTS_LONG, conversations=CONVERSATIONS)
    assert made.seconds < 300
    system = start(made.root)
    try:
        with system.client(120) as client:
            for name in made.conversations:
                head = made.head(name)
                page = client.history(name, after=head - _PAGE, limit=_PAGE)
                assert [m.conv_seq for m in page.messages] == list(range(head - _PAGE + 1, head + 1))
            deadline = time.monotonic() + _MERGED_LONG_S_MAX
            while segments_left(made.root) > LEFT_MAX:
                assert time.monotonic() < deadline, f"{segments_left(made.root)} segments are left"
                time.sleep(1.0)  # between two looks at a large folder
            for name in made.conversations:
                page = client.history(name, limit=_PAGE)
                assert [m.conv_seq for m in page.messages] == list(range(1, _PAGE + 1))
            first = made.conversations[0]
            assert client.send(first, "new").conv_seq == made.head(first) + 1
    finally:
        stop(system)
    assert audit.run(made.root).ok
