"""What does a hot group cost, and what does it give? K partitions beside the single writer.

On one machine the sum cannot grow beyond its cores, so the figures that decide at scale stand beside the rates: what a
block and an id in it cost the home shard, and what a message costs all writers together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from benchmarks import hot_group_quota
from benchmarks.engine import THREAD, cluster
from benchmarks.harness import Figure, Options, Sample, column, in_turns, ratios
from benchmarks.spread import saturate, spreaders
from imray.settings import Settings

QUESTION = "one conversation on K partitions: rates, latencies, and whose CPU, beside the single writer"
_TOPICS = (1, 2, 4, 8)
_QUICK_PARTITIONS = (1, 4)
_ROWS = 10_000
_BLOCK_TARGETS_US = {100: 200.0, 1_000: 400.0, 10_000: 2_000.0}
"""By the messages in a block: all the CPU that the home shard's process may take for one."""
_BLOCK_ROWS = tuple(_BLOCK_TARGETS_US)
_EQUATION_ROWS = (100, 10_000)
"""The blocks that say what a block costs, and what an id in it does: far apart, so that noise turns neither below 0."""
_BLOCK_PARTITIONS = 4
_STEADY_IDS = 150_000
_SLOW_PUT_S = 0.02
_SLOW_PARTITIONS = (1, 8)
TARGET_BLOCK_US, TARGET_ID_US = 200.0, 0.15
TARGET_CPU_RATIO = 1.25
_WINDOW_SLOW = 16
"""Batches in flight for each producer: over a slow store more of them are under way."""


def run(options: Options) -> list[Figure]:
    """In turns: the single writer and K = 1, 2, 4, 8; then a store that takes 20 ms a put; then blocks of three sizes.

    With a quota another run, over HTTP: `benchmarks.hot_group_quota`."""
    if options.quota is not None:
        return hot_group_quota.run(options)
    plain = Settings()
    if options.quick:
        with cluster(), spreaders(options.producers, _ROWS) as senders:
            quick = {
                f"K={k}" if k else "single": partial(saturate, options, senders, k, plain, options.window)
                for k in (0, *_QUICK_PARTITIONS)
            }
            turns = in_turns(quick, options.repeat)
        return _rates(turns, tuple(quick))
    slow = replace(plain, store_put_delay_s=_SLOW_PUT_S)
    # tables of ids take over each other's memory from the third checkpoint on: the steady state begins in the warm-up
    steady = replace(plain, checkpoint_ids_max=_STEADY_IDS)
    with cluster(), spreaders(options.producers, _ROWS) as senders:
        sides: dict[str, Callable[[], Sample]] = {
            f"K={k}" if k else "single": partial(saturate, options, senders, k, plain, options.window)
            for k in (0, *_TOPICS)
        }
        turns = in_turns(sides, options.repeat)
        sides = {
            f"slow K={k}" if k else "slow single": partial(saturate, options, senders, k, slow, _WINDOW_SLOW)
            for k in (0, *_SLOW_PARTITIONS)
        }
        turns |= in_turns(sides, options.repeat)
        with ExitStack() as stack:
            # as many batches in flight as partitions: every block is one batch
            window = max(1, _BLOCK_PARTITIONS // options.producers)
            sides = {}
            for rows in _BLOCK_ROWS:
                who = stack.enter_context(spreaders(options.producers, rows)) if rows != _ROWS else senders
                sides[f"blocks {rows}"] = partial(saturate, options, who, _BLOCK_PARTITIONS, steady, window)
            turns |= in_turns(sides, options.repeat)
    return [*_rates(turns, ("single", *(f"K={k}" for k in _TOPICS))), *_home(turns), *_slow(turns)]


def _rates(turns: dict[str, list[Sample]], sides: Sequence[str]) -> list[Figure]:
    figures = []
    single = turns["single"]
    total = {side: [float(s["home_cpu_s"] + s["topics_cpu_s"]) for s in turns[side]] for side in sides}
    for side in sides:
        found = turns[side]
        figures += [
            Figure(f"{side}: rate", "messages/s", column(found, "per_second")),
            Figure(f"{side}: ack p50", "ms", column(found, "p50_ms")),
            Figure(f"{side}: ack p99", "ms", column(found, "p99_ms")),
            Figure(f"{side}: home shard", "CPU s/million", column(found, "home_cpu_s")),
        ]
        if side != "single":
            figures += [
                Figure(f"{side}: partitions", "CPU s/million", column(found, "topics_cpu_s")),
                Figure(f"{side}: rate / single writer", "ratio", ratios(*_pair(found, single, "per_second"))),
                Figure(
                    f"{side}: writers' CPU a message / single writer",
                    "ratio",
                    ratios(total[side], total["single"]),
                    TARGET_CPU_RATIO,
                    more_is_better=False,
                ),
            ]
    return figures


def _pair(of: Sequence[Sample], to: Sequence[Sample], key: str) -> tuple[list[float], list[float]]:
    return column(of, key), column(to, key)


def _home(turns: dict[str, list[Sample]]) -> list[Figure]:
    """The home shard's CPU as a price for a block and one for an id in it: two sizes of blocks, two equations."""
    small, large = (turns[f"blocks {rows}"] for rows in _EQUATION_ROWS)
    per_block, per_id = [], []
    for a, b in zip(small, large, strict=True):
        determinant = a["asks"] * b["rows"] - b["asks"] * a["rows"]
        per_block.append(1e6 * (a["asks_cpu_s"] * b["rows"] - b["asks_cpu_s"] * a["rows"]) / determinant)
        per_id.append(1e6 * (a["asks"] * b["asks_cpu_s"] - b["asks"] * a["asks_cpu_s"]) / determinant)
    note = f"answering threads, from blocks of {_EQUATION_ROWS[0]:,} and {_EQUATION_ROWS[1]:,}"
    often = f"checkpoints after {_STEADY_IDS:,} ids"
    figures = [
        Figure("home shard: CPU a block", "us", per_block, TARGET_BLOCK_US, more_is_better=False, note=note),
        Figure("home shard: CPU an id", "us", per_id, TARGET_ID_US, more_is_better=False, note=note),
    ]
    for rows, target in _BLOCK_TARGETS_US.items():
        found = turns[f"blocks {rows}"]
        carries = [1e6 / (block / rows + each) for block, each in zip(per_block, per_id, strict=True)]
        sizes = [s["rows"] / max(1, s["asks"]) for s in found]
        name = f"batches of {rows:,}"
        answers = [1e6 * s["asks_cpu_s"] / max(1, s["asks"]) for s in found]
        # CPU seconds a million messages are us a message
        whole = [s["home_cpu_s"] * size for s, size in zip(found, sizes, strict=True)]
        figures += [
            Figure(f"one sequencer's core carries, blocks of {rows:,}", "messages/s", carries),
            Figure(f"{name}: mean block", "messages", sizes),
            Figure(f"{name}: answering threads, a block", "CPU us", answers),
            Figure(f"{name}: home process, all it does, a block", "CPU us", whole, target, False, often),
        ]
        for key in sorted({key for s in found for key in s if key.startswith(THREAD)}):
            spent = [s.get(key, 0.0) * size for s, size in zip(found, sizes, strict=True)]
            figures.append(Figure(f"{name}: home process, {key}, a block", "CPU us", spent))
    return figures


def _slow(turns: dict[str, list[Sample]]) -> list[Figure]:
    figures = []
    for k in (0, *_SLOW_PARTITIONS):
        found = turns[f"slow K={k}" if k else "slow single"]
        name = f"puts 20 ms slower, {f'K={k}' if k else 'single writer'}"
        figures += [
            Figure(f"{name}: rate", "messages/s", column(found, "per_second")),
            Figure(f"{name}: ack p50", "ms", column(found, "p50_ms")),
            Figure(f"{name}: ack p99", "ms", column(found, "p99_ms")),
        ]
    return figures
