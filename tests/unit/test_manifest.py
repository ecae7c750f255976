"""What is fixed when a data folder is made."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from imray.core.errors import CorruptError, InvalidError
from imray.log import manifest
from imray.log.store import LocalStore


def test_made_once_then_fixed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert manifest.read(store) is None
    made = manifest.create_or_open(store, None, shards_default=3)
    assert made.shards == 3
    assert manifest.create_or_open(LocalStore(tmp_path), None, shards_default=9) == made
    assert manifest.create_or_open(store, 3) == made
    with pytest.raises(InvalidError, match="3 shards and cannot have 4"):
        manifest.create_or_open(store, 4)


@pytest.mark.parametrize("shards", [0, -1, manifest.SHARDS_MAX + 1])
def test_impossible_numbers_of_shards(tmp_path: Path, shards: int) -> None:
    with pytest.raises(InvalidError):
        manifest.create_or_open(LocalStore(tmp_path), shards)
    assert manifest.read(LocalStore(tmp_path)) is None


def test_all_who_race_get_the_same(tmp_path: Path) -> None:
    got: list[manifest.Manifest] = []
    start = threading.Barrier(8)

    def open_it() -> None:
        start.wait()
        got.append(manifest.create_or_open(LocalStore(tmp_path), None))

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 8
    assert len(set(got)) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b'{"cluster_id": 1}', b"\xff"])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / manifest.NAME).write_bytes(content)
    with pytest.raises(CorruptError, match=r"imray\.json"):
        manifest.read(LocalStore(tmp_path))


def test_of_a_newer_version(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_bytes(b'{"cluster_id":"x","shards":2,"seed":1,"version":99}')
    with pytest.raises(InvalidError, match="upgrade"):
        manifest.read(LocalStore(tmp_path))
