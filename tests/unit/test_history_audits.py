"""Audits over history and log: the same answers whatever was merged, and by arrays and SQL as by SQL alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analytics import audit, screen, verified_runs
from analytics.sql import query
from analytics.verified import Verifier
from imray.core.errors import CorruptError
from imray.history.snapshot import RunFile
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from imray.settings import Settings
from tests.support.analytics_logs import FastStore, HotLog, craft, good_log, hot_log, name_in, seal
from tests.support.analytics_merges import compact, delete_merged, found_by, merge, snapshot_of
from tests.support.batches import Msg, msg_id

VIEWS = ("messages", "records", "voids", "hot_groups", "blocks")
CONV = name_in(0)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here loses power: notes and pins need no disk."""
    monkeypatch.setattr(LocalStore, "_sync_file", lambda *_: None)
    monkeypatch.setattr(LocalStore, "_sync_folder", lambda *_: None)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small folders as large ones: tiny ranges, and each shard by itself."""
    monkeypatch.setattr(screen, "RANGE_ROWS", 3)
    monkeypatch.setattr(audit, "ROWS_TOGETHER_MAX", 0)


def _views(root: Path) -> dict[str, list[dict[str, object]]]:
    found = {view: query(root, f"FROM {view} ORDER BY ALL").to_pylist() for view in VIEWS}
    same = "shard, home, slot, segment, epoch, rows, bytes, server_ts, sequencer, by_home"
    found["segments"] = query(root, f"SELECT {same} FROM segments ORDER BY ALL").to_pylist()
    return found


def test_views_show_each_row_once_whatever_is_merged(tmp_path: Path) -> None:
    log = hot_log(tmp_path)
    before = _views(tmp_path)
    seal(log.committer, tmp_path)
    assert merge(tmp_path)
    assert _views(tmp_path) == before
    assert delete_merged(tmp_path) > 10
    assert _views(tmp_path) == before
    log.send(0, *_messages(3))
    seal(log.committer, tmp_path)
    assert merge(tmp_path)
    now = _views(tmp_path)
    assert len(now["messages"]) == len(before["messages"]) + 3
    assert compact(tmp_path)
    assert _views(tmp_path) == now
    gone = query(tmp_path, "SELECT DISTINCT nonce, digest, previous, path FROM segments WHERE shard = 0").to_pylist()
    assert gone == [{"nonce": None, "digest": None, "previous": None, "path": None}]


def _messages(count: int) -> Sequence[Any]:
    return [Msg(CONV, msg_id(70_000 + n)) for n in range(count)]


@pytest.mark.usefixtures("apart")
def test_a_sound_folder_is_clean_while_it_is_merged(tmp_path: Path) -> None:
    root = good_log(tmp_path)
    clean = audit.run(root)
    for step in (merge, delete_merged):
        step(root)
        for reports in (True, False):
            report = audit.run(root, reports=reports)
            assert report.ok, report.to_text()
            assert report.segments == clean.segments
    full = audit.run(root)
    for name in ("voids_by_reason", "latencies", "conversation_sizes", "rates", "epochs"):
        assert full[name].rows == clean[name].rows


@pytest.mark.usefixtures("apart")
def test_a_hot_groups_logs(tmp_path: Path) -> None:
    log: HotLog = hot_log(tmp_path)
    before = audit.run(tmp_path)
    assert before.ok
    seal(log.committer, tmp_path)
    assert merge(tmp_path)
    delete_merged(tmp_path)
    for reports in (True, False):
        report = audit.run(tmp_path, reports=reports)
        assert report.ok, report.to_text()
    assert audit.run(tmp_path)["hot_groups"].rows == before["hot_groups"].rows
    partition = log.slots[1]
    rows = [{"conv_id": name_in(0, 4), "conv_seq": 1, "client_msg_id": msg_id(1)}]
    partition.put(partition.encode(craft(rows, log.now), log.now, [], log.committer.writer.epoch))
    assert list(found_by(audit.run(tmp_path, reports=False))) == ["blocks_against_rows"]


def _flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", [0.5, 0.97])
def test_a_flipped_run_is_corruption_and_takes_out_its_shard(tmp_path: Path, place: float) -> None:
    root = good_log(tmp_path)
    for shard in (0, 1):
        merge(root, shard)
    assert audit.run(root).ok
    file = next(f for f in snapshot_of(root).files.values() if f.shard == 0)
    _flip(root / file.name, place)
    for reports in (True, False):
        found = found_by(audit.run(root, reports=reports))
        assert list(found) == ["corrupt"]
        assert [row["file"] for row in found["corrupt"]] == [file.name]
    with pytest.raises(CorruptError, match=file.run):
        query(root, "FROM voids")


def test_damage_to_a_merged_segment_is_no_matter(tmp_path: Path) -> None:
    root = good_log(tmp_path / "one")
    merge(root)
    merged = snapshot_of(root).merged[0]
    for segment in range(2, merged):
        (root / segment_name(0, segment)).write_bytes(b"")
    assert audit.run(root).ok
    first = root / segment_name(0, merged + 1)
    whole = first.read_bytes()
    other = good_log(tmp_path / "other")
    first.write_bytes((other / segment_name(0, merged + 1)).read_bytes())
    found = found_by(audit.run(root))
    assert segment_name(0, merged + 1) in [row["file"] for row in found["corrupt"]], "it follows another one"
    first.write_bytes(whole)
    assert audit.run(root).ok
    first.unlink()
    found = found_by(audit.run(root))
    assert [row["file"] for row in found["corrupt"]] == [segment_name(0, merged + 1)]


def test_a_lost_table_behind_its_marks_is_corruption(tmp_path: Path) -> None:
    root = good_log(tmp_path)
    merge(root)
    assert delete_merged(root)
    for path in (root / "history/_delta_log").iterdir():
        path.unlink()
    with pytest.raises(CorruptError, match="version"):
        audit.run(root)


def test_a_run_is_read_whole_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever process; again where the file may have changed."""
    root = good_log(tmp_path)
    merge(root)
    read: list[str] = []
    verify: Callable[[object, RunFile], None] = verified_runs.RunReader.verify

    def count(self: object, file: RunFile) -> None:
        read.append(file.name)
        verify(self, file)

    monkeypatch.setattr(verified_runs.RunReader, "verify", count)
    files = snapshot_of(root).files
    for _ in range(2):
        query(root, "FROM voids")
        assert sorted(read) == sorted(files)
    changed = next(iter(files))
    os.utime(root / changed)
    query(root, "FROM voids")
    assert read[len(files) :] == [changed]
    assert len(FastStore(root).list("verified/")) == len(files)


@pytest.mark.parametrize("asks", ["sql", "audit"])
def test_what_was_merged_and_deleted_while_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    root = good_log(tmp_path)
    views = _views(root)
    survey, calls = Verifier._survey_segments, []

    def merged_first(self: Verifier, log: int, numbers: Sequence[int]) -> object:
        if not calls:
            calls.append(merge(root) and delete_merged(root))
        return survey(self, log, numbers)

    monkeypatch.setattr(Verifier, "_survey_segments", merged_first)
    if asks == "sql":
        assert query(root, "FROM messages ORDER BY ALL").to_pylist() == views["messages"]
    else:
        assert audit.run(root, reports=False).ok
    assert calls[0] > 5


def test_a_question_holds_a_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = good_log(tmp_path)
    merge(root)
    pins: list[list[str]] = []
    ask = audit.ask_part
    monkeypatch.setattr(audit, "ask_part", lambda *a: (pins.append(FastStore(root).list("pins/")), ask(*a))[1])
    assert audit.run(root, replace(Settings(), pin_s_max=9.0)).ok
    assert [len(found) for found in pins] == [1]
    assert FastStore(root).list("pins/") == []


def test_shards_are_asked_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are asked, and what they answer, goes there and back."""
    root = good_log(tmp_path)
    merge(root)
    monkeypatch.setattr(audit, "ROWS_TOGETHER_MAX", 0)
    here = audit.run(root)
    assert audit.run(root, spread=audit.in_processes).to_dict() == here.to_dict()
