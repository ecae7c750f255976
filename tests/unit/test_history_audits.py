"""Audits over history and log: the same answers whatever was merged, and by arrays and SQL as by SQL alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from analytics import audit, screen, verified_runs
from analytics.sql import query
from analytics.verified import Verifier
from imray.core.errors import CorruptError
from imray.history.layout import commit_name
from imray.history.snapshot import RunFile
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from imray.settings import Settings
from tests.support import analytics_logs
from tests.support.analytics_logs import SHARDS, FastStore, HotLog, craft, good_log, hot_log, name_in, seal, writer_of
from tests.support.analytics_merges import SMALL, compact, delete_merged, found_by, merge, snapshot_of
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


def _lose_table(root: Path) -> None:
    for path in (root / "history/_delta_log").iterdir():
        path.unlink()


def _lose_commit(root: Path) -> None:
    max((root / "history/_delta_log").glob("*.json")).unlink()


def _damage_table(root: Path) -> None:
    _flip(min((root / "history/_delta_log").glob("*.json")), 0.5)


def _damage_mark(root: Path) -> None:
    _flip(max((root / "merged/log=00000").iterdir()), 0.5)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("damage", "names", "lost"),
    [
        (_lose_table, "merged/log=00000/", 1),
        (_lose_commit, "merged/log=00000/", 1),
        (_damage_table, "history/_delta_log/", 1),
        (_damage_mark, "merged/log=00000/", 0),
    ],
)
def test_a_damaged_table_or_mark_is_corruption_and_what_is_sound_is_asked_all_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    names: str,
    lost: int,
    together: bool,
) -> None:
    """Shard 0 is merged and deleted; of shard 1 nothing is, and a message is there twice."""
    root = good_log(tmp_path)
    for settings in (replace(SMALL, merge_step_bytes_max=1), SMALL):
        assert merge(root, settings=settings)
    assert delete_merged(root)
    whole = audit.run(root).segments
    writer = writer_of(root, 1)
    row = query(root, "FROM messages WHERE shard = 1 LIMIT 1").to_pylist()[0]
    id_ = UUID(str(row["client_msg_id"])).bytes
    twice = {"conv_id": row["conv_id"], "conv_seq": row["conv_seq"], "client_msg_id": id_}
    writer.append(craft([twice], 10**9), 10**9)
    if not together:
        monkeypatch.setattr(audit, "ROWS_TOGETHER_MAX", 0)
    before = found_by(audit.run(root))
    assert before
    damage(root)
    for reports in (True, False):
        report = audit.run(root, reports=reports)
        found = found_by(report)
        (corrupt,) = found.pop("corrupt")
        assert str(corrupt["file"]).startswith(names)
        assert found == before
        assert (report.segments < whole) is bool(lost)
    with pytest.raises(CorruptError, match=names):
        query(root, "FROM voids")


def test_nothing_is_sound_where_every_shard_lost_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ROWS_TOGETHER_MAX", 0)
    root = good_log(tmp_path)
    for shard in range(SHARDS):
        merge(root, shard)
        assert delete_merged(root, shard)
    _damage_table(root)
    report = audit.run(root, spread=audit.in_processes)
    assert (list(found_by(report)), report.segments) == (["corrupt"], 0)


@pytest.mark.usefixtures("apart")
def test_a_damaged_run_of_a_large_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several parts are left, and first the whole folder is asked what time it is."""
    monkeypatch.setattr(analytics_logs, "SHARDS", 3)
    root = good_log(tmp_path)
    for shard in range(3):
        assert merge(root, shard)
    file = next(f for f in snapshot_of(root).files.values() if f.shard == 0 and f.first == "")
    (root / file.name).write_bytes(b"")
    assert list(found_by(audit.run(root))) == ["corrupt"]


def test_a_table_that_is_damaged_while_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = good_log(tmp_path)
    merge(root)
    delete_merged(root)
    survey, calls = Verifier._survey_segments, []

    def damaged_first(self: Verifier, log: int, numbers: Sequence[int]) -> object:
        if not calls:
            calls.append(log)
            (root / commit_name(snapshot_of(root).version + 1)).write_bytes(b"{}")
            (root / segment_name(1, 3)).write_bytes(b"")
        return survey(self, log, numbers)

    monkeypatch.setattr(Verifier, "_survey_segments", damaged_first)
    found = found_by(audit.run(root, reports=False))
    files = [row["file"] for row in found["corrupt"]]
    assert files[0].startswith("history/_delta_log/")
    assert segment_name(1, 3) in files


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
