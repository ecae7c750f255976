"""What does a small commit cost the shard's process, thread by thread, and how long does it take beside the disk?

C connections straight to the shard, all from this one process, each with one batch of one message in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from benchmarks.ack_latency import Shapes, bare_like, segment_bytes
from benchmarks.engine import THREAD, WARMUP_S, check_ack, cluster, engine, shard_client, thread_names
from benchmarks.harness import Figure, Options, Sample, column, differences, in_turns, percentile
from benchmarks.processes import CpuTime, by_thread, process_cpu, thread_cpu
from benchmarks.workload import Batches, conversation_names
from imray.engine.clients import ShardClient

QUESTION = "batches of one message over 1, 8 and 64 connections: what a small commit costs, and takes beside the disk"
CONNECTIONS = (1, 8, 64)
TARGET_CONNECTIONS = 8
TARGET_CPU_US = 1_000.0
_QUICK_S = 2.0
"""Ticks of 10 ms: what is shorter has no digits."""
_ACK_TIMEOUT_S = 60.0
_STATUS_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class _Reading:
    """The shard up to a moment."""

    at_s: float
    segment: int
    cpu: CpuTime
    threads: dict[int, CpuTime]
    own_cpu_s: float


def run(options: Options) -> list[Figure]:
    """Each number of connections, and the bare fsync of files as large and as frequent as its commits, in turns."""
    if options.quick:
        options = replace(options, seconds=max(_QUICK_S, options.seconds))
    shapes: Shapes = {}
    sides: dict[str, Callable[[], Sample]] = {}
    with cluster():
        for connections in CONNECTIONS:
            sides[f"C={connections}"] = partial(_send, options, connections, shapes)
            sides[f"bare C={connections}"] = partial(bare_like, options, shapes, f"C={connections}")
        turns = in_turns(sides, options.repeat)
    return [f for c in CONNECTIONS for f in _figures(c, turns[f"C={c}"], turns[f"bare C={c}"])]


def _send(options: Options, connections: int, shapes: Shapes) -> Sample:
    """A fresh shard, and what a commit costs it."""
    with engine(options) as started:
        pid = started.status().pid
        assert pid is not None, "who serves says its process"
        latencies, first, last = asyncio.run(_drive(started.namespace, pid, connections, options.seconds))
        names = thread_names(started)
        commits = last.segment - first.segment
        if commits < 1:
            raise RuntimeError("no commit was measured")
        shapes[f"C={connections}"] = segment_bytes(started), (last.at_s - first.at_s) / commits
    elapsed_s = last.at_s - first.at_s
    cpu = last.cpu - first.cpu
    sample = {
        "commits_per_second": commits / elapsed_s,
        "per_second": len(latencies) / elapsed_s,
        "commit_rows": len(latencies) / commits,
        "cpu_us": cpu.total_s / commits * 1e6,
        "user_us": cpu.user_s / commits * 1e6,
        "kernel_us": cpu.kernel_s / commits * 1e6,
        "p50_ms": percentile(latencies, 0.5) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
        "generator_cores": (last.own_cpu_s - first.own_cpu_s) / elapsed_s,
    }
    used = by_thread(first.threads, last.threads, names)
    return sample | {f"{THREAD}{name}": spent.total_s / commits * 1e6 for name, spent in used.items()}


async def _drive(namespace: str, pid: int, connections: int, seconds: float) -> tuple[list[float], _Reading, _Reading]:
    """Latencies (s) of the batches that were acked between two readings of the shard."""
    clients = [shard_client(namespace) for _ in range(connections)]
    latencies: list[float] = []
    ended = False

    async def line(client: ShardClient, seed: int) -> None:
        batches = Batches(1, conversation_names(1), seed)
        while not ended:
            sent = time.monotonic()
            check_ack(await client.append(pa.py_buffer(batches.next()), sent + _ACK_TIMEOUT_S), 1)
            latencies.append(time.monotonic() - sent)

    watcher = shard_client(namespace)
    seed = time.time_ns()
    async with asyncio.TaskGroup() as lines:
        for number, client in enumerate(clients):
            lines.create_task(line(client, seed + number))
        await asyncio.sleep(WARMUP_S)
        first = await _read(watcher, pid)
        latencies.clear()
        await asyncio.sleep(seconds)
        last = await _read(watcher, pid)
        measured = list(latencies)
        ended = True
    for client in (*clients, watcher):
        client.close()
    return measured, first, last


async def _read(watcher: ShardClient, pid: int) -> _Reading:
    status = await watcher.status(_STATUS_TIMEOUT_S)
    if status.log is None:
        raise RuntimeError(f"the shard does not serve: {status.detail}")
    return _Reading(time.monotonic(), status.log.segment, process_cpu(pid), thread_cpu(pid), time.process_time())


def _figures(connections: int, found: list[Sample], bare: list[Sample]) -> list[Figure]:
    """The lines of one number of connections; threads that used nothing have none."""
    name = f"C={connections}"

    def figure(what: str, unit: str, key: str) -> Figure:
        return Figure(f"{name}: {what}", unit, column(found, key))

    target = TARGET_CPU_US if connections == TARGET_CONNECTIONS else None
    total = Figure(f"{name}: CPU a commit", "us", column(found, "cpu_us"), target, more_is_better=False)
    figures = [
        figure("commits", "1/s", "commits_per_second"),
        figure("messages", "messages/s", "per_second"),
        figure("mean commit", "messages", "commit_rows"),
        total,
        figure("CPU a commit, user", "us", "user_us"),
        figure("CPU a commit, kernel", "us", "kernel_us"),
    ]
    for key in sorted({key for sample in found for key in sample if key.startswith(THREAD)}):
        values = [float(sample.get(key, 0.0)) for sample in found]
        figures.append(Figure(f"{name}: CPU a commit, {key}", "us", values))
    above = differences(column(found, "p50_ms"), column(bare, "p50_ms"))
    return [
        *figures,
        figure("ack p50", "ms", "p50_ms"),
        figure("ack p99", "ms", "p99_ms"),
        Figure(f"{name}: bare fsync p50", "ms", column(bare, "p50_ms")),
        Figure(f"{name}: above the bare fsync, p50", "ms", above),
        figure("senders", "cores", "generator_cores"),
    ]
