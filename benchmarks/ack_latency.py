"""How long does an ack take, beside the bare fsync that it cannot do without?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from benchmarks.engine import BATCH_ROWS, WARMUP_S, Engine, check_ack, cluster, engine, producers, saturate
from benchmarks.harness import Figure, Options, Sample, child, column, differences, in_turns, percentile
from benchmarks.workload import Batches, conversation_names
from imray.cluster.shard_client import ShardClient
from imray.settings import Settings

QUESTION = "ack latency at half the saturating rate, and of single messages, beside the bare fsync of the same bytes"
PACED_ROWS = 1_000
SINGLE_INTERVAL_S = 0.02
TARGET_P50_MS, TARGET_P99_MS = 4.0, 15.0
_SATURATE_TURNS = 3
_ACK_TIMEOUT_S = 60.0
_START_DELAY_S = 0.3


def run(options: Options) -> list[Figure]:
    """Saturate; then in turns paced batches, the bare fsync of their commits, single sends, the bare fsync of those."""
    count = options.producers
    with cluster():
        with producers(count, BATCH_ROWS, 1) as senders:
            short = replace(options, seconds=min(3.0, options.seconds))
            full = sorted(saturate(short, senders).per_second for _ in range(_SATURATE_TURNS))[_SATURATE_TURNS // 2]
        with producers(count, PACED_ROWS, 1) as senders:
            shape: dict[str, tuple[int, float]] = {}
            sides = {
                "paced": lambda: paced(options, senders, full / 2, shape),
                "bare": lambda: bare(options, *shape["paced"]),
                "single": lambda: single(options, shape),
                "bare single": lambda: bare(options, *shape["single"]),
            }
            turns = in_turns(sides, options.repeat)
    rate = column(turns["paced"], "per_second")
    figures = [
        Figure("saturating rate", "messages/s", [full], note=f"batches of {BATCH_ROWS:,}"),
        Figure("rate at which acks were timed", "messages/s", rate, note=f"batches of {PACED_ROWS:,}, open loop"),
        Figure("mean commit", "messages", column(turns["paced"], "commit_rows")),
        Figure("latest send", "ms", column(turns["paced"], "late_ms"), note="after it was due; counts as latency"),
    ]
    for name, side, other in (("half rate", "paced", "bare"), ("single sends", "single", "bare single")):
        for what, target in (("p50", TARGET_P50_MS), ("p99", TARGET_P99_MS)):
            ack, alone = column(turns[side], f"{what}_ms"), column(turns[other], f"{what}_ms")
            above = differences(ack, alone)
            figures.append(Figure(f"{name}: ack {what}", "ms", ack))
            figures.append(Figure(f"{name}: bare fsync {what}", "ms", alone))
            figures.append(Figure(f"{name}: above the bare fsync, {what}", "ms", above, target, more_is_better=False))
    return figures


def paced(options: Options, senders: Sequence[Any], rate: float, shape: dict[str, tuple[int, float]]) -> Sample:
    """Evenly spaced batches from all senders, each latency counted from when the batch was due."""
    interval_s = PACED_ROWS * len(senders) / rate
    begin = int(WARMUP_S / interval_s)
    count = begin + int(options.seconds / interval_s)
    with engine(options) as started:
        before = started.figures()["segment"]
        first = time.monotonic() + _START_DELAY_S
        runs = [
            sender.pace.remote(started.namespace, first + i * interval_s / len(senders), interval_s, count, begin)
            for i, sender in enumerate(senders)
        ]
        answers = ray.get(runs, timeout=WARMUP_S + options.seconds + _ACK_TIMEOUT_S)
        elapsed = time.monotonic() - first
        commits = started.figures()["segment"] - before
        shape["paced"] = segment_bytes(started), elapsed / commits
    latencies = [x for found, _ in answers for x in found]
    return {
        "p50_ms": percentile(latencies, 0.5) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
        "per_second": PACED_ROWS * count * len(senders) / elapsed,
        "commit_rows": PACED_ROWS * count * len(senders) / commits,
        "late_ms": max(late for _, late in answers) * 1e3,
    }


def single(options: Options, shape: dict[str, tuple[int, float]]) -> Sample:
    """One message at a time, by the door that gateways use."""
    with engine(options) as started:
        latencies = asyncio.run(_one_by_one(started, options.seconds))
        shape["single"] = segment_bytes(started), SINGLE_INTERVAL_S
    return {"p50_ms": percentile(latencies, 0.5) * 1e3, "p99_ms": percentile(latencies, 0.99) * 1e3}


async def _one_by_one(started: Engine, seconds: float) -> list[float]:
    import pyarrow as pa

    client = ShardClient(started.namespace, 0, Settings())
    batches = Batches(1, conversation_names(1), seed=time.time_ns())
    latencies = []
    warm, end = time.monotonic() + WARMUP_S, time.monotonic() + WARMUP_S + seconds
    while (start := time.monotonic()) < end:
        stream = pa.py_buffer(batches.next())
        sent = time.monotonic()
        check_ack(await client.append(stream, sent + _ACK_TIMEOUT_S), 1)
        if start >= warm:
            latencies.append(time.monotonic() - sent)
        await asyncio.sleep(max(0.0, start + SINGLE_INTERVAL_S - time.monotonic()))
    return latencies


def bare(options: Options, size: int, interval_s: float) -> Sample:
    """The bare fsync of files of that size, at that pace, while the engine is idle."""
    with options.fresh_folder() as folder:
        return child("benchmarks.bare", folder, size, interval_s, options.seconds, seconds=10 * options.seconds)


def segment_bytes(started: Engine) -> int:
    """The mean size of the segments that hold messages (the first one is the fence)."""
    sizes = [f.stat().st_size for f in sorted((started.data / "wal" / "shard=0000").glob("*.parquet"))[1:]]
    return round(sum(sizes) / len(sizes))
