"""A hot group where each writer has so much CPU and no more: two cores stand for many machines.

`python -m benchmarks hot_group_scaling --quota 0.15` comes here. The home shard and each partition are limited by a
cgroup of their own; gateway and senders are not. One system over one folder serves every side, so memory that was
touched and code that was compiled favour none; a run without limits goes before.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson

from benchmarks import servers
from benchmarks.engine import THREAD
from benchmarks.harness import Figure, Options, Sample, column, in_turns, ratios, say
from benchmarks.processes import CpuTime, by_thread, descendants, machine_cpu, process_cpu, thread_cpu
from benchmarks.quota import NoQuotaError, Quotas, Throttling, find_hierarchy, quotas
from benchmarks.senders import Senders, senders, spread_topics
from benchmarks.thread_names import known_by
from benchmarks.workload import conversation_names
from imray.core.status import ServingState
from imray.settings import Settings

SENDERS = 8
_PARTITIONS = (1, 2, 4, 8)
ROWS = (200, 2_500, 10_000)
TARGETS = {
    (200, 4): 2.0,
    (200, 8): 3.0,
    (2_500, 4): 2.5,
    (2_500, 8): 3.5,
    (10_000, 4): 2.5,
    (10_000, 8): 3.5,
}
"""By messages in a batch and partitions: how many times the single writer's rate."""
_QUICK_PARTITIONS = (1, 4, 8)
_QUICK_S = 2.0
_IN_FLIGHT_ROWS_MAX = 80_000
"""Of all senders: a gateway queues 100,000 for one shard (`Settings.gateway_queue_rows_max`)."""
_COMPILE_S = 3.0
_CHECKPOINTS = 3
_TOUCH_STEP_S = 2.0
_TOUCH_S_MAX = 40.0
_WARMUP_S = 1.0
_SERVING_TIMEOUT_S = 60.0
_HTTP_TIMEOUT_S = 30.0
(_CONV,) = conversation_names(1)


@dataclass(frozen=True)
class Writers:
    """Who writes the conversation, as the system's status says."""

    home: int
    partitions: tuple[int, ...]
    """Processes; empty: the home shard alone."""

    @property
    def all(self) -> tuple[int, ...]:
        return (self.home, *self.partitions)


class System:
    """A running `imray up` of one shard, as its operator sees it."""

    def __init__(self, server: servers.Server) -> None:
        self.server = server
        found = [pid for pid, words in descendants(server.pid).items() if words[0] == "ray::Gateway"]
        if len(found) != 1:
            raise RuntimeError(f"{len(found)} gateways below process {server.pid}, not one")
        (self.gateway,) = found
        self.home_threads: dict[int, str] = {}
        """Their names."""

    def spread(self, partitions: int) -> Writers:
        """Have the conversation written by so many partitions (0: by its home shard alone), and wait until they are."""
        path = f"/v1/conversations/{_CONV}/topics"
        self._call("PUT", path, orjson.dumps({"topics": partitions}))
        return self.await_writers(partitions)

    def await_writers(self, partitions: int) -> Writers:
        """Who writes the conversation, once so many partitions serve. RuntimeError where they do not in a minute."""
        deadline = time.monotonic() + _SERVING_TIMEOUT_S
        while (writers := self._writers(partitions)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{partitions} partitions do not serve")
            time.sleep(0.05)  # between two looks
        return writers

    def shard(self) -> dict[str, Any]:
        """What the one shard says of itself."""
        (found,) = self._call("GET", "/v1/status", None)["shards"]
        return dict(found)

    def _writers(self, partitions: int) -> Writers | None:
        """None: they do not serve yet."""
        shard = self.shard()
        serving = [p["pid"] for p in shard.get("topics", ()) if p["state"] == ServingState.SERVING]
        spread = sum(group["topics"] for group in shard.get("hot", ()))
        if shard["state"] != ServingState.SERVING or spread != partitions or len(serving) != partitions:
            return None
        return Writers(shard["pid"], tuple(serving))

    def _call(self, method: str, path: str, body: bytes | None) -> Any:
        headers = {"Authorization": f"Bearer {self.server.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.server.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT_S) as answer:
                return orjson.loads(answer.read())
        except urllib.error.HTTPError as e:
            raise RuntimeError(f"{method} {path}: status {e.code}: {e.read()[:300]!r}") from e


@dataclass(frozen=True)
class _Reading:
    """What the processes and the machine used up to a moment, and what the home shard counted."""

    at_s: float
    shard: dict[str, Any]
    shard_at_s: float
    """Asked last: a writer that waits for its share answers late."""
    cpu: dict[int, CpuTime]
    home_threads: dict[int, CpuTime]
    throttling: dict[int, Throttling]
    busy_s: float
    stolen_s: float

    @classmethod
    def take(cls, system: System, limits: Quotas, writers: Writers, others: Sequence[int]) -> _Reading:
        cpu = {pid: process_cpu(pid) for pid in (*writers.all, *others)}
        throttling = {pid: limits.throttling(pid) for pid in writers.all}
        home_threads = thread_cpu(writers.home)
        at_s = time.perf_counter()
        busy_s, stolen_s = machine_cpu()
        shard = system.shard()
        return cls(at_s, shard, time.perf_counter(), cpu, home_threads, throttling, busy_s, stolen_s)


def run(options: Options) -> list[Figure]:
    """Every size of batches: the single writer, then K partitions, in turns. No figures where none can be limited."""
    try:
        find_hierarchy()  # before anything is started
        return _run(options)
    except NoQuotaError as e:
        say(f"skipped: {e}")
        return []


def _run(options: Options) -> list[Figure]:
    quota = options.quota
    assert quota is not None
    partitions = _QUICK_PARTITIONS if options.quick else _PARTITIONS
    if options.quick:
        options = replace(options, seconds=max(_QUICK_S, options.seconds))
    topics = spread_topics(SENDERS)
    turns: dict[str, list[Sample]] = {}
    with servers.imray(options, shards=1) as server:
        system = System(server)
        windows = {rows: window_for(options.window, rows) for rows in ROWS}
        with senders(server, _CONV, topics, windows) as who, quotas(quota) as limits:
            _compile(system, who)
            system.home_threads = known_by(server)
            for rows in ROWS:
                sides: dict[str, Callable[[], Sample]] = {
                    _side(rows, k): partial(_saturate, options, system, who, limits, rows, k) for k in (0, *partitions)
                }
                turns |= in_turns(sides, options.repeat)
            system.spread(0)
    return [f for rows in ROWS for k in (0, *partitions) for f in _figures(turns, rows, k)]


def window_for(wanted: int, rows: int) -> int:
    """Batches in flight of each sender, so that a gateway has room for those of all of them."""
    return max(1, min(wanted, _IN_FLIGHT_ROWS_MAX // (SENDERS * rows)))


def _side(rows: int, partitions: int) -> str:
    return f"batches of {rows:,}, {f'K={partitions}' if partitions else 'single'}"


def _compile(system: System, who: Senders) -> None:
    """Let each writer take every size once, without limits: what is compiled or touched at first is so then."""
    for partitions in (0, max(_PARTITIONS)):
        system.spread(partitions)
        for rows in ROWS:
            now = time.perf_counter()
            seconds = _COMPILE_S / len(ROWS)
            who.start(rows, now, now + seconds)
            who.result(seconds)
    _touch(system, who)


def _touch(system: System, who: Senders) -> None:
    """Send until the home shard's tables of ids take over each other's memory, from the third checkpoint on, as in a
    group that lives for a minute. Memory that is touched for the first time costs five times an id's own price."""
    deadline = time.perf_counter() + _TOUCH_S_MAX
    while system.shard()["sealed_ids"] < _CHECKPOINTS * Settings().checkpoint_ids_max:
        now = time.perf_counter()
        if now > deadline:
            say("the home shard's tables are not in their steady state: this machine takes too long to fill them")
            return
        who.start(max(ROWS), now, now + _TOUCH_STEP_S)
        who.result(_TOUCH_STEP_S)


def _saturate(options: Options, system: System, who: Senders, limits: Quotas, rows: int, partitions: int) -> Sample:
    """The rate that the senders get acks at, and who was the limit."""
    writers = system.spread(partitions)
    for pid in writers.all:
        limits.limit(pid)
    begin_s = time.perf_counter() + _WARMUP_S
    end_s = begin_s + options.seconds
    others = (system.gateway, who.pid)
    who.start(rows, begin_s, end_s)
    time.sleep(max(0.0, begin_s - time.perf_counter()))
    first = _Reading.take(system, limits, writers, others)
    time.sleep(max(0.0, end_s - time.perf_counter()))
    last = _Reading.take(system, limits, writers, others)
    answer = who.result(0.0)
    if system.await_writers(partitions) != writers:
        raise RuntimeError("a writer was started anew meanwhile, without a limit")
    threads = by_thread(first.home_threads, last.home_threads, system.home_threads)
    sample = _sample(answer, limits.cores, writers, others, first, last)
    messages = max(1.0, sample["per_second"] * options.seconds)
    return {**sample, **{f"{THREAD}{name}": used.total_s / messages * 1e6 for name, used in threads.items()}}


def _sample(
    answer: Sample,
    quota: float,
    writers: Writers,
    others: tuple[int, int],
    first: _Reading,
    last: _Reading,
) -> Sample:
    elapsed_s = last.at_s - first.at_s
    cores = {pid: (last.cpu[pid] - first.cpu[pid]).total_s / elapsed_s for pid in last.cpu}
    held = {pid: (last.throttling[pid] - first.throttling[pid]).throttled_s / elapsed_s for pid in writers.all}
    rate = answer["messages_per_second"]
    a_million = 1e6 / max(1.0, rate)  # cores at this rate are so many CPU seconds a million
    counted = {key: last.shard[key] - first.shard[key] for key in ("asks", "asks_cpu_s", "segment", "sealed_ids")}
    counted_rows = max(1.0, rate * (last.shard_at_s - first.shard_at_s))
    blocks = counted["asks"] if writers.partitions else counted["segment"]
    gateway, generator = others
    return {
        "per_second": rate,
        "p50_ms": answer["p50_ms"],
        "p99_ms": answer["p99_ms"],
        "home_cpu_s": cores[writers.home] * a_million,
        "partitions_cpu_s": sum(cores[pid] for pid in writers.partitions) * a_million,
        "gateway_cpu_s": cores[gateway] * a_million,
        "generator_cpu_s": cores[generator] * a_million,
        "asks_cpu_s": counted["asks_cpu_s"] / counted_rows * 1e6,
        "block_rows": counted_rows / max(1, blocks),
        "checkpoint": float(counted["sealed_ids"] > 0),
        "home_of_quota": cores[writers.home] / quota,
        "home_throttled": held[writers.home],
        "partitions_of_quota": sum(cores[pid] for pid in writers.partitions) / quota / max(1, len(writers.partitions)),
        "busiest_of_quota": max((cores[pid] for pid in writers.partitions), default=0.0) / quota,
        "partitions_throttled": max((held[pid] for pid in writers.partitions), default=0.0),
        "gateway_cores": cores[gateway],
        "busy_cores": (last.busy_s - first.busy_s) / elapsed_s,
        "stolen_cores": (last.stolen_s - first.stolen_s) / elapsed_s,
    }


def _figures(turns: dict[str, list[Sample]], rows: int, partitions: int) -> list[Figure]:
    """The lines of one side."""
    side = _side(rows, partitions)
    found = turns[side]

    def figure(name: str, unit: str, key: str) -> Figure:
        return Figure(f"{side}: {name}", unit, column(found, key))

    figures = [figure("rate", "messages/s", "per_second")]
    if partitions:
        single = turns[_side(rows, 0)]
        times = ratios(column(found, "per_second"), column(single, "per_second"))
        figures.append(Figure(f"{side}: rate / single writer", "ratio", times, TARGETS.get((rows, partitions))))
    figures += [
        figure("ack p50", "ms", "p50_ms"),
        figure("ack p99", "ms", "p99_ms"),
        figure("home shard", "CPU s/million", "home_cpu_s"),
        figure("gateway", "CPU s/million", "gateway_cpu_s"),
        figure("senders", "CPU s/million", "generator_cpu_s"),
        figure("home shard used of its quota", "share", "home_of_quota"),
        figure("home shard throttled", "s/s", "home_throttled"),
    ]
    if partitions:
        figures += [
            figure("home shard, answering asks", "CPU s/million", "asks_cpu_s"),
            figure("partitions", "CPU s/million", "partitions_cpu_s"),
            figure("partitions used of their quotas", "share", "partitions_of_quota"),
            figure("the most throttled partition", "s/s", "partitions_throttled"),
        ]
    for key in sorted({key for sample in found for key in sample if key.startswith(THREAD)}):
        used = [float(sample.get(key, 0.0)) for sample in found]
        figures.append(Figure(f"{side}: home shard, {key}", "CPU s/million", used))
    mean = figure("mean block" if partitions else "mean commit", "messages", "block_rows")
    return [*figures, mean, figure("the machine", "cores busy", "busy_cores")]
