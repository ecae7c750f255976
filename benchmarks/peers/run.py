"""One measurement and one kill of one system: its server, its senders in processes of their own, the machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Options, Sample, percentile
from benchmarks.peers.catalogue import peer_of, row_of
from benchmarks.peers.daemons import disk_bytes
from benchmarks.peers.judge import judge
from benchmarks.peers.results import Killed
from benchmarks.peers.sender import Orders

WARMUP_S = 8.0
"""After it the systems have the memory that they work in, and imray's tables of ids begin to be used again."""
KILL_SENDERS = 4
_KILL_AFTER_S = 3.0
_ON_AFTER_KILL_S = 8.0
"""How long senders go on after the server is back."""
_REPORT_TIMEOUT_S = 120.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class SenderProcesses:
    """The senders of one run, spread over as many processes as there are cores: more would only fight for them."""

    def __init__(self, key: str, senders: int, address: dict[str, Any], scratch: Path, keep_acks: bool) -> None:
        count = min(senders, len(os.sched_getaffinity(0)))
        self.acks = [scratch / f"acks-{i}.npz" for i in range(count)]
        self._reports = [scratch / f"report-{i}.json" for i in range(count)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.sender"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        for i, process in enumerate(self._processes):
            share = senders // count + (i < senders % count)
            acks = str(self.acks[i]) if keep_acks else None
            self._say(process, json.dumps(asdict(Orders(key, share, address, str(self._reports[i]), acks))))
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError(f"a sender of {key} did not start: its error stands above")

    @staticmethod
    def _say(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()

    def begin(self, begin: float) -> None:
        """Let them send from now on; acks count from `begin` (time.monotonic)."""
        for process in self._processes:
            self._say(process, repr(begin))

    def end(self, end: float) -> None:
        """Let them send, and acks count, until `end`."""
        for process in self._processes:
            self._say(process, repr(end))

    def reports(self) -> list[dict[str, Any]]:
        """What each saw, once they are done."""
        for process in self._processes:
            if process.wait(_REPORT_TIMEOUT_S):
                raise RuntimeError(f"a sender ended with {process.returncode}: its error stands above")
        return [json.loads(path.read_text()) for path in self._reports]

    def __enter__(self) -> SenderProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def measure(options: Options, key: str, senders: int) -> Sample:
    """One run over a fresh server: messages a second, latencies, CPU, disk."""
    peer, row = peer_of(key), row_of(key)
    with (
        tempfile.TemporaryDirectory() as scratch,
        options.fresh_folder() as folder,
        peer.serve(row, folder) as server,
    ):
        empty = disk_bytes(folder)
        with SenderProcesses(key, senders, server.address, Path(scratch), keep_acks=False) as processes:
            begin = time.monotonic() + WARMUP_S
            end = begin + options.seconds
            processes.begin(begin)
            processes.end(end)
            time.sleep(max(0.0, begin - time.monotonic()))
            busy = busy_s()
            time.sleep(max(0.0, end - time.monotonic()))
            busy = busy_s() - busy
            reports = processes.reports()
        grown = max(0, disk_bytes(folder) - empty)
        # what keeps everything in memory may take longer to read than to write, and there is nothing to divide
        stored = len(peer.stored(row, server.address, folder).ids) if grown else 1
    messages = sum(r["messages"] for r in reports)
    if not messages:
        raise RuntimeError(f"{key}: no message was acked in {options.seconds} s")
    latencies = [x for r in reports for x in r["latencies_s"]]
    own = sum(r["cpu_s"] for r in reports)
    return {
        "per_second": messages / options.seconds,
        "p50_ms": percentile(latencies, 0.5) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
        "cpu_s": busy / messages * 1e6,
        "senders_cpu_s": own / messages * 1e6,
        "disk_bytes": grown / stored,
    }


def busy_s() -> float:
    """CPU seconds that the machine has spent on anything, the kernel included, since it started."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = (int(x) for x in fields[:7])
    return (user + nice + system + irq + softirq) * _TICK_S


def kill(options: Options, key: str) -> Killed:
    """`kill -9` of the server in mid-run, a restart, senders that send again, and what is there afterwards."""
    peer, row = peer_of(key), row_of(key)
    with (
        tempfile.TemporaryDirectory() as scratch,
        options.fresh_folder() as folder,
        peer.serve(row, folder) as server,
        SenderProcesses(key, KILL_SENDERS, server.address, Path(scratch), keep_acks=True) as processes,
    ):
        processes.begin(time.monotonic())
        time.sleep(_KILL_AFTER_S)
        killed = time.monotonic()
        server.kill()
        server.restart()
        processes.end(time.monotonic() + _ON_AFTER_KILL_S)
        reports = processes.reports()
        stored = peer.stored(row, server.address, folder)
        files = [np.load(path) for path in processes.acks]
        ids = np.concatenate([f["ids"] for f in files])
        numbers = np.concatenate([f["numbers"] for f in files])
    back = min(r["last_ack"] for r in reports)
    if back < killed + _ON_AFTER_KILL_S / 2:
        raise RuntimeError(f"{key}: no ack after the restart: this run shows nothing")
    resent, pause_s = sum(r["resent"] for r in reports), max(r["pause_s"] for r in reports)
    return Killed(judge(ids, numbers, stored, row.numbered), pause_s, resent)
