"""Faults 7 and 9: a writer that slept while another took over, and two that start at the same instant."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from imray.core.log_progress import LogProgress
from imray.log.reader import read_log
from imray.log.store import LocalStore
from tests.support.client import Client
from tests.support.driver import read_all
from tests.support.process import Died, Driver, until


def _state_is_stopped(driver: Driver) -> bool:
    stat = Path(f"/proc/{driver.process.pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0] == "T"


def _answer(client: Client, driver: Driver, tag: int, rows: list[list[Any]]) -> str:
    """What became of a send: acked, refused, or lost with the process."""
    try:
        answer = driver.wait(tag)
    except Died:
        return "lost"
    return "refused" if client.answered(rows, answer) is None else "acked"


@pytest.mark.parametrize("waves", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_a_writer_that_was_stopped_acks_nothing_afterwards(tmp_path: Path, waves: int) -> None:
    client = Client()
    batches = [[["ab"[i % 2], i, "x"], ["c", i, "y"]] for i in range(waves)]
    with Driver(tmp_path / "data", checkpoint_ids_max=30) as old:
        client.send(old, [["a", 1_000_000, "x"]])
        for batch in batches:
            client.sent(batch)
        tags = [old.submit("send", messages=b) for b in batches[: waves // 2]]
        assert _answer(client, old, tags[0], batches[0]) == "acked"
        old.kill(signal.SIGSTOP)
        until(lambda: _state_is_stopped(old), "the old writer is stopped")
        late = [old.submit("send", messages=b) for b in batches[waves // 2 :]]
        with Driver(tmp_path / "data", checkpoint_ids_max=30) as new:
            landed_before = {(conv, n) for conv, n, _, _ in read_all(LocalStore(tmp_path / "data"))}
            # every second batch is retried with the new writer, the rest only later
            for batch in batches[::2]:
                assert client.send(new, batch)
            old.kill(signal.SIGCONT)
            fates = [_answer(client, old, t, b) for t, b in zip(tags + late, batches, strict=True) if t != tags[0]]
            assert old.ended() == 3, "it was fenced and ended"
            for i, fate in enumerate(fates, 1):
                if fate == "acked":
                    assert (batches[i][0][0], batches[i][0][1]) in landed_before, "acked only what the log held"
            assert set(fates[waves // 2 - 1 :]) <= {"refused", "lost"}, "nothing that came after the stop is acked"
            assert "stops for good" in old.errors.read_text()
            for batch in batches:
                assert client.send(new, batch)
            client.retry_all(new)
            client.read(new)
    client.check()


def _epochs(root: Path) -> list[int]:
    return [s.meta.epoch for s in read_log(LocalStore(root), 0, LogProgress())]


@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_two_writers_start_at_the_same_instant(tmp_path: Path, rounds: int) -> None:
    client, n = Client(), 0
    for _ in range(rounds):
        with Driver(tmp_path / "data", start=False) as one, Driver(tmp_path / "data", start=False) as two:
            one.go()
            two.go()
            drivers = [one, two]
            sends = []
            for wave in range(2):
                for _ in range(20):
                    for driver in drivers:
                        rows = [["a", n, "x"], ["b", n % 7, "y"]]
                        client.sent(rows)
                        sends.append((driver, driver.submit("send", messages=rows), rows))
                        n += 1
                if not wave:
                    epochs = {driver.wait("started")["epoch"] for driver in drivers}
                    assert len(epochs) == 2, "an epoch is given once"
            fates = [(driver, _answer(client, driver, tag, rows)) for driver, tag, rows in sends]
            assert {fate for _, fate in fates} >= {"acked"}
            writer = _survivor(client, drivers, n)
            n += 1
            client.retry_all(writer)
            client.read(writer)
            in_log = _epochs(tmp_path / "data")
            assert in_log == sorted(in_log)
    client.check()


def _survivor(client: Client, drivers: list[Driver], n: int) -> Driver:
    """The one that can still write; all others are at their end."""
    able = []
    for driver in drivers:
        try:
            if client.send(driver, [["z", n, "x"]]):
                able.append(driver)
        except Died:
            assert driver.ended() == 3
    assert len(able) == 1
    return able[0]
