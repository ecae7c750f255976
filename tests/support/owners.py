"""Owners in this process, for faults that need no process of their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from imray.core.replies import Appended, Refusal
from imray.core.status import LogFigures
from imray.log.segment import SegmentMeta, open_segment
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard.runtime import SYSTEM
from imray.shard.shard_writer import ShardWriter
from tests.support.batches import SEED, answers_of, ipc_of
from tests.support.client import Client
from tests.support.driver import FaultStore, messages_of, read_all
from tests.support.process import DEADLINE_S


class NotingStore(FaultStore):
    """Also notes what each put of a segment was."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.segments: list[SegmentMeta] = []

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        if name.startswith("wal/"):
            self.segments.append(open_segment(b"".join(parts), name).meta)
        return super().put_if_absent(name, parts)


class GatedStore(LocalStore):
    """Holds puts of one kind while its gate is closed."""

    def __init__(self, root: Path, held: str) -> None:
        super().__init__(root)
        self.held = held
        self.gate = threading.Event()
        self.gate.set()
        self.holding = threading.Event()

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        if self.held in name and not self.gate.is_set():
            self.holding.set()
            assert self.gate.wait(60)
        return super().put_if_absent(name, parts)


@asynccontextmanager
async def owner_of(
    store: LocalStore, clock_ms: Callable[[], int] = lambda: 1000, wait: bool = True, **settings: Any
) -> AsyncIterator[ShardWriter]:
    """An owner of shard 0 that was started."""
    runtime = replace(SYSTEM, wall_ms=clock_ms)
    owner = ShardWriter(store, 0, SEED, Settings(**({"reopen_delay_s_max": 0.05} | settings)), runtime)
    starting = asyncio.create_task(owner.start())
    if wait:
        await starting
    try:
        yield owner
    finally:
        starting.cancel()
        await owner.stop()


async def send(client: Client, owner: ShardWriter, rows: list[list[Any]]) -> list[list[Any]] | Refusal:
    """Send through an owner: [status, seq, stable] of each row, or the refusal."""
    client.sent(rows)
    answer = await owner.append(ipc_of(messages_of(rows)))
    if isinstance(answer, Refusal):
        return answer
    assert isinstance(answer, Appended)
    stables = answer.stables().tolist()
    told = [[r.status, r.seq, s] for r, s in zip(answers_of(answer), stables, strict=True)]
    assert client.answered(rows, {"rows": told}) is not None
    return told


async def send_until_acked(client: Client, owner: ShardWriter, rows: list[list[Any]]) -> list[list[Any]]:
    """Send, and retry what is refused."""
    answers: list[Any] = []

    async def acked() -> bool:
        answers.append(await send(client, owner, rows))
        return isinstance(answers[-1], list)

    await until_async(acked, "an ack")
    told: list[list[Any]] = answers[-1]
    return told


async def until_async(condition: Callable[[], Any], what: str) -> Any:
    """Ask until the answer (awaited where it is awaitable) is true; the answer."""
    end = time.monotonic() + DEADLINE_S
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(what)
        await asyncio.sleep(0.01)


async def figures_of(owner: ShardWriter) -> LogFigures:
    """What the owner has recovered, written and remembers."""
    log = (await owner.status()).log
    assert log is not None
    return log


async def serving(owner: ShardWriter) -> None:
    """Wait until the owner serves."""
    await until_async(lambda: owner.state == "serving", "the owner serves")


def read_and_check(client: Client, root: Path) -> None:
    """Read the log as a reader would, and have all of it judged."""
    client.has_read(read_all(LocalStore(root)))
    client.check()
