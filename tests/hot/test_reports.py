"""Reports of partitions: what is durable is settled soon, whatever the partition has to do next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imray.core.columns import Rows
from imray.core.grants import Report
from imray.core.routing import log_of
from imray.log.segment import segment_prefix
from tests.hot.test_group import _hot, _m, _rows, _stable
from tests.support.groups import Group
from tests.support.owners import GatedStore, until_async


async def test_a_report_that_was_late_for_an_ask_of_duplicates_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ask leaves before the put before it has returned, and is answered after the report was to be sent; its commit
    is all duplicates, so that it has no report of its own, and nobody sends any more."""
    store = GatedStore(tmp_path, segment_prefix(log_of(0, 1)))
    async with Group(store, grant_timeout_s=60.0, rows_to_plan_ahead=1) as group:
        await _hot(group, 1)
        assert _rows(await group.send(1, _m(1))) == [("new", 1)]
        assert await _stable(group, 1) == 1
        link, current = group.links[1], group.partitions[1].current
        assert current is not None
        assert group.home.current is not None
        ask, flush = link.ask, current._flush
        asked: list[Sequence[Report]] = []
        answer_it, flushed = asyncio.Event(), asyncio.Event()

        store.gate.clear()
        store.holding.clear()
        first = asyncio.create_task(group.try_send(1, _m(2)))
        await until_async(store.holding.is_set, "the put is on its way")

        async def held_ask(slot: int, epoch: int, number: int, rows: Rows, reports: Sequence[Report]) -> Any:
            asked.append(reports)
            answer = await ask(slot, epoch, number, rows, reports)
            await answer_it.wait()
            return answer

        def noted_flush() -> None:
            flush()
            flushed.set()

        monkeypatch.setattr(link, "ask", held_ask)
        monkeypatch.setattr(current, "_flush", noted_flush)
        second = asyncio.create_task(group.try_send(1, _m(1)))
        await until_async(lambda: asked, "the ask of duplicates is on its way")
        store.gate.set()
        assert _rows(await first) == [("new", 2)]
        await asyncio.wait_for(flushed.wait(), 10)
        assert group.home.current.hot.grants.blocks.outstanding, "the report waits for the ask that may carry it"
        answer_it.set()
        assert _rows(await second) == [("duplicate", 1)]
        assert await _stable(group, 2) == 2
        assert asked == [[]], "no ask has carried it"
        assert group.partitions[1].current is current, "and nobody was fenced"
