"""Faults 4 and 29 on merges: a disk without bytes, or without inodes. Nothing is left over, reads and sends go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_disk_full import _reads_go_on, _rows, small_disk
from tests.support.client import Client
from tests.support.process import Driver, until

__all__ = ["small_disk"]
_BODY_BYTES = 4000


def _held(driver: Driver) -> list[str]:
    answer: dict[str, Any] = driver.ask("merge")
    assert not answer["held"] or driver.ask("names", under="history/shard=0000") == {"names": []}
    held: list[str] = answer["held"]
    return held


def _merged(driver: Driver) -> bool:
    answer: dict[str, Any] = driver.ask("merge")
    return bool(answer["done"]["runs"]) and not answer["held"]


def _sent(client: Client, driver: Driver) -> None:
    """A checkpoint covers two MB."""
    for start in range(0, 400, 40):
        assert client.send(driver, _rows(start, 40, _BODY_BYTES))
    until(lambda: driver.ask("status")["checkpoint_segment"], "there is a checkpoint")


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_full_during_a_merge(small_disk: tuple[Path, tuple[str, ...]], what: str) -> None:
    root, command = small_disk
    client = Client()
    with Driver(root, command, reopen_delay_s_max=0.1, checkpoint_ids_max=400, read_s_max=0.1) as driver:
        _sent(client, driver)
        if what == "bytes":
            driver.ask("fill", leave=200_000)
        else:
            driver.ask("fill_inodes")
        held = until(lambda: _held(driver), "the merge is held back")
        assert ("disk is full" if what == "bytes" else "no inodes left") in held[0]
        _reads_go_on(client, driver, 200)
        if what == "bytes":
            assert client.send(driver, _rows(400, 2, 10)), "sends go on where they fit"
        driver.ask("make_room")
        until(lambda: _merged(driver), "it merges when there is room")
        until(lambda: client.send(driver, _rows(402, 2, 10)), "and sends go on")
        client.retry_all(driver)
        client.read(driver)
    client.check()
