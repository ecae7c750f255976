"""Fault 4: a disk that is really full, during commits and during a checkpoint. A small tmpfs in a mount namespace."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.process import Driver, until

_SIZE = 8 * 1024 * 1024
_INODES = 1000
_EXEC = 'shift; exec "$@"'


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A folder, and the command under which it is a disk of a few MB (the mount is seen by that command only)."""
    root = tmp_path / "disk"
    root.mkdir()
    script = f'mount -t tmpfs -o size={_SIZE},nr_inodes={_INODES} none "$0" && exec "$@"'
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    command = ("unshare", flags, "sh", "-c", script, str(root))
    if shutil.which("unshare") is None:
        pytest.skip("needs the `unshare` command (util-linux) for a disk of its own")
    probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"this machine does not let us mount a small tmpfs: {probe.stderr.strip()}")
    return root, command


def _rows(start: int, n: int, size: int) -> list[list[Any]]:
    return [["ab"[i % 2], i, random.Random(i).randbytes(size).hex()[:size]] for i in range(start, start + n)]


def _reads_go_on(client: Client, driver: Driver, head: int) -> None:
    client.read(driver)
    assert driver.ask("locate", conv="a") == {"head": head}


def test_full_during_commits(small_disk: tuple[Path, tuple[str, ...]]) -> None:
    root, command = small_disk
    client = Client()
    with Driver(root, command, reopen_delay_s_max=0.1) as driver:
        assert client.send(driver, _rows(0, 20, 100))
        driver.ask("fill", leave=40_000)
        lost = _rows(20, 20, 5000)
        client.sent(lost)
        answer = driver.ask("send", messages=lost)
        assert answer["refused"] == "unavailable"
        assert "disk is full" in answer["detail"]
        _reads_go_on(client, driver, 10)
        driver.ask("fill", leave=0)
        for _ in range(3):
            client.sent(lost)
            answer = driver.ask("send", messages=lost)
            assert answer["refused"] == "unavailable"
        until(lambda: "disk is full" in driver.ask("status")["detail"], "the status says why")
        assert "disk is full" in driver.ask("send", messages=lost)["detail"]
        _reads_go_on(client, driver, 10)
        driver.ask("make_room")
        told = until(lambda: client.send(driver, lost), "it recovers by itself")
        assert {t[0] for t in told} == {"new"}
        assert driver.ask("status")["epoch"] > 1
        client.retry_all(driver)
        _reads_go_on(client, driver, 20)
    client.check()


def test_no_inodes_left(small_disk: tuple[Path, tuple[str, ...]]) -> None:
    """It is told apart from a disk without bytes: what helps is another thing."""
    root, command = small_disk
    client = Client()
    with Driver(root, command, reopen_delay_s_max=0.1) as driver:
        assert client.send(driver, _rows(0, 20, 100))
        driver.ask("fill_inodes")
        lost = _rows(20, 20, 100)
        client.sent(lost)
        answer = driver.ask("send", messages=lost)
        assert answer["refused"] == "unavailable"
        assert "no inodes left" in answer["detail"]
        assert "free space" not in answer["detail"]
        _reads_go_on(client, driver, 10)
        driver.ask("make_room")
        until(lambda: client.send(driver, lost), "it recovers by itself")
        _reads_go_on(client, driver, 20)
    client.check()


def test_a_shard_that_starts_on_a_full_disk_is_read(small_disk: tuple[Path, tuple[str, ...]]) -> None:
    root, command = small_disk
    client = Client()
    full = f'mkdir "$0/wal" && cp -r "$1" "$0/wal/shard=0000" && dd if=/dev/zero of="$0/ballast" bs=4k; {_EXEC}'
    with Driver(root.parent / "source", checkpoint_ids_max=4) as driver:
        for n in range(5):
            assert client.send(driver, _rows(4 * n, 4, 100))
    source = str(root.parent / "source/wal/shard=0000")
    with Driver(root, (*command, "sh", "-c", full, str(root), source), reopen_delay_s_max=0.1) as driver:
        assert "disk is full" in driver.started["detail"]
        _reads_go_on(client, driver, 10)
        driver.ask("make_room")
        until(lambda: client.send(driver, _rows(20, 4, 100)), "it writes when there is room")
        client.retry_all(driver)
        client.read(driver)
    client.check()


def test_full_during_a_checkpoint(small_disk: tuple[Path, tuple[str, ...]]) -> None:
    """Commits of a few KB still fit, the checkpoint of 60,000 ids (about 1 MB) does not; nothing is lost by that."""
    root, command = small_disk
    client = Client()
    with Driver(root, command, reopen_delay_s_max=0.1, checkpoint_ids_max=60_000) as driver:
        for start in range(0, 50_000, 10_000):
            assert client.send(driver, _rows(start, 10_000, 1))
        driver.ask("fill", leave=800_000)
        assert client.send(driver, _rows(50_000, 10_000, 1))
        until(lambda: "no checkpoint" in driver.errors.read_text(), "the checkpoint fails")
        assert "disk is full" in driver.errors.read_text()
        assert client.send(driver, _rows(60_000, 3, 1)), "commits go on where they fit"
        _reads_go_on(client, driver, 30_002)
        assert driver.ask("status")["checkpoint_segment"] == 0
        driver.ask("make_room")

        def goes_on() -> bool:
            n = len(client.acked)
            client.send(driver, _rows(n, 1, 1))
            return bool(driver.ask("status")["checkpoint_segment"])

        until(goes_on, "the checkpoint is made when there is room")
        client.retry_all(driver)
        client.read(driver)
    client.check()
