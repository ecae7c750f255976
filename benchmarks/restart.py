"""How long is a shard away when its process is killed?"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pyarrow as pa

from benchmarks.engine import Engine, check_ack, cluster, engine, shard_client
from benchmarks.harness import Figure, Options, Sample, column, in_turns
from benchmarks.workload import Batches, conversation_names

QUESTION = "kill -9 of a shard's process to its next ack, for a client that retries"
SEGMENTS = 950
"""As long as a log gets after a checkpoint, nearly: each of them is read and verified. Each restart adds two."""
_SEGMENT_ROWS = 100
_DEADLINE_S = 60.0


def run(options: Options) -> list[Figure]:
    """Two shards: one with a log to read, one whose log is empty but for the restarts. In turns."""
    with cluster(), engine(options) as empty, engine(options) as long:
        asyncio.run(_write(long, SEGMENTS))
        asyncio.run(_write(empty, 1))
        turns = in_turns({"empty": _side(empty), "long": _side(long)}, options.repeat)
        segments = long.figures()
    if segments.checkpoint_segment:
        raise RuntimeError("there was a checkpoint: the log was not as long as it should be")
    return [
        Figure("empty log", "s", column(turns["empty"], "seconds")),
        Figure(f"log of {SEGMENTS:,} segments", "s", column(turns["long"], "seconds"), note="no checkpoint"),
    ]


def _side(started: Engine) -> Callable[[], Sample]:
    return lambda: {"seconds": asyncio.run(_kill(started))}


async def _kill(started: Engine) -> float:
    """Seconds from the kill to the first ack of a send that started right after it."""
    client = shard_client(started.namespace)
    batches = Batches(1, conversation_names(1), seed=time.time_ns(), templates=1)
    pid = (await client.status(_DEADLINE_S)).pid
    assert isinstance(pid, int), "a serving shard says its process"
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    check_ack(await client.append(_buffer(batches), killed + _DEADLINE_S), 1)
    elapsed = time.monotonic() - killed
    now = (await client.status(_DEADLINE_S)).pid
    if now == pid:
        raise RuntimeError("the ack came from the process that was killed")
    return elapsed


async def _write(started: Engine, segments: int) -> None:
    client = shard_client(started.namespace)
    batches = Batches(_SEGMENT_ROWS, conversation_names(1), seed=time.time_ns())
    for _ in range(segments):
        check_ack(await client.append(_buffer(batches), time.monotonic() + _DEADLINE_S), _SEGMENT_ROWS)


def _buffer(batches: Batches) -> pa.Buffer:
    return pa.py_buffer(batches.next())
