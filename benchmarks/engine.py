"""The engine path: real shard actors on a local Ray cluster, fed by producers in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from benchmarks.harness import Options
from benchmarks.workload import Batches, conversation_names
from imray.core.replies import Appended
from imray.core.status import LogFigures, ServingState, ShardStatus
from imray.deploy import actors, system
from imray.deploy.directory import RayDirectory
from imray.deploy.process import tune_process
from imray.engine.clients import ShardClient
from imray.rpc import tls
from imray.settings import Settings

BATCH_ROWS = 20_000
WARMUP_S = 5.0
THREAD = "thread "
"""Before a thread's name in a sample."""
_START_TIMEOUT_S = 60.0
_GRACE_S = 60.0


@dataclass(frozen=True)
class Load:
    """What a run showed. Only acks inside the measured time count as rate; the mean commit is that of the whole run."""

    per_second: float
    commit_rows: float
    rows: int
    segments: int


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """A local Ray cluster that ends with the block."""
    system.connect(None)
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Engine:
    """One shard over a folder of its own."""

    namespace: str
    actor: Any
    data: Path

    def status(self) -> ShardStatus:
        """The shard's own."""
        found: ShardStatus = ray.get(self.actor.ping.remote(), timeout=_START_TIMEOUT_S)
        return found

    def figures(self) -> LogFigures:
        """Those of its log; RuntimeError where it does not serve."""
        status = self.status()
        if status.state is not ServingState.SERVING or status.log is None:
            raise RuntimeError(f"the shard does not serve: {status.detail}")
        return status.log


def thread_names(started: Engine) -> dict[int, str]:
    """What Python calls the threads of the shard's process, by their numbers: the kernel knows them by one name."""
    found: dict[int, str] = ray.get(started.actor.__ray_call__.remote(own_threads), timeout=_START_TIMEOUT_S)
    return found


def own_threads(_actor: Any) -> dict[int, str]:
    """The names of the threads of the process that this runs in, by their numbers."""
    return {t.native_id: t.name for t in threading.enumerate() if t.native_id is not None}


def shard_client(namespace: str) -> ShardClient:
    """A client of the one shard, as gateways have it."""
    return ShardClient(RayDirectory(namespace), 0, Settings(), tls.client_context())


@contextlib.contextmanager
def engine(options: Options, settings: Settings | None = None) -> Iterator[Engine]:
    """A fresh shard with default settings, over a fresh folder; both are gone afterwards. Needs `cluster`."""
    with options.fresh_folder() as data:
        namespace = f"bench-{secrets.token_hex(4)}"
        actor = actors.create(namespace, str(data), 0, secrets.randbits(64), settings or Settings())
        try:
            started = Engine(namespace, actor, data)
            started.figures()
            yield started
        finally:
            ray.kill(actor, no_restart=True)


class Producer:
    """A sender in a process of its own: batches of columns, acks checked."""

    def __init__(self, rows: int, conversations: int) -> None:
        self._batches = Batches(rows, conversation_names(conversations), int.from_bytes(os.urandom(8)))
        tune_process()

    def ready(self) -> None:
        """The batches are made."""

    async def saturate(self, namespace: str, begin: float, end: float, window: int) -> tuple[int, int]:
        """Keep `window` batches in flight until `end` (time.monotonic): rows acked since `begin`, and in all."""
        client = shard_client(namespace)
        counted = total = 0

        async def line() -> None:
            nonlocal counted, total
            while (now := time.monotonic()) < end:
                answer = await client.append(pa.py_buffer(self._batches.next().copy()), now + _GRACE_S)
                rows = check_ack(answer, self._batches.rows)
                total += rows
                counted += rows if begin <= time.monotonic() < end else 0

        await asyncio.gather(*(line() for _ in range(window)))
        return counted, total

    async def pace(
        self, namespace: str, first: float, interval_s: float, count: int, begin: int
    ) -> tuple[list[float], float]:
        """Send `count` batches at first, first + interval, ... whether or not acks come (open loop).

        Latencies (s) of the batches from number `begin` on, from the moment when each was due; and the largest
        delay with which one was sent."""
        client = shard_client(namespace)

        async def one(when: float, stream: pa.Buffer) -> float:
            check_ack(await client.append(stream, when + _GRACE_S), self._batches.rows)
            return time.monotonic() - when

        waiting: list[asyncio.Task[float]] = []
        late_max = 0.0
        for i in range(count):
            when = first + i * interval_s
            stream = pa.py_buffer(self._batches.next().copy())
            await asyncio.sleep(max(0.0, when - time.monotonic()))
            late_max = max(late_max, time.monotonic() - when)
            waiting.append(asyncio.create_task(one(when, stream)))
        return (await asyncio.gather(*waiting))[begin:], late_max


def check_ack(answer: Any, rows: int) -> int:
    """The rows of an answer: all durable, all new, all numbered; RuntimeError otherwise."""
    if not isinstance(answer, Appended) or answer.rows != rows or answer.firsts is not None:
        raise RuntimeError(f"not an ack of {rows} new messages: {answer}")
    seqs = answer.seq if isinstance(answer.seq, int) else int(answer.seq.min())
    if seqs < 1:
        raise RuntimeError(f"an ack without numbers: {answer}")
    return rows


@contextlib.contextmanager
def producers(count: int, rows: int, conversations: int) -> Iterator[list[Any]]:
    """Producer actors, ready to send."""
    kind = ray.remote(Producer).options(num_cpus=0.1, max_concurrency=1)
    made = [kind.remote(rows, conversations) for _ in range(count)]
    try:
        ray.get([p.ready.remote() for p in made], timeout=_START_TIMEOUT_S)
        yield made
    finally:
        for actor in made:
            ray.kill(actor)


def saturate(options: Options, senders: Sequence[Any], settings: Settings | None = None) -> Load:
    """The highest rate that the senders get acks at, over a fresh shard: warm up, then count."""
    with engine(options, settings) as started:
        before = started.figures().segment
        begin = time.monotonic() + WARMUP_S
        end = begin + options.seconds
        runs = [p.saturate.remote(started.namespace, begin, end, options.window) for p in senders]
        counts = ray.get(runs, timeout=options.seconds + _GRACE_S)
        rows = sum(total for _, total in counts)
        segments = _await_remembered(started, rows).segment - before
        return Load(sum(n for n, _ in counts) / options.seconds, rows / segments, rows, segments)


def _await_remembered(started: Engine, rows: int) -> LogFigures:
    """The shard's figures once it remembers just so many ids; RuntimeError where it does not.

    At the end of a checkpoint it counts some ids twice for a moment."""
    for _ in range(20):
        figures = started.figures()
        if figures.recent_ids + figures.sealed_ids == rows:
            return figures
        time.sleep(0.1)
    raise RuntimeError(f"{rows} messages acked, but the shard says {figures}")
