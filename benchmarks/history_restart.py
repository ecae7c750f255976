"""A shard that is killed, the start of a whole system, and a shard's memory: what must not grow with the history."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import servers
from benchmarks.harness import Figure, percentile, say
from benchmarks.history_load import marks_of, rooms_of
from benchmarks.history_system import RunningSystem, rss_anon
from imray.core.replies import Appended
from imray.engine.engine import Engine
from imray.engine.sends import Send

KILL_S_MAX = 3.0
START_S_MAX = 15.0
MIB = 2**20
KILLS = 3
STARTS = 2
_ACK_S_MAX = 120.0
_SHARD = 0


def measure_kills(system: RunningSystem, times: int) -> list[float]:
    """Seconds from each kill -9 of a shard to the ack of a message that was sent right after it."""
    names = rooms_of(_SHARD, system.manifest.shards, 1, "kill")
    sends = marks_of(names, times + 1, time.time_ns() % 2**32)
    system.with_engine(lambda engine: _ack(engine, sends[0]))
    found = []
    for send in sends[1:]:
        pid = system.statuses()[_SHARD].pid
        assert pid is not None, "a serving shard says its process"
        found.append(system.with_engine(partial(_kill, send=send, pid=pid)))
        if system.statuses()[_SHARD].pid == pid:
            raise RuntimeError("the ack came from the process that was killed")
        say(f"kill -9 to the next ack: {found[-1]:.2f} s")
    return found


async def _kill(engine: Engine, send: Send, pid: int) -> float:
    await engine.status()  # connected, as a gateway is
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    await _ack(engine, send)
    return time.monotonic() - killed


async def _ack(engine: Engine, send: Send) -> None:
    """Send until it is acked, with the same id."""
    deadline = time.monotonic() + _ACK_S_MAX
    while True:
        sent = await engine.send(send)
        if isinstance(sent.answer, Appended):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"no ack in {_ACK_S_MAX:.0f} s: {sent.answer}")
        await asyncio.sleep(engine.settings.retry_delay_s_min)


def shard_memory(system: RunningSystem) -> list[float]:
    """MiB of anonymous memory of each shard's process."""
    return [rss_anon(pid) / MIB for pid in system.pids()]


def measure_starts(data: Path, times: int) -> list[float]:
    """Seconds from the command `imray up` to the system's being up, Ray's own start included."""
    found = []
    for _ in range(times):
        began = time.monotonic()
        with servers.imray_over(data):
            found.append(time.monotonic() - began)
        say(f"start of the whole system: {found[-1]:.2f} s")
    return found


def flat_figures(
    messages: int, kills: Sequence[float], starts: Sequence[float], loaded: Sequence[float], fresh: Sequence[float]
) -> list[Figure]:
    """What a table of sizes is made of."""
    size = f"{messages:,} messages"
    memory = f"{size}; RssAnon of the largest shard"
    return [
        Figure("kill -9 of a shard to its next ack", "s", kills, KILL_S_MAX, more_is_better=False, note=size),
        Figure("start of the whole system", "s", starts, START_S_MAX, more_is_better=False, note=f"{size}; with Ray's"),
        Figure("memory of a shard after the load", "MiB", [max(loaded)], note=memory),
        Figure("memory of a shard after its start", "MiB", [max(fresh)], note=memory),
    ]


def flat_line(figures: Sequence[Figure], messages: int) -> str:
    """One line of the table of sizes."""
    cells = [f"{percentile(figure.values, 0.5):,.2f} {figure.unit}" for figure in figures]
    return f"| {messages:,} | " + " | ".join(cells) + " |"


def flat_head(figures: Sequence[Figure]) -> str:
    """The line above."""
    return "| messages | " + " | ".join(figure.name for figure in figures) + " |"
