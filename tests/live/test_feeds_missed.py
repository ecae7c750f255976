"""A hundred thousand messages missed: caught up completely, none twice, while new ones arrive; also after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from imray.core.replies import Appended
from imray.engine.engine import Engine
from imray.engine.sends import Send, record_batch
from tests.support.ears import Ear, listen, send
from tests.support.local_system import local_system

_MISSED = 100_000
_BATCH = 5_000


async def _fill(engine: Engine, conv: str, count: int) -> None:
    log = engine.shard_of(conv)
    for begin in range(0, count, _BATCH):
        sends = [
            Send(conv, (1 << 90 | begin + i).to_bytes(16, "big"), "bob", None, None, None, b"missed")
            for i in range(_BATCH)
        ]
        answers = await engine.send_batches({log: record_batch(sends)})
        assert isinstance(answers[log], Appended)


async def _catches_up(engine: Engine) -> None:
    ears = [Ear() for _ in range(3)]
    for ear in ears:
        await listen(engine, ear, "tea")
    live = await send(engine, "tea", 50)
    for ear in ears:
        await ear.until(lambda ear=ear: ear.upto == live[-1], 120)
        ear.check(0)
        assert ear.seqs == list(range(1, live[-1] + 1))


@pytest.mark.timeout(240)
async def test_a_hundred_thousand_missed_messages_are_caught_up_also_after_a_restart(tmp_path: Path) -> None:
    async with local_system(tmp_path, shards=1) as system:
        engine = system.engine()
        await _fill(engine, "tea", _MISSED)
        await _catches_up(engine)
    async with local_system(tmp_path, shards=1) as system:
        engine = system.engine()
        await _catches_up(engine)
        assert engine.feeds.catch_up.reads < 150
