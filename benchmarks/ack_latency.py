"""How long does an ack take, beside the bare fsync that it cannot do without?"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from benchmarks.engine import (
    BATCH_ROWS,
    WARMUP_S,
    Engine,
    check_ack,
    cluster,
    engine,
    producers,
    saturate,
    shard_client,
)
from benchmarks.harness import Figure, Options, Sample, child, column, differences, in_turns, percentile, say
from benchmarks.workload import Batches, conversation_names

QUESTION = "ack latency at half the saturating rate, and of single messages, beside the bare fsync of the same bytes"
PACED_ROWS = (1_000, 5_000)
"""Each is paced at half of what batches of its own size reach: small ones are bound by calls, not by messages."""
SINGLE_INTERVAL_S = 0.02
TARGET_P50_MS, TARGET_P99_MS = 4.0, 15.0
_SATURATE_TURNS = 3
_SATURATE_S_MAX = 3.0
_ACK_TIMEOUT_S = 60.0
_START_DELAY_S = 0.3

Shapes = dict[str, tuple[int, float]]
"""For each side: the mean size of its commits' files, and the mean time between two of them."""


def run(options: Options) -> list[Figure]:
    """Saturate; then in turns paced batches, the bare fsync of their commits, single sends, the bare fsync of those."""
    shapes: Shapes = {}
    sides: dict[str, Callable[[], Sample]] = {}
    full: dict[int, list[float]] = {}
    with cluster(), ExitStack() as stack:
        paced_rows = PACED_ROWS[:1] if options.quick else PACED_ROWS
        for rows in paced_rows:
            senders = stack.enter_context(producers(options.producers, rows, 1))
            full[rows] = saturating_rates(options, senders, rows)
            rate = statistics.median(full[rows]) / 2
            sides[f"paced {rows}"] = partial(paced, options, senders, rows, rate, shapes)
            sides[f"bare {rows}"] = partial(bare_like, options, shapes, f"paced {rows}")
        sides["single"] = partial(single, options, shapes)
        sides["bare single"] = partial(bare_like, options, shapes, "single")
        turns = in_turns(sides, options.repeat)
    figures: list[Figure] = []
    for rows in paced_rows:
        found, name = turns[f"paced {rows}"], f"batches of {rows:,}"
        figures += [
            Figure(f"{name}: saturating rate", "messages/s", full[rows]),
            Figure(f"{name}: rate at which acks were timed", "messages/s", column(found, "per_second")),
            Figure(f"{name}: mean commit", "messages", column(found, "commit_rows")),
            Figure(f"{name}: latest send after it was due", "ms", column(found, "late_ms"), note="counts as latency"),
            *compared(name, found, turns[f"bare {rows}"]),
        ]
    return figures + compared("single sends", turns["single"], turns["bare single"])


def compared(name: str, acks: Sequence[Sample], alone: Sequence[Sample]) -> list[Figure]:
    """Acks beside the bare fsync, turn by turn."""
    figures = []
    for what, target in (("p50", TARGET_P50_MS), ("p99", TARGET_P99_MS)):
        ack, fsync = column(acks, f"{what}_ms"), column(alone, f"{what}_ms")
        above = differences(ack, fsync)
        figures += [
            Figure(f"{name}: ack {what}", "ms", ack),
            Figure(f"{name}: bare fsync {what}", "ms", fsync),
            Figure(f"{name}: above the bare fsync, {what}", "ms", above, target, more_is_better=False),
        ]
    return figures


def saturating_rates(options: Options, senders: Sequence[Any], rows: int) -> list[float]:
    """What the senders reach with batches of `rows`, as many messages in flight as in hot_group."""
    window = options.window * BATCH_ROWS // rows
    short = replace(options, seconds=min(_SATURATE_S_MAX, options.seconds), window=window)
    rates = [saturate(short, senders).per_second for _ in range(_SATURATE_TURNS)]
    say(f"saturating rate with batches of {rows:,}: {statistics.median(rates):,.0f} messages/s")
    return rates


def paced(options: Options, senders: Sequence[Any], rows: int, rate: float, shapes: Shapes) -> Sample:
    """Evenly spaced batches from all senders, each latency counted from when the batch was due."""
    interval_s = rows * len(senders) / rate
    begin = int(WARMUP_S / interval_s)
    count = begin + int(options.seconds / interval_s)
    with engine(options) as started:
        before = started.figures().segment
        first = time.monotonic() + _START_DELAY_S
        runs = [
            sender.pace.remote(started.namespace, first + i * interval_s / len(senders), interval_s, count, begin)
            for i, sender in enumerate(senders)
        ]
        answers = ray.get(runs, timeout=WARMUP_S + options.seconds + _ACK_TIMEOUT_S)
        elapsed = time.monotonic() - first
        commits = started.figures().segment - before
        shapes[f"paced {rows}"] = segment_bytes(started), elapsed / commits
    latencies = [x for found, _ in answers for x in found]
    return {
        "p50_ms": percentile(latencies, 0.5) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
        "per_second": rows * count * len(senders) / elapsed,
        "commit_rows": rows * count * len(senders) / commits,
        "late_ms": max(late for _, late in answers) * 1e3,
    }


def single(options: Options, shapes: Shapes) -> Sample:
    """One message at a time, by the door that gateways use."""
    with engine(options) as started:
        latencies = asyncio.run(_one_by_one(started, options.seconds))
        shapes["single"] = segment_bytes(started), SINGLE_INTERVAL_S
    return {"p50_ms": percentile(latencies, 0.5) * 1e3, "p99_ms": percentile(latencies, 0.99) * 1e3}


async def _one_by_one(started: Engine, seconds: float) -> list[float]:
    import pyarrow as pa

    client = shard_client(started.namespace)
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


def bare_like(options: Options, shapes: Shapes, side: str) -> Sample:
    """The bare fsync of files of that side's size, at its pace, while the engine is idle."""
    size, interval_s = shapes[side]
    with options.fresh_folder() as folder:
        return child("benchmarks.bare", folder, size, interval_s, options.seconds, seconds=10 * options.seconds)


def segment_bytes(started: Engine) -> int:
    """The mean size of the segments that hold messages (the first one is the fence)."""
    sizes = [f.stat().st_size for f in sorted((started.data / "wal" / "shard=0000").glob("*.parquet"))[1:]]
    return round(sum(sizes) / len(sizes))
