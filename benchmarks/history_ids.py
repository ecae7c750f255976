"""Ids of long ago, sent again: how soon they are answered, whom that delays, and what new ids cost beside old ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray

from benchmarks.engine import WARMUP_S, engine
from benchmarks.harness import Figure, Options, Sample, column, in_turns, percentile, ratios, say
from benchmarks.history_load import EngineUser, HistoryLoader, batch_of, marks_of, rooms_of
from benchmarks.history_system import RunningSystem, actors_of
from benchmarks.processes import process_cpu
from benchmarks.workload import record_batch
from imray.core.columns import RowStatus
from imray.core.replies import Appended
from imray.engine.sends import Send
from imray.log.manifest import Manifest
from imray.settings import Settings

MARKS_MAX = 10_000
SHARD = 0
"""All marks are of one shard: one request to it."""
_MARK_ROOMS = 50
_MARKS_A_ROW = 100
"""One mark for so many messages of the load, at most MARKS_MAX."""
_ROUNDS = 3
_PACE_S = 0.01
_QUIET_S = 5.0
_MEANWHILE_S_MIN = 0.1
"""What counts as meanwhile where the answer comes sooner."""
_ANSWER_S_MAX = 3.0
_OTHER_P99_MS_MAX = 50.0
_NEW_ROWS = 10_000
_NEW_BATCHES = 10
_NEW_RATIO_MAX = 1.5
_GRACE_S = 120.0


@dataclass(frozen=True)
class Marks:
    """Messages of the first minutes, each in a segment of its own, with the numbers that they were given."""

    sends: list[Send]
    numbers: list[int]
    last_segment: int


def write_marks(system: RunningSystem, rows: int, conversations: int, seed: int) -> Marks:
    """One message after the other; RuntimeError where two share a segment."""
    count = min(MARKS_MAX, max(100, rows // _MARKS_A_ROW))
    sends = marks_of(rooms_of(SHARD, system.manifest.shards, _MARK_ROOMS, "mark"), count, seed)
    say(f"{count:,} messages in as many segments of shard {SHARD}, to be sent again later")
    how = (system.namespace, system.manifest, system.settings, conversations)
    with actors_of(HistoryLoader, 1, *how) as loaders:
        found: list[tuple[int, int]] = ray.get(loaders[0].single_commits.remote(sends))
    segments = {position for _, position in found}
    if len(segments) != count:
        raise RuntimeError(f"{count} messages are in {len(segments)} segments: not each in one of its own")
    return Marks(sends, [number for number, _ in found], max(segments))


class OldIdsSender(EngineUser):
    """Sends old ids again, single messages at a pace, and batches of new ids; each from an actor of its own."""

    async def old_ids(self, sends: Sequence[Send], numbers: Sequence[int]) -> tuple[float, float]:
        """One request of old ids: when it was sent and answered. RuntimeError unless all are duplicates with their
        first numbers."""
        batch = batch_of(sends)
        began = time.monotonic()
        answers = await self.engine.send_batches({SHARD: batch})
        answered = time.monotonic()
        check_duplicates(answers[SHARD], numbers)
        return began, answered

    async def singles(self, name: str, first: float, interval_s: float, count: int) -> list[tuple[float, float]]:
        """Messages at first, first + interval, ...: when each was due, and the seconds to its ack."""
        found: list[tuple[float, float]] = []

        async def one(send: Send, when: float) -> None:
            sent = await self.engine.send(send)
            if not isinstance(sent.answer, Appended):
                raise RuntimeError(f"not an ack: {sent.answer}")
            found.append((when, time.monotonic() - when))

        sends = marks_of([name], count, time.time_ns() % 2**32)
        waiting = []
        for i, send in enumerate(sends):
            when = first + i * interval_s
            await asyncio.sleep(max(0.0, when - time.monotonic()))
            waiting.append(asyncio.create_task(one(send, when)))
        await asyncio.gather(*waiting)
        return found

    async def new_ids(self, name: str, batches: int) -> list[float]:
        """Batches of new ids, one after the other: seconds of each."""
        rng = np.random.default_rng(time.time_ns())
        taken: list[float] = []
        for _ in range(batches):
            batch = record_batch(_NEW_ROWS, [name], rng)
            began = time.monotonic()
            await self.send({SHARD: batch})
            taken.append(time.monotonic() - began)
        return taken


def check_duplicates(answer: object, numbers: Sequence[int]) -> None:
    """RuntimeError unless an answer says of each row: sent before, with this number."""
    if not isinstance(answer, Appended):
        raise RuntimeError(f"old ids have no answer: {answer}")
    firsts = answer.firsts
    if firsts is None or len(firsts.at) != len(numbers) or not bool((firsts.status == RowStatus.DUPLICATE).all()):
        found = {} if firsts is None else dict(zip(*np.unique(firsts.status, return_counts=True), strict=True))
        raise RuntimeError(f"not all of {len(numbers)} old ids are duplicates: {found}")
    if answer.seqs().tolist() != list(numbers):
        raise RuntimeError("old ids are answered with other numbers than their first ones")


def measure_ids(system: RunningSystem, marks: Marks, messages: int, options: Options) -> list[Figure]:
    """Old ids, and then new ones, over a system with the load in it."""
    checkpoint = system.log(SHARD).checkpoint_segment
    place = "all below the newest checkpoint" if checkpoint >= marks.last_segment else "NOT all below a checkpoint"
    return [*_old_ids(system, marks, place), *_new_ids(system, messages, options)]


def _old_ids(system: RunningSystem, marks: Marks, place: str) -> list[Figure]:
    how = (system.namespace, system.manifest, system.settings)
    other = rooms_of(SHARD, system.manifest.shards, 1, "other")[0]
    say(f"{len(marks.sends):,} old ids in one request, {place}")
    with actors_of(OldIdsSender, 2, *how) as (old, single):
        first = time.monotonic() + 0.5
        seconds = WARMUP_S + _QUIET_S
        before = ray.get(single.singles.remote(other, first, _PACE_S, int(seconds / _PACE_S)), timeout=_GRACE_S)
        quiet = [taken for when, taken in before if when > first + WARMUP_S]
        beside: list[float] = []
        answered: list[float] = []
        for _ in range(_ROUNDS):
            pace = single.singles.remote(other, time.monotonic() + 0.2, _PACE_S, int(_QUIET_S / _PACE_S))
            time.sleep(0.5)  # the other sender is at its pace
            began, ended = ray.get(old.old_ids.remote(marks.sends, marks.numbers), timeout=_GRACE_S)
            answered.append(ended - began)
            until = max(ended, began + _MEANWHILE_S_MIN)
            beside += [t for when, t in ray.get(pace, timeout=_GRACE_S) if when + t >= began and when <= until]
    note = f"{len(marks.sends):,} ids, each from another segment, {place}; one request; all duplicates, first numbers"
    paced = f"a message every {1e3 * _PACE_S:.0f} ms to the same shard, from another process"
    return [
        Figure("old ids: first time", "s", [answered[0]], _ANSWER_S_MAX, more_is_better=False, note=note),
        Figure("old ids: again", "s", answered[1:], _ANSWER_S_MAX, more_is_better=False, note=note),
        Figure("another sender before: ack, p99", "ms", [1e3 * percentile(quiet, 0.99)], note=paced),
        Figure(
            "another sender meanwhile: ack, p99",
            "ms",
            [1e3 * percentile(beside, 0.99)],
            _OTHER_P99_MS_MAX,
            more_is_better=False,
            note=f"{len(beside)} messages; {paced}",
        ),
    ]


def _new_ids(system: RunningSystem, messages: int, options: Options) -> list[Figure]:
    """Batches of new ids to the system and to a shard that has nothing, in turns."""
    name = rooms_of(SHARD, system.manifest.shards, 1, "new")[0]
    pid = system.statuses()[SHARD].pid
    how = (system.namespace, system.manifest, system.settings)
    with engine(options, Settings(merge=False)) as empty:
        bare = (empty.namespace, Manifest("benchmark", 1, system.manifest.seed), system.settings)
        with actors_of(OldIdsSender, 1, *how) as full_side, actors_of(OldIdsSender, 1, *bare) as empty_side:
            sides = {
                "beside old ids": partial(_new_side, full_side[0], name, pid),
                "in an empty shard": partial(_new_side, empty_side[0], name, empty.status().pid),
            }
            for side in sides.values():
                side()  # compiled, and memory is taken
            turns = in_turns(sides, max(3, options.repeat))
    full, alone = turns["beside old ids"], turns["in an empty shard"]
    batches = f"batches of {_NEW_ROWS:,}, one in flight"
    note = f"{batches}; {messages:,} older ids in all shards"
    return [
        Figure("new ids beside old ones: a batch", "ms", column(full, "ms"), note=note),
        Figure("new ids in an empty shard: a batch", "ms", column(alone, "ms"), note=batches),
        Figure(
            "new ids: beside old ones / in an empty shard",
            "ratio",
            ratios(column(full, "ms"), column(alone, "ms")),
            _NEW_RATIO_MAX,
            more_is_better=False,
            note="time to the ack",
        ),
        Figure("new ids beside old ones: the shard's CPU", "us/id", column(full, "cpu_us")),
        Figure("new ids in an empty shard: the shard's CPU", "us/id", column(alone, "cpu_us")),
    ]


def _new_side(sender: Any, name: str, pid: int | None) -> Sample:
    before = process_cpu(pid)
    taken: list[float] = ray.get(sender.new_ids.remote(name, _NEW_BATCHES), timeout=_GRACE_S)
    spent = (process_cpu(pid) - before).total_s
    return {"ms": 1e3 * percentile(taken, 0.5), "cpu_us": 1e6 * spent / (_NEW_BATCHES * _NEW_ROWS)}
