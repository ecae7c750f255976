"""A system that rests: its logs, and its partitions', are merged and deleted but for what is needed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from imray.core.replies import Refusal
from imray.core.routing import log_of
from imray.history.merger import Merger
from imray.history.table import Table
from tests.hot.test_group import _hot, _m
from tests.support.groups import Group
from tests.support.merging import SETTINGS, UnsyncedStore, rows_of_table
from tests.support.owners import until_async

_COMMITS = 120
_LEFT_MAX = 100
_QUICK = {"checkpoint_wait_s": 0.1, "checkpoint_segments_min": 5, "read_s_max": 0.1}


async def _merge_until_quiet(store: UnsyncedStore) -> Merger:
    """As the merger's process does, until no log has more than it may."""
    settings = replace(SETTINGS, **_QUICK)
    merger = Merger(store, 1, settings, time.monotonic, lambda: 0)

    async def is_quiet() -> bool:
        await asyncio.to_thread(merger.step, 0)
        lags = merger.status(0).logs
        return len(lags) == 3 and all(max(lag.segments, lag.unmerged) <= _LEFT_MAX // 10 for lag in lags)

    await until_async(is_quiet, "few segments are left")
    return merger


async def test_a_quiet_hot_group_leaves_few_segments(tmp_path: Path) -> None:
    store = UnsyncedStore(tmp_path)
    async with Group(store, **_QUICK) as group:
        await _hot(group, 2)
        first: dict[int, int] = {}
        for n in range(_COMMITS):
            answer = await group.send(n % 3, _m(n))
            assert not isinstance(answer, Refusal)
            first[n] = answer[0].seq
        merger = await _merge_until_quiet(store)
        assert merger.status(0).detail == []
        assert merger.done.segments_deleted >= _COMMITS - 3 * _LEFT_MAX // 10
        assert set(Table(store).snapshot().merged) == {0, log_of(0, 1), log_of(0, 2)}
        merged = rows_of_table(store)
        assert set(merged.values()) == {1}
        assert len(merged) >= _COMMITS - 3 * _LEFT_MAX // 10
        await group.new_home()  # it recovers from what is left
        (row,) = await group.deliver(_m(_COMMITS))
        assert row.seq > _COMMITS
        again = [await group.deliver(_m(n)) for n in range(0, _COMMITS, 7)]
        assert [(r.status, r.seq) for (r,) in again] == [("duplicate", first[n]) for n in range(0, _COMMITS, 7)]
