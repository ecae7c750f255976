"""Verified files: read once, remembered while unchanged, and a listing that races with a writer is no hole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from analytics import checks, verified
from analytics.verified import Verifier
from imray.core.errors import CorruptError
from imray.log.manifest import create_or_open
from imray.log.segment import open_segment, segment_name
from tests.support.analytics_logs import FastStore, good_log, open_shard
from tests.support.batches import Msg, commit, msg_id


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of segments whose bytes were verified."""
    names: list[str] = []

    def count(data: memoryview, name: str) -> object:
        names.append(name)
        return open_segment(data, name)

    monkeypatch.setattr(checks, "open_segment", count)
    return names


def test_a_file_is_verified_once_for_as_long_as_it_stays(tmp_path: Path, opened: list[str]) -> None:
    good_log(tmp_path)
    verifier = Verifier(tmp_path)
    assert len(verifier.log()) == len(opened) == 32
    verifier.log()
    assert len(opened) == 32
    path = tmp_path / segment_name(0, 3)
    os.utime(path)
    verifier.log()
    assert opened[32:] == [segment_name(0, 3)]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    verifier.log()
    assert opened[33:] == [segment_name(0, 3)]


def test_memory_is_bounded(tmp_path: Path, opened: list[str]) -> None:
    good_log(tmp_path)
    verifier = Verifier(tmp_path, remembered_max=5)
    verifier.segments(0, range(1, 11))
    assert len(verifier._known) == 5
    verifier.segments(0, [10])
    assert len(opened) == 10
    verifier.segments(0, [1])
    assert len(opened) == 11


def test_large_files_are_verified_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_log(tmp_path)
    monkeypatch.setattr(verified, "_LARGE_BYTES", 1)
    assert [s.meta.segment for s in Verifier(tmp_path).segments(0, range(1, 17))] == list(range(1, 17))
    (tmp_path / segment_name(0, 5)).write_bytes(b"")
    with pytest.raises(CorruptError) as e:
        Verifier(tmp_path).segments(0, range(1, 17))
    assert e.value.file == segment_name(0, 5)


def test_a_listing_that_missed_a_new_segment_is_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_log(tmp_path)
    verifier = Verifier(tmp_path)
    listed = verifier.store.list

    def miss(prefix: str, after: str = "") -> list[str]:
        return [n for n in listed(prefix, after) if n not in (segment_name(0, 1), segment_name(0, 15))]

    monkeypatch.setattr(verifier.store, "list", miss)
    assert len(verifier.log()) == 32


def test_a_name_far_away_is_one_fault(tmp_path: Path) -> None:
    good_log(tmp_path)
    (tmp_path / segment_name(0, 10**19)).write_bytes(b"")
    sound, faults = Verifier(tmp_path).survey(0)
    assert len(sound) == 16
    assert [f.file for f in faults] == [segment_name(0, 17), segment_name(0, 10**19)]


def test_a_snapshot_while_the_system_writes(tmp_path: Path) -> None:
    create_or_open(FastStore(tmp_path), 1)
    committer = open_shard(tmp_path, 0)
    verifier = Verifier(tmp_path)
    for n in range(1, 6):
        commit(committer, [Msg("a", msg_id(n))])
        assert len(verifier.log()) == n + 1
    verifier.unchanged(verifier.log())
