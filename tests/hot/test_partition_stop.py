"""The end of a partition whose home shard gives no answer."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from imray.core.routing import log_of
from imray.log.segment import segment_prefix
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard import partition_incarnation
from imray.shard.partition_writer import PartitionWriter
from tests.support.batches import SEED
from tests.support.groups import Group, Link
from tests.support.owners import GatedStore, until_async


@pytest.mark.parametrize("fenced", [True, False])
async def test_a_stop_does_not_wait_for_a_home_shard_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fenced: bool
) -> None:
    """Whether it has put its fence and registers again and again, or is still about to put it."""
    group = Group(LocalStore(tmp_path))
    link = Link(group)
    link.cut = True
    monkeypatch.setattr(partition_incarnation, "_REGISTER_S", 3600.0)
    store = GatedStore(tmp_path, segment_prefix(log_of(0, 1)))
    partition = PartitionWriter(store, 0, 1, SEED, Settings(), link)
    if not fenced:
        store.gate.clear()
    starting = asyncio.create_task(partition.start())
    if fenced:
        await until_async(lambda: partition.current is not None, "it registers")
    else:
        await until_async(store.holding.is_set, "its fence is on its way")
    stopping = asyncio.create_task(partition.stop())
    await until_async(partition.loop._stopping.is_set, "it stops")
    store.gate.set()
    await asyncio.wait_for(stopping, 30)
    await starting
    await until_async(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("encode-")], "no thread is left"
    )
