"""A hot group as a benchmark drives it: a home shard, K partitions, producers that spread their batches over them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from benchmarks.engine import THREAD, WARMUP_S, Engine, check_ack, engine, shard_client, thread_names
from benchmarks.harness import Options, Sample, percentile
from benchmarks.processes import by_thread, process_cpu, thread_cpu
from benchmarks.workload import Batches, conversation_names
from imray.core.replies import Refusal
from imray.core.routing import log_of
from imray.core.status import PartitionStatus, ServingState, ShardStatus
from imray.deploy import names
from imray.deploy.directory import RayDirectory
from imray.deploy.process import tune_process
from imray.engine.clients import LogClient
from imray.rpc import tls
from imray.settings import Settings

_TIMEOUT_S = 60.0
(CONV,) = conversation_names(1)


class Spreader:
    """A sender in a process of its own: each batch goes to the next of its targets, acks checked and timed."""

    def __init__(self, rows: int) -> None:
        self._batches = Batches(rows, [CONV], int.from_bytes(os.urandom(8)), templates=64)
        tune_process()

    def ready(self) -> None:
        """The batches are made."""

    async def run(
        self, namespace: str, targets: Sequence[int], begin: float, end: float, window: int
    ) -> tuple[int, list[float]]:
        """Keep `window` batches in flight until `end` (time.monotonic): rows and latencies (s) acked since `begin`."""
        directory = RayDirectory(namespace)
        context = tls.client_context()
        turns = itertools.cycle([LogClient(directory, log, f"log {log}", Settings(), context) for log in targets])
        latencies: list[float] = []

        async def line() -> None:
            while (sent := time.monotonic()) < end:
                answer = await next(turns).append(pa.py_buffer(self._batches.next().copy()), sent + _TIMEOUT_S)
                check_ack(answer, self._batches.rows)
                now = time.monotonic()
                if begin <= now < end:
                    latencies.append(now - sent)

        await asyncio.gather(*(line() for _ in range(window)))
        return self._batches.rows * len(latencies), latencies


@contextlib.contextmanager
def spreaders(count: int, rows: int) -> Iterator[list[Any]]:
    """Sender actors, ready to send."""
    kind = ray.remote(Spreader).options(num_cpus=0.1, max_concurrency=1)
    made = [kind.remote(rows) for _ in range(count)]
    try:
        ray.get([p.ready.remote() for p in made], timeout=_TIMEOUT_S)
        yield made
    finally:
        for actor in made:
            ray.kill(actor)


@dataclass(frozen=True)
class Group:
    """A shard, hot or not: whom to send to, and whom to measure."""

    home: Engine
    partitions: list[Any]

    @property
    def targets(self) -> list[int]:
        """The logs that take sends."""
        return [log_of(0, k + 1) for k in range(len(self.partitions))] or [0]

    def status(self) -> tuple[ShardStatus, list[PartitionStatus]]:
        """Of the home shard and of each partition."""
        refs = [self.home.actor.ping.remote(), *(t.ping.remote() for t in self.partitions)]
        first, *rest = ray.get(refs, timeout=_TIMEOUT_S)
        return first, rest


@contextlib.contextmanager
def group(options: Options, partitions: int, settings: Settings) -> Iterator[Group]:
    """A fresh shard, its one conversation spread over `topics` partitions (0: cold). Needs `cluster`."""
    with engine(options, settings) as home:
        found: list[Any] = []
        try:
            if partitions:
                refusal = asyncio.run(_make_hot(home, partitions))
                if refusal is not None:
                    raise RuntimeError(refusal.detail)
                found = [ray.get_actor(names.partition(0, k + 1), home.namespace) for k in range(partitions)]
            started = Group(home, found)
            deadline = time.monotonic() + _TIMEOUT_S
            while not all(t.state is ServingState.SERVING for t in started.status()[1]):
                if time.monotonic() > deadline:
                    raise RuntimeError("the partitions do not serve")
                time.sleep(0.05)  # between two looks
            yield started
        finally:
            for actor in found:
                ray.kill(actor, no_restart=True)


def saturate(options: Options, senders: Sequence[Any], partitions: int, settings: Settings, window: int) -> Sample:
    """The highest rate that the senders get acks at: messages a second, latencies, and who used the CPU for it
    (processes, and the home shard's threads: CPU s a million)."""
    with group(options, partitions, settings) as spread:
        home, rest = spread.status()
        home_pid = home.pid
        assert home_pid is not None, "who serves says its process"
        pids = [home_pid, *(t.pid for t in rest)]
        begin = time.monotonic() + WARMUP_S
        end = begin + options.seconds
        runs = [p.run.remote(spread.home.namespace, spread.targets, begin, end, window) for p in senders]
        time.sleep(max(0.0, begin - time.monotonic()))
        home_begin, rest_begin = spread.status()
        used_begin = [process_cpu(p).total_s for p in pids]
        threads_begin = thread_cpu(home_pid)
        time.sleep(max(0.0, end - time.monotonic()))
        home_end, rest_end = spread.status()
        used_end = [process_cpu(p).total_s for p in pids]
        threads_end = thread_cpu(home_pid)
        answers = ray.get(runs, timeout=options.seconds + _TIMEOUT_S)
        threads = by_thread(threads_begin, threads_end, thread_names(spread.home))
    rows = sum(r for r, _ in answers)
    latencies = [x for _, found in answers for x in found]
    used = [b - a for a, b in zip(used_begin, used_end, strict=True)]
    assert home_begin.log is not None
    assert home_begin.hot is not None
    assert home_end.log is not None
    assert home_end.hot is not None
    if rest:
        segments = sum(b.segment - a.segment for a, b in zip(rest_begin, rest_end, strict=True))
    else:
        segments = home_end.log.segment - home_begin.log.segment
    return {
        "per_second": rows / options.seconds,
        "p50_ms": percentile(latencies, 0.5) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
        "home_cpu_s": used[0] / rows * 1e6,
        "topics_cpu_s": sum(used[1:]) / rows * 1e6,
        "rows": rows,
        "blocks": segments,
        "asks": home_end.hot.asks - home_begin.hot.asks,
        "asks_cpu_s": home_end.hot.asks_cpu_s - home_begin.hot.asks_cpu_s,
        **{f"{THREAD}{name}": spent.total_s / rows * 1e6 for name, spent in threads.items()},
    }


async def _make_hot(home: Engine, partitions: int) -> Refusal | None:
    return await shard_client(home.namespace).make_hot(CONV, partitions, time.monotonic() + _TIMEOUT_S)
