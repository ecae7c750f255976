"""The client's side of `driver`: starts it, sends, and remembers what a client saw for the checker."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Died(Exception):
    """The process ended before it answered."""


class Driver:
    """A shard's owner in a process; a context manager that leaves no process behind."""

    def __init__(self, root: Path, before: tuple[str, ...] = (), start: bool = True, **settings: Any) -> None:
        """`before`: a command that runs the driver (it gets the driver's command line)."""
        self.errors = root.parent / f"{root.name}-{next(_numbers)}.log"
        command = [*before, sys.executable, "-m", "tests.support.driver", str(root), json.dumps(settings)]
        with self.errors.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._tags = itertools.count()
        self._answers: dict[Any, queue.SimpleQueue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()
        self.wait("process")
        if start:
            self.go()
            self.started = self.wait("started")

    def go(self, **fault: Any) -> None:
        """Let the owner start, with a fault armed or none."""
        self._write(json.dumps(fault or None) + "\n")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            self._queue(answer.pop("tag")).put(answer)
        with self._lock:
            self._ended = True
            for waiting in self._answers.values():
                waiting.put({"died": True})

    def _queue(self, tag: Any) -> queue.SimpleQueue[dict[str, Any]]:
        with self._lock:
            fresh = tag not in self._answers
            waiting = self._answers.setdefault(tag, queue.SimpleQueue())
            if self._ended and (fresh or waiting.empty()):
                waiting.put({"died": True})
            return waiting

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the reader finds out that it died

    def submit(self, op: str, **arguments: Any) -> int:
        """Ask for something; `wait` has the answer."""
        tag = next(self._tags)
        self._queue(tag)
        self._write(json.dumps({"tag": tag, "op": op} | arguments) + "\n")
        return tag

    def wait(self, tag: Any, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The answer; Died where the process ended first; queue.Empty at the deadline."""
        answer = self._queue(tag).get(timeout=timeout_s)
        if answer.pop("died", False):
            raise Died(self.errors.read_text())
        return answer

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask and wait."""
        return self.wait(self.submit(op, **arguments))

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.process.pid, sig)

    def ended(self) -> int:
        """Wait for the end: the exit code."""
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


_numbers = itertools.count()


def until(condition: Any, what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Ask until the answer is true: it; an error that says `what` was not so in time."""
    end = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not in {timeout_s} s: {what}")
        time.sleep(0.01)  # between two looks
    return answer
