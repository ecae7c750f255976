"""Checkpoints and merges at every occasion, in a running system whose processes are killed at random; the checker
decides. Longer, and other moments: IMRAY_UPKEEP_KILLS_S (seconds in all) and IMRAY_UPKEEP_KILLS_SEED."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import System, start, stop

from tests.checker.invariants import check
from tests.support.upkeep_load import DEADLINE_S, Load

_TOTAL_S = float(os.environ.get("IMRAY_UPKEEP_KILLS_S", "60"))
_SEED = int(os.environ.get("IMRAY_UPKEEP_KILLS_SEED", "1"))
_CHECKS_S = 15.0
"""What the last checks take of the total, about."""
_MORE_S = 60.0
"""How much longer the load may go on, on a slow machine, until all kinds were killed often enough."""
_CHECKPOINT_SEGMENTS = 4
_KILL_PAUSE_S = (1.0, 3.0)
_MERGE_WAIT_S = 2.0
_AFTER_MERGE_S_MAX = 0.3
_WIDE = 8 * _CHECKPOINT_SEGMENTS
"""An interval over so many segments was merged, or is the rare one of a checkpoint that came late."""
_KINDS = {
    "shard": "ray::ShardActor",
    "topic": "ray::PartitionActor",
    "gateway": "ray::Gateway",
    "history": "ray::History",
}
"""Who is killed, and how Ray titles its process."""
_KILLS_MIN = 3
_CHECKPOINTS_MIN = 10
_AGAIN = 1000


def _descendants(root: int) -> dict[int, str]:
    """The processes below one, with their titles, from /proc."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            parents[int(stat.parts[2])] = int(stat.read_text().rpartition(")")[2].split()[1])
    below: set[int] = set()
    while found := {pid for pid, parent in parents.items() if parent in below | {root}} - below:
        below |= found
    titles: dict[int, str] = {}
    for pid in below:
        with contextlib.suppress(OSError):
            titles[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return titles


def _pids(system: System, kind: str) -> list[int]:
    """The processes of a kind. Their titles tell them also while they recover and answer nothing."""
    title = _KINDS[kind]
    found = _descendants(system.process.pid)
    return sorted(pid for pid, said in found.items() if said.split(".")[0].strip() == title)


class Watcher(threading.Thread):
    """Notes the names of checkpoints and sealed intervals: only the newest stay in the folder."""

    def __init__(self, data: Path) -> None:
        super().__init__(name="watcher", daemon=True)
        self._data = data
        self.ended = threading.Event()
        self.wide = threading.Event()
        """Set at each new interval that is a merged one by its width."""
        self.checkpoints: set[tuple[str, str]] = set()
        self._intervals: set[tuple[str, int, int]] = set()

    def run(self) -> None:
        while not self.ended.wait(0.02):  # between two looks
            self._look()

    def _look(self) -> None:
        for path in self._data.glob("checkpoint/*/*.parquet"):
            self.checkpoints.add((path.parent.name, path.name))
        for path in self._data.glob("sealed/*/*.ids.*"):
            first, last, _ = path.name.split(".")[0].split("-")
            interval = (path.parent.name, int(first), int(last))
            if interval not in self._intervals:
                self._intervals.add(interval)
                if interval[2] - interval[1] >= _WIDE:
                    self.wide.set()

    def merged(self) -> int:
        """Intervals that hold two others side by side. One alone inside may be what a killed shard left behind."""
        first_end: dict[tuple[str, int], int] = {}
        last_begin: dict[tuple[str, int], int] = {}
        for shard, first, last in self._intervals:
            first_end[shard, first] = min(last, first_end.get((shard, first), last))
            last_begin[shard, last] = max(first, last_begin.get((shard, last), first))
        return sum(first_end[shard, first] < last_begin[shard, last] for shard, first, last in self._intervals)


class Killer:
    """Kills one process of each kind in turn, the kinds in random order, at random moments."""

    def __init__(self, system: System, watcher: Watcher, seed: int) -> None:
        self._system, self._watcher = system, watcher
        self._rng = random.Random(seed)
        self._waiting: list[str] = []
        self.kills: Counter[str] = Counter()

    @property
    def enough(self) -> bool:
        """Whether each kind was killed often enough for the run to mean something."""
        return all(self.kills[kind] >= _KILLS_MIN for kind in _KINDS)

    def pause(self) -> None:
        """The random moment; not a wait for anything."""
        threading.Event().wait(self._rng.uniform(*_KILL_PAUSE_S))

    def kill(self) -> None:
        """SIGKILL to one. A kind that is not there now keeps its turn until it is."""
        if not self._waiting:
            self._waiting = self._rng.sample(sorted(_KINDS), len(_KINDS))
        for kind in self._waiting:
            if kind == "shard" and self._rng.random() < 0.5:
                self._await_merge()
            if pids := _pids(self._system, kind):
                with contextlib.suppress(ProcessLookupError):  # it ended by itself: no kill of ours
                    os.kill(self._rng.choice(pids), signal.SIGKILL)
                    self.kills[kind] += 1
                    self._waiting.remove(kind)
                return

    def _await_merge(self) -> None:
        """The moments after a merge are few, and files come and go in them: random moments alone seldom hit them."""
        self._watcher.wide.clear()
        if self._watcher.wide.wait(_MERGE_WAIT_S):
            threading.Event().wait(self._rng.uniform(0.0, _AFTER_MERGE_S_MAX))  # a random moment again


def _shards(system: System) -> list[dict[str, Any]]:
    """What /v1/status says; nothing while the gateway is away."""
    try:
        answer = httpx.get(f"{system.url}/v1/status", headers={"Authorization": f"Bearer {system.token}"}, timeout=30)
    except httpx.TransportError:
        return []
    return answer.json()["shards"] if answer.status_code == 200 else []


def _all_serve(system: System) -> None:
    """Every shard serves, in time, now that nobody is killed."""
    deadline = time.monotonic() + DEADLINE_S
    while not (shards := _shards(system)) or any(s["state"] != "serving" for s in shards):
        assert time.monotonic() < deadline, f"not all serve: {[s.get('state') for s in shards]}"
        threading.Event().wait(0.1)  # between two looks


def _progress(load: Load) -> None:
    """Every sender is acked once more."""
    before = [s.acked for s in load.senders]
    deadline = time.monotonic() + DEADLINE_S
    while not all(s.acked > b for s, b in zip(load.senders, before, strict=True)):
        load.check()
        assert time.monotonic() < deadline, "the senders make no progress"
        threading.Event().wait(0.02)  # between two looks


def _run(system: System, load: Load, killer: Killer, ends: float) -> None:
    """Load and kills until it is time for what comes then: all that a client can check."""
    status = {s["pid"] for s in _shards(system)}
    assert status == set(_pids(system, "shard")), "the titles of processes tell who is who"
    assert [system.gateway_pid()] == _pids(system, "gateway")
    for w in load.workers:
        w.start()
    while time.monotonic() < ends or not (killer.enough or time.monotonic() > ends + _MORE_S):
        killer.pause()
        load.check()
        killer.kill()
    _all_serve(system)
    _progress(load)
    load.end()
    again = load.send_again(_AGAIN)
    load.read_all()
    _all_serve(system)
    print(f"{again} old ids sent once more have their first numbers")


def _end(system: System) -> None:
    """In good order; and should that fail, all the same: no process stays."""
    try:
        stop(system)
    finally:
        if system.process.poll() is None:
            for pid in _descendants(system.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            system.process.kill()


def _figures(load: Load, killer: Killer, watcher: Watcher) -> str:
    kills = ", ".join(f"{n} of {kind}" for kind, n in sorted(killer.kills.items()))
    acked = sum(s.acked for s in load.senders)
    again = sum(s.again for s in load.senders)
    slowest = max(s.slowest_s for s in load.senders)
    return (
        f"seed {_SEED}, {_TOTAL_S:.0f} s: {acked} acks ({again} of old ids), {load.reader.pages} pages, "
        f"{load.heater.turns} turns of the room, kills: {kills}; longest pause of a sender {slowest:.1f} s, "
        f"{len(watcher.checkpoints)} checkpoints seen, {watcher.merged()} merges seen"
    )


@pytest.mark.timeout(3 * _TOTAL_S + 300)
def test_upkeep_at_every_occasion_survives_kills_of_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, nothing numbered twice, no shard refuses to start."""
    monkeypatch.setenv("IMRAY_CHECKPOINT_SEGMENTS_MAX", str(_CHECKPOINT_SEGMENTS))
    data = tmp_path / "data"
    ends = time.monotonic() + _TOTAL_S - _CHECKS_S
    system = start(data, "--shards", "2")
    watcher = Watcher(data)
    killer = Killer(system, watcher, _SEED)
    try:
        load = Load(system, _SEED, tmp_path)
        watcher.start()
        try:
            _run(system, load, killer, ends)
        except AssertionError as e:
            e.add_note(f"the shards say: {[s.get('state') for s in _shards(system)]}")
            raise
        finally:
            for w in load.workers:
                w.ended.set()
            watcher.ended.set()
            watcher.join()
            print(_figures(load, killer, watcher))
    finally:
        _end(system)
    report = check(sorted(tmp_path.glob("*.jsonl")))
    print(report.to_text())
    assert report.ok, report.to_text()
    command = [sys.executable, "-m", "imray.cli", "audit", "--data", str(data)]
    audit = subprocess.run(command, capture_output=True, text=True, check=False)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert len(watcher.checkpoints) >= _CHECKPOINTS_MIN
    assert watcher.merged() >= 1
    assert killer.enough, killer.kills
