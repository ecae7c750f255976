"""Logs of partitions as files: which are looked at, and what is said of damage in one of several logs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analytics import audit
from analytics.verified import Verifier
from imray.core.log_progress import LogProgress
from imray.log.schema import SEGMENT_SCHEMA
from imray.log.segment import segment_name
from imray.log.writer import Writer
from tests.support.analytics_logs import FastStore, HotLog, hot_log, seal


@pytest.fixture
def log(tmp_path: Path) -> HotLog:
    return hot_log(tmp_path / "chat")


def _violations(root: Path) -> dict[str, list[dict[str, Any]]]:
    return {f["name"]: f["rows"] for f in audit.run(root).to_dict()["findings"] if f["violated"]}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


CORRUPT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a partition's segment flipped": (lambda r: _flip(r / segment_name(10_002, 3)), segment_name(10_002, 3), "digest"),
    "a home shard's segment flipped": (lambda r: _flip(r / segment_name(0, 6)), segment_name(0, 6), "digest"),
    "a partition's segment missing": (
        lambda r: (r / segment_name(10_001, 4)).unlink(),
        segment_name(10_001, 4),
        "is not there",
    ),
    "a covered end missing": (
        lambda r: [p.unlink() for p in sorted((r / "wal/shard=10001").iterdir())[5:]],
        segment_name(10_001, 8),
        "a checkpoint covers it, but the log ends with segment 5",
    ),
    "a covered log missing": (
        lambda r: shutil.rmtree(r / "wal/shard=10003"),
        segment_name(10_003, 4),
        "a checkpoint covers it, but the log ends with segment 0",
    ),
    "a log in another's place": (
        lambda r: shutil.copytree(r / "wal/shard=10003", r / "wal/shard=10005"),
        segment_name(10_005, 1),
        "of shard 10003",
    ),
}


@pytest.mark.parametrize("what", sorted(CORRUPT))
def test_damage_is_one_violation(log: HotLog, what: str) -> None:
    """What rests on the damaged log is no further violation."""
    seal(log.committer, log.root)
    assert audit.run(log.root).ok
    make, file, check = CORRUPT[what]
    make(log.root)
    found = _violations(log.root)
    assert list(found) == ["corrupt"]
    assert found["corrupt"][0]["file"] == file
    assert check in found["corrupt"][0]["check"]


def test_a_covered_segment_exchanged_for_a_sound_one(log: HotLog) -> None:
    seal(log.committer, log.root)
    name = segment_name(10_001, 8)
    (log.root / name).unlink()
    before = Verifier(log.root).segment(10_001, 7)
    other = Writer(FastStore(log.root), 10_001, LogProgress(7, before.meta.epoch, before.digest), 2)
    other.append(SEGMENT_SCHEMA.empty_table(), log.now)
    found = _violations(log.root)["corrupt"]
    assert [(row["file"], row["check"]) for row in found] == [(name, "a checkpoint covers another file there")]


def test_folders_that_are_no_logs_are_left_alone(log: HotLog) -> None:
    logs = list(Verifier(log.root).logs())
    assert logs == [0, 1, 10_001, 10_002, 10_003]
    for folder in ("x", "shard=10000", "shard=10100", "shard=10201", "shard=0002", "shard=010001", "shard=1e4"):
        (log.root / "wal" / folder).mkdir()
    assert list(Verifier(log.root).logs()) == logs
    (log.root / "wal/shard=10101").mkdir()
    assert list(Verifier(log.root).logs()) == [*logs, 10_101]
    assert audit.run(log.root).ok
