"""A folder of very many unmerged segments, as a system without a merger leaves it: opened, served, merged.

`python -m benchmarks history --segments 200000`.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.engine import cluster
from benchmarks.harness import Figure, Options, percentile, say
from benchmarks.history_folder import LAG_MAX, Lag, survey, total
from benchmarks.history_pulls import PAGE_ROWS, Pull, check_page, pulls_of
from benchmarks.history_restart import shard_memory
from benchmarks.history_system import RunningSystem, running, say_shards
from imray.core.replies import Refusal
from imray.engine.engine import Engine
from imray.settings import Settings
from tests.support.many_segments import ManySegments, make_segments

_SHARDS = 1
"""All segments are in one log: the worst."""
_PULLS = 100
_PULLS_SEED = 5
_S_MAX = 3600.0


def run(options: Options) -> list[Figure]:
    """Make the folder, then everything in the order of its life."""
    segments = options.segments
    assert segments is not None, "asked with --segments"
    with options.fresh_folder() as data, cluster():
        made = make_segments(data, segments, _SHARDS)
        say(f"{made.segments:,} segments made in {made.seconds:.1f} s")
        before = survey(data)
        with running(data, Settings.from_env()) as system:
            began = time.monotonic() - system.started_s
            say_shards(system)
            first = _pulls(system, made)
            lag = Lag(data)
            merged = lag.await_merged(_S_MAX) - began
            left = lag.await_deleted(_S_MAX)
            deleted = time.monotonic() - began
            memory = max(shard_memory(system))
            later = _pulls(system, made)
            say_shards(system)
            after = survey(data)
        with running(data, Settings.from_env()) as again:
            second = again.started_s
    note = f"{made.segments:,} segments of one message in one log, without a checkpoint"
    kept = f"at most {LAG_MAX} segments in the log"
    return [
        Figure("many segments: made", "s", [made.seconds], note="by the tool, without fsync"),
        Figure("many segments: first start", "s", [system.started_s], note=f"{note}; on a Ray that runs"),
        Figure("many segments: a pull at once, p50", "ms", [1e3 * percentile(first, 0.5)], note=f"{_PULLS} pulls"),
        Figure("many segments: a pull at once, slowest", "ms", [1e3 * max(first)], note=f"{_PULLS} pulls"),
        Figure("many segments: merged", "s", [merged], note=f"from the start; under {LAG_MAX} are unmerged"),
        Figure("many segments: deleted", "s", [deleted], note=f"from the start; {left} segments are left"),
        Figure("many segments: a pull then, p50", "ms", [1e3 * percentile(later, 0.5)], note=f"{_PULLS} pulls"),
        Figure("many segments: start then", "s", [second], note=kept),
        Figure("many segments: memory of the shard", "MiB", [memory], note="RssAnon, before the second start"),
        Figure("many segments: files before", "files", [float(total(before).files)]),
        Figure("many segments: files after", "files", [float(total(after).files)]),
    ]


def _pulls(system: RunningSystem, made: ManySegments) -> list[float]:
    """Seconds of some pulls, one after the other, each checked."""
    heads = {name: made.head(name) for name in made.conversations}
    pulls = pulls_of(heads, f"of {PAGE_ROWS}", _PULLS, _PULLS_SEED)

    async def ask(engine: Engine) -> list[float]:
        taken = []
        for pull in pulls:
            began = time.monotonic()
            await _pull(engine, pull, heads[pull.ask.conv_id])
            taken.append(time.monotonic() - began)
        return taken

    return system.with_engine(ask)


async def _pull(engine: Engine, pull: Pull, head: int) -> None:
    answer = await engine.history(pull.ask)
    if isinstance(answer, Refusal):
        raise RuntimeError(f"{pull.ask}: {answer}")
    numbers: np.ndarray = answer[1].messages["conv_seq"].to_numpy()
    check_page(pull.ask, numbers, answer[1].holes, head)
