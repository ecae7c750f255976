"""Systems under test for the HTTP benchmarks, started as a user would and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.harness import ROOT, Options

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 60.0
_NOOP_PORT_TRIES = 3


@dataclass(frozen=True)
class Server:
    """Where it listens, and the token it takes."""

    url: str
    token: str
    pid: int = 0
    """The process that was started; its servers are below it."""
    namespace: str = ""
    data: Path = Path()


@contextlib.contextmanager
def imray(options: Options, shards: int | None = None) -> Iterator[Server]:
    """`imray up` over a fresh folder, on a free port; None: as many shards as by default."""
    with options.fresh_folder() as data, imray_over(data, shards) as server:
        yield server


@contextlib.contextmanager
def imray_over(data: Path, shards: int | None = None) -> Iterator[Server]:
    """The same over a folder that is there, which stays."""
    command = [sys.executable, "-m", "imray.cli", "up", "--data", str(data), "--port", "0", "--json"]
    if shards is not None:
        command += ["--shards", str(shards)]
    with _process(command, subprocess.PIPE) as process:
        assert process.stdout is not None
        info = json.loads(_first_line(process.stdout))
        yield Server(info["url"], info["token"], process.pid, info["namespace"], data)


@contextlib.contextmanager
def noop() -> Iterator[Server]:
    """`benchmarks.noop` under uvicorn, with the gateway's loop and parser."""
    for _ in range(_NOOP_PORT_TRIES):
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "benchmarks.noop:app", "--port", str(port), "--loop", "uvloop"]
        command += ["--http", "httptools", "--no-access-log", "--log-level", "warning", "--lifespan", "off"]
        with _process(command, None) as process:
            if not _listening(port, process):
                continue  # another took the port meanwhile
            yield Server(f"http://127.0.0.1:{port}", "none")
            return
    raise RuntimeError("the endpoint that does nothing did not start")


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(command: list[str], stdout: int | None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=ROOT, stdout=stdout or subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _first_line(stream: IO[bytes]) -> bytes:
    with selectors.DefaultSelector() as waiting:
        waiting.register(stream, selectors.EVENT_READ)
        line = stream.readline() if waiting.select(_START_TIMEOUT_S) else b""
    if not line:
        raise RuntimeError("`imray up` did not start: its reason stands above")
    return line


def _listening(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    return False
