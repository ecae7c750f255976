"""One measurement of one way of telling: its server, a process of listeners and senders, and what the server used.

Owns the two loads and the sample. Does not own the listeners (`benchmarks.push_crowd` for imray, `push_load` for the
others).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Options, Sample
from benchmarks.peers.push_ways import IMRAY, LISTENERS, QUICK_LISTENERS, telling_of, way_of
from benchmarks.peers.work import CONV
from benchmarks.processes import descendants, process_cpu
from benchmarks.push_process import PushProcess, push_process
from benchmarks.servers import Server, imray

_WARM_UP_S: Final = 1.0
_CROWD: Final = "benchmarks.push_crowd"
_LOAD: Final = "benchmarks.peers.push_load"
_ENVIRONMENT: Final = {"IMRAY_CONNECTIONS_MAX": "20000", "IMRAY_CONNECTIONS_PER_PEER_MAX": "20000"}
"""All connections come from one address."""


@dataclass(frozen=True)
class Load:
    """How much is on its way: `window` batches of `rows`, the next when the first was told."""

    name: str
    rows: int
    window: int


SINGLE: Final = Load("single", 1, 2)
BATCH: Final = Load("batch", 50, 4)
LOADS: Final = (SINGLE, BATCH)
"""Those of `benchmarks.push_sides`: what a chat does, and what a busy one gathers."""
DELIVERIES: Final = "told_per_s"


def listeners_of(options: Options) -> int:
    """How many there are."""
    return QUICK_LISTENERS if options.quick else LISTENERS


def measure(options: Options, key: str) -> Sample:
    """Both loads, one after the other, over a fresh server and the same listeners: keys are `<load>_<figure>`."""
    opened = _imray(options) if way_of(key) is IMRAY else _peer(options, key)
    sample: dict[str, float] = {"listeners": float(listeners_of(options))}
    with opened as process:
        for load in LOADS:
            found = _during(process, options.seconds, load)
            sample |= {f"{load.name}_{name}": value for name, value in found.items()}
    return sample


@contextlib.contextmanager
def _imray(options: Options) -> Iterator[PushProcess]:
    """`imray up`, one conversation, all as `benchmarks.push` has it."""
    os.environ.update(_ENVIRONMENT)
    with imray(options) as server, push_process(_CROWD, server) as process:
        process.ask("open", url=server.url, conversations=[CONV], listeners=listeners_of(options), seed=1)
        yield process


@contextlib.contextmanager
def _peer(options: Options, key: str) -> Iterator[PushProcess]:
    way = way_of(key)
    senders = max(load.window for load in LOADS)
    with (
        options.fresh_folder() as folder,
        telling_of(way).serve(way, folder) as server,
        push_process(_LOAD, Server("", "")) as process,
    ):
        process.ask("open", way=key, address=server.address, listeners=listeners_of(options), senders=senders)
        yield process


def _during(process: PushProcess, seconds: float, load: Load) -> dict[str, float]:
    """A load after a warm-up, and the CPU of the server meanwhile."""
    begin_s = time.perf_counter() + _WARM_UP_S
    end_s = begin_s + seconds
    process.start("drive", begin_s=begin_s, end_s=end_s, rows=load.rows, window=load.window)
    time.sleep(max(0.0, begin_s - time.perf_counter()))
    before = _server_cpu()
    time.sleep(max(0.0, end_s - time.perf_counter()))
    after = _server_cpu()
    used_s = sum(spent_s - before.get(pid, 0.0) for pid, spent_s in after.items())
    found: dict[str, Any] = process.answer(seconds)
    told = found[DELIVERIES] * seconds
    if not told:
        raise RuntimeError(f"nobody was told anything in {seconds} s")
    kept = {name: found[name] for name in (DELIVERIES, "p50_ms", "p99_ms", "generator_cpu")}
    return kept | {"cpu_s": used_s / told * 1e6}


def _server_cpu() -> dict[int, float]:
    """CPU seconds of every process below this one but the generator: all that the server consists of."""
    found: dict[int, float] = {}
    for pid, words in descendants(os.getpid()).items():
        if _CROWD in words or _LOAD in words:
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = spent_s(pid)
    return found


def spent_s(pid: int) -> float:
    """CPU seconds of a process so far, all its threads together. To the nanosecond where it has one thread: a thousand
    processes for as many listeners may each stay below the 10 ms that the other account is kept in."""
    folder = Path(f"/proc/{pid}")
    fine = folder / "schedstat"
    if fine.exists() and len(list((folder / "task").iterdir())) == 1:
        return int(fine.read_text().split()[0]) / 1e9
    return process_cpu(pid).total_s
