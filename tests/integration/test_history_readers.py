"""Several history readers on a running system: `up` starts them all, pages come while one is dead, `stop` ends them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import System, start, stop

from benchmarks.processes import descendants
from imray.client import Outgoing

_DEADLINE_S = 60.0
_MESSAGES = 400


def reader_pids(system: System) -> set[int]:
    """The processes of the history readers, by the title that Ray gives an actor."""
    below = descendants(system.process.pid)
    return {pid for pid, words in below.items() if words[0].startswith("ray::") and "History" in words[0]}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {_DEADLINE_S:.0f} s: {what}"
        time.sleep(0.02)  # between two looks


class Puller(threading.Thread):
    """Reads the conversation from its beginning, again and again."""

    def __init__(self, system: System, conv: str) -> None:
        super().__init__(name="puller", daemon=True)
        self.system = system
        self.conv = conv
        self.ended = threading.Event()
        self.pages = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.system.client(_DEADLINE_S) as client:
                while not self.ended.is_set():
                    page = client.history(self.conv, limit=_MESSAGES)
                    assert [m.conv_seq for m in page.messages] == list(range(1, _MESSAGES + 1))
                    self.pages += 1
        except BaseException as e:  # noqa: BLE001 the main thread raises it
            self.error = e

    def check(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.timeout(300)
def test_pages_come_while_a_reader_is_dead(tmp_path: Path) -> None:
    system = start(tmp_path / "data", "--shards", "1")
    try:
        with system.client() as client:
            client.send_batch([Outgoing("room", f"body {i}") for i in range(_MESSAGES)])
        readers = reader_pids(system)
        assert len(readers) == 2
        pullers = [Puller(system, "room") for _ in range(4)]
        for p in pullers:
            p.start()
        for victim in sorted(readers):
            before = [p.pages for p in pullers]
            os.kill(victim, signal.SIGKILL)
            until(lambda b=before: progressed(pullers, b), "every puller has two more pages")  # type: ignore[misc]
            until(lambda v=victim: alive_again(system, v), "the reader is there again")  # type: ignore[misc]
        for p in pullers:
            p.ended.set()
        for p in pullers:
            p.join(_DEADLINE_S)
            p.check()
        last = reader_pids(system)
        assert not last & readers
    finally:
        stop(system)
    assert not [pid for pid in last if Path(f"/proc/{pid}").exists()]


def progressed(pullers: list[Puller], before: list[int]) -> bool:
    for p in pullers:
        p.check()
    return all(p.pages >= b + 2 for p, b in zip(pullers, before, strict=True))


def alive_again(system: System, victim: int) -> bool:
    found = reader_pids(system)
    return victim not in found and len(found) == 2
