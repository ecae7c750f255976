"""The memory of a process with a door under attack, with the bounds that it has by default."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.door_client import HEAD, MB, get, post, push, refused
from tests.support.process import until

_ROOT = Path(__file__).parents[2]
_STOP_TIMEOUT_S = 20.0


class Process:
    """`door_server` in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.door_server"]
        environment = {"PYTHONPATH": str(_ROOT)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.idle = self.resident("VmRSS")

    def resident(self, what: str) -> int:
        """Bytes in memory: now (VmRSS), or at most so far (VmHWM)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) * 1024
        raise LookupError(what)

    def grown(self, what: str = "VmHWM") -> int:
        """Bytes beyond what it had when idle."""
        return self.resident(what) - self.idle

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@pytest.fixture
def running() -> Iterator[Process]:
    made = Process()
    yield made
    made.process.communicate(timeout=_STOP_TIMEOUT_S)


def test_thirty_megabytes_of_header_lines_take_no_memory(running: Process) -> None:
    lines = b"".join(b"X-%06d: y\r\n" % i for i in range(5000))
    with running.connect() as raw:
        raw.sendall(HEAD)
        push(raw, lines, 500)
        assert refused(raw)["status"] == 431
    assert running.grown() < 10 * MB


@pytest.mark.slow
def test_sixty_unfinished_bodies_take_the_memory_of_eight(running: Process) -> None:
    with contextlib.ExitStack() as open_ones:
        for _ in range(60):
            raw = open_ones.enter_context(running.connect())
            raw.sendall(post(b"", 16 * MB, "eve"))
            push(raw, b"x" * 100_000, 150)
        assert running.grown() < 200 * MB


@pytest.mark.slow
def test_twenty_unread_pages_take_the_memory_of_three_and_not_for_long(running: Process) -> None:
    with contextlib.ExitStack() as open_ones:
        held = [open_ones.enter_context(running.connect()) for _ in range(20)]
        for raw in held:
            raw.sendall(get(45 * MB, "eve"))
        for raw in held:
            assert raw.recv(1) == b"H"
        assert running.grown() < 200 * MB
        until(lambda: running.grown("VmRSS") < 20 * MB, "those who do not read are cut off", 40)
