"""Real systems for the integration tests: `imray up` as a user runs it, on a free port, over a temporary folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imray.client import Client

_UP_TIMEOUT_S = 120


@dataclass
class System:
    """A running imray."""

    data: Path
    url: str
    token: str
    process: subprocess.Popen[str]

    def client(self, timeout_s: float = 60) -> Client:
        """A client of it."""
        return Client(self.url, self.token, timeout_s=timeout_s)

    def shard_pids(self) -> dict[int, int]:
        """The process of each shard's actor."""
        import httpx

        answer = httpx.get(f"{self.url}/v1/status", headers={"Authorization": f"Bearer {self.token}"}, timeout=30)
        return {s["shard"]: s["pid"] for s in answer.json()["shards"] if "pid" in s}

    def gateway_pid(self) -> int:
        """The process that listens on the port."""
        port = int(self.url.rsplit(":", 1)[1])
        return listener_pid(port)


def listener_pid(port: int) -> int:
    """The process that listens on a port of this machine, from /proc."""
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == port:
            inode = fields[9]
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(fd) == f"socket:[{inode}]":
                return int(fd.parts[2])
        except OSError:
            continue  # the process ended, or the descriptor closed, while we looked
    raise LookupError(f"nobody listens on port {port}")


def start(data: Path, *arguments: str) -> System:
    """Run `imray up` over a folder and wait until it is up."""
    command = [sys.executable, "-m", "imray.cli", "up", "--data", str(data), "--port", "0", "--json", *arguments]
    errors = (data.parent / f"{data.name}.err").open("w+")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(_UP_TIMEOUT_S)
        errors.seek(0)
        raise RuntimeError(f"imray up ended with {process.returncode}: {errors.read()[-2000:]}")
    info = json.loads(line)
    return System(data, info["url"], info["token"], process)


def stop(system: System) -> None:
    """End it in good order; it must leave no process behind."""
    if system.process.poll() is None:
        system.process.send_signal(signal.SIGTERM)
    system.process.wait(60)
    if system.process.stdout is not None:
        system.process.stdout.close()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system for a module's tests."""
    running = start(tmp_path_factory.mktemp("imray") / "data")
    yield running
    stop(running)
