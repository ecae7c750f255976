"""Hot groups through real owners and real files, in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path

from imray.core.replies import Refusal
from tests.support.batches import Msg, Row, msg_id
from tests.support.groups import Group
from tests.support.owners import until_async


def _m(n: int, body: bytes = b"x", sender: str = "ada") -> Msg:
    return Msg("room", msg_id(n), body, sender)


def _rows(answer: list[Row] | Refusal) -> list[tuple[str, int]]:
    assert not isinstance(answer, Refusal), answer.detail
    return [(r.status, r.seq) for r in answer]


async def _hot(group: Group, partitions: int = 2) -> None:
    hot = group.home.current.hot
    assert await hot.make_hot("room", partitions) is None
    for slot in range(1, partitions + 1):
        topic = group.partitions[slot]
        await until_async(lambda: topic.state == "serving", "the partition serves")  # noqa: B023


async def _stable(group: Group, at_least: int) -> int:
    for _ in range(1000):
        located = await group.home.locate("room", 1, 1 << 60)
        assert not isinstance(located, Refusal)
        if located.stable >= at_least:
            return located.stable
        await asyncio.sleep(0.01)
    raise AssertionError(located)


async def test_one_order_over_all_ways(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        assert _rows(await group.send(0, _m(1), _m(2))) == [("new", 1), ("new", 2)]
        await _hot(group)
        assert _rows(await group.send(1, _m(3))) == [("new", 3)]
        assert _rows(await group.send(2, _m(4), _m(5))) == [("new", 4), ("new", 5)]
        assert _rows(await group.send(0, _m(6))) == [("new", 6)]
        assert await _stable(group, 6) == 6
        assert _rows(await group.send(1, _m(7), _m(1), _m(4))) == [("new", 7), ("duplicate", 1), ("duplicate", 4)]
        assert await _stable(group, 7) == 7
        assert _rows(await group.send(2, _m(3), _m(6))) == [("duplicate", 3), ("duplicate", 6)]
        assert _rows(await group.send(0, _m(5), _m(7, b"other"))) == [("duplicate", 5), ("conflict", 7)]
        assert await _stable(group, 7) == 7
        assert await group.home.current.hot.make_cold("room") is None
        refusal = await group.send(1, _m(8))
        assert isinstance(refusal, Refusal)
        assert refusal.why == "moved"
        assert _rows(await group.send(0, _m(8), _m(3))) == [("new", 8), ("duplicate", 3)]
    async with Group(tmp_path) as group:
        ids = [_m(n) for n in range(1, 9)]
        assert _rows(await group.send(0, *ids)) == [("duplicate", n) for n in range(1, 9)]


async def test_a_dead_partition(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _hot(group)
        group.links[1].lose_answers = 10**6
        lost = asyncio.create_task(group.try_send(1, _m(1), _m(2)))
        blocks = group.home.current.hot.grants.blocks
        await until_async(lambda: blocks.outstanding, "a grant is outstanding")
        assert _rows(await group.deliver(_m(3))) == [("new", 3)]
        assert await _stable(group, 3) == 3  # 1 and 2 are void: its log was fenced
        group.links[1].lose_answers = 0
        answer = await lost
        assert isinstance(answer, Refusal)
        assert _rows(await group.deliver(_m(1), _m(2), partitions=1)) == [("new", 4), ("new", 5)]


async def test_a_new_home(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _hot(group)
        assert _rows(await group.send(1, _m(1))) == [("new", 1)]
        assert _rows(await group.send(2, _m(2))) == [("new", 2)]
        await group.new_home()
        assert await _stable(group, 2) > 2
        rows = await group.deliver(_m(1), _m(2), _m(3), partitions=2)
        assert [(r.status, r.seq) for r in rows[:2]] == [("duplicate", 1), ("duplicate", 2)]
        assert rows[2].seq > 2
