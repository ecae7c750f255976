"""Load generators that stay for many measurements: processes that take JSON lines and answer each with one.

Owns the lines, both ends. Does not own what a line asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import selectors
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.servers import Server

_ANSWER_S_MAX = 120.0
_END_S_MAX = 10.0
_LINE_BYTES_MAX = 1 << 26


class PushProcess:
    """The other end of such a process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def start(self, op: str, **arguments: Any) -> None:
        """Ask for something; `answer` has what comes of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op} | arguments).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, seconds: float = 0.0) -> dict[str, Any]:
        """The answer to what was started first, `seconds` and some more from now at the latest."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if waiting.select(seconds + _ANSWER_S_MAX) else b""
        if not line:
            raise RuntimeError("a load generator does not answer: its reason stands above")
        found: dict[str, Any] = json.loads(line)
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found

    def ask(self, op: str, seconds: float = 0.0, **arguments: Any) -> dict[str, Any]:
        """Ask and wait."""
        self.start(op, **arguments)
        return self.answer(seconds)


@contextlib.contextmanager
def push_process(module: str, server: Server) -> Iterator[PushProcess]:
    """`python -m module`, ended whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=os.environ | {"IMRAY_TOKEN": server.token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        yield PushProcess(process)
    finally:
        process.kill()
        process.wait(_END_S_MAX)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


async def serve_lines(command: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], stop: Callable[[], None]) -> None:
    """The process: answer line after line until the other end is gone. An error is an answer, too. `stop` is called at
    once where a line asks for it, while another is worked on, and has no answer."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    one_at_a_time = asyncio.Lock()

    async def answer(ask: dict[str, Any]) -> None:
        async with one_at_a_time:
            try:
                found = await command(ask)
            except Exception as e:  # noqa: BLE001 whoever waits for the answer gets the reason
                found = {"failed": f"{type(e).__name__}: {e}"}
            print(json.dumps(found), flush=True)

    tasks: set[asyncio.Task[None]] = set()
    while line := await stdin.readline():
        ask = json.loads(line)
        if ask["op"] == "stop":
            stop()
            continue
        task = asyncio.create_task(answer(ask))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
