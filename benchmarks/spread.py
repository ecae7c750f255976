"""A hot group as a benchmark drives it: a home shard, K partitions, producers that spread their batches over them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from benchmarks.engine import WARMUP_S, Engine, check_ack, engine
from benchmarks.harness import Options, Sample, percentile
from benchmarks.workload import Batches, conversation_names
from imray.deploy import names
from imray.deploy.process import tune_process
from imray.engine.clients import ActorClient
from imray.settings import Settings

_TIMEOUT_S = 60.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
(CONV,) = conversation_names(1)


class Spreader:
    """A sender in a process of its own: each batch goes to the next of its targets, acks checked and timed."""

    def __init__(self, rows: int) -> None:
        self._batches = Batches(rows, [CONV], int.from_bytes(os.urandom(8)), templates=64)
        tune_process()

    def ready(self) -> None:
        """The batches are made."""

    async def run(
        self, namespace: str, targets: Sequence[str], begin: float, end: float, window: int
    ) -> tuple[int, list[float]]:
        """Keep `window` batches in flight until `end` (time.monotonic): rows and latencies (s) acked since `begin`."""
        turns = itertools.cycle([ActorClient(namespace, name, Settings()) for name in targets])
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
    def targets(self) -> list[str]:
        """The actors that take sends."""
        return [names.partition(0, k + 1) for k in range(len(self.partitions))] or [names.shard(0)]

    def figures(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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
                refusal = ray.get(home.actor.make_hot.remote(CONV, partitions), timeout=_TIMEOUT_S)
                if refusal is not None:
                    raise RuntimeError(refusal.detail)
                found = [ray.get_actor(names.partition(0, k + 1), home.namespace) for k in range(partitions)]
            started = Group(home, found)
            deadline = time.monotonic() + _TIMEOUT_S
            while not all(t["state"] == "serving" for t in started.figures()[1]):
                if time.monotonic() > deadline:
                    raise RuntimeError("the partitions do not serve")
                time.sleep(0.05)  # between two looks
            yield started
        finally:
            for actor in found:
                ray.kill(actor, no_restart=True)


def saturate(options: Options, senders: Sequence[Any], partitions: int, settings: Settings, window: int) -> Sample:
    """The highest rate that the senders get acks at: messages a second, latencies, and who used the CPU for it."""
    with group(options, partitions, settings) as spread:
        home, rest = spread.figures()
        pids = [home["pid"], *(t["pid"] for t in rest)]
        begin = time.monotonic() + WARMUP_S
        end = begin + options.seconds
        runs = [p.run.remote(spread.home.namespace, spread.targets, begin, end, window) for p in senders]
        time.sleep(max(0.0, begin - time.monotonic()))
        (at_begin, t_begin), used_begin = spread.figures(), [_cpu_s(p) for p in pids]
        time.sleep(max(0.0, end - time.monotonic()))
        (at_end, t_end), used_end = spread.figures(), [_cpu_s(p) for p in pids]
        answers = ray.get(runs, timeout=options.seconds + _TIMEOUT_S)
    rows = sum(r for r, _ in answers)
    latencies = [x for _, found in answers for x in found]
    used = [b - a for a, b in zip(used_begin, used_end, strict=True)]
    segments = sum(b["segment"] - a["segment"] for a, b in zip(t_begin or [at_begin], t_end or [at_end], strict=True))
    return {
        "per_second": rows / options.seconds,
        "p50_ms": percentile(latencies, 0.5) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
        "home_cpu_s": used[0] / rows * 1e6,
        "topics_cpu_s": sum(used[1:]) / rows * 1e6,
        "rows": rows,
        "blocks": segments,
        "asks": at_end["asks"] - at_begin["asks"],
        "asks_cpu_s": at_end["asks_cpu_s"] - at_begin["asks_cpu_s"],
    }


def _cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
