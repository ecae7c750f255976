"""The audits: a sound log is clean, and each violation, made for real, is found by exactly its audit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analytics import audit
from analytics.findings import read_question
from imray.core.errors import InvalidError
from imray.core.log_progress import LogProgress
from imray.log.manifest import create_or_open
from imray.log.schema import void_table
from imray.log.segment import segment_name
from imray.log.writer import Writer
from tests.support.analytics_logs import FastStore, craft, good_log, name_in, writer_of
from tests.support.batches import Msg, commit, msg_id, open_committer

CONV = name_in(0)
TS = 90_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return good_log(tmp_path / "chat")


def _violations(root: Path) -> dict[str, list[dict[str, Any]]]:
    report = audit.run(root)
    assert report.ok == (not any(f.violated for f in report.findings))
    return {f["name"]: f["rows"] for f in report.to_dict()["findings"] if f["violated"]}


def _row(seq: int, n: int | None = None, conv: str = CONV) -> dict[str, object]:
    return {"conv_id": conv, "conv_seq": seq, "client_msg_id": msg_id(n if n is not None else 50_000 + seq)}


def _append(root: Path, *rows: dict[str, object], ts: int = TS) -> Writer:
    writer = writer_of(root, 0)
    writer.append(craft(rows, ts), TS)
    writer.close()
    return writer


def test_a_sound_log_is_clean(root: Path) -> None:
    report = audit.run(root)
    assert report.ok, report.to_text()
    assert report.segments == 2 * (3 * 4 + 2 + 2)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True
    text = report.to_text(reports=True)
    assert "clean" in text
    assert "the sequencer died" in text
    voids = report["voids_by_reason"]
    assert (voids.columns, voids.rows) == (["reason", "ranges", "numbers"], [["the sequencer died", 2, 14]])
    assert report["latencies"].rows[0][0] == 54
    sizes = {row[0]: row[1] for row in report["conversation_sizes"].rows}
    assert sizes == {name_in(0): 19, name_in(1): 19, name_in(0, 1): 18, name_in(1, 1): 18}
    assert {f.name for f in report.findings if f.kind == "report"} >= {"rates", "commit_sizes", "epochs"}


def test_an_empty_folder(tmp_path: Path) -> None:
    create_or_open(FastStore(tmp_path), 3)
    assert audit.run(tmp_path).ok
    with pytest.raises(InvalidError, match="no data folder"):
        audit.run(tmp_path / "elsewhere")


def test_every_question_is_complete() -> None:
    questions = audit.questions()
    assert len({q.name for q in questions}) == len(questions) > 12
    assert [q.kind for q in questions] == sorted((q.kind for q in questions), reverse=True)
    with pytest.raises(InvalidError, match="first lines"):
        read_question("x", "-- title: y\nSELECT 1")


CRAFTED: dict[str, tuple[Callable[[Path], object], str, list[dict[str, Any]]]] = {
    "a gap": (
        lambda root: _append(root, _row(27), _row(30)),
        "unexplained_gaps",
        [{"conv_id": CONV, "from_seq": 28, "to_seq": 29}],
    ),
    "the first number missing": (
        lambda root: _append(root, _row(2, conv=name_in(0, 5))),
        "unexplained_gaps",
        [{"conv_id": name_in(0, 5), "from_seq": 1, "to_seq": 1}],
    ),
    "a number twice": (
        lambda root: _append(root, _row(3)),
        "duplicate_numbers",
        [{"conv_id": CONV, "conv_seq": 3, "messages": 2}],
    ),
    "an id twice": (
        lambda root: _append(root, _row(27, 1)),
        "duplicate_ids",
        [{"conv_id": CONV, "messages": 2, "numbers": [1, 27]}],
    ),
    "mixed order": (
        lambda root: _append(root, _row(28), _row(27)),
        "order_against_log",
        [{"conv_id": CONV, "highest_before": 28, "conv_seq": 27, "segment": 18, "row": 1}],
    ),
    "a message in a void range": (
        lambda root: _append(root, _row(26 + 1), _row(20)),
        "void_messages",
        [{"conv_id": CONV, "first_seq": 19, "last_seq": 25, "also_seq": 20}],
    ),
    "wrong shard": (
        lambda root: _append(root, _row(1, conv=name_in(1, 7))),
        "wrong_shard",
        [{"conv_id": name_in(1, 7), "shard": 0, "belongs_to": 1}],
    ),
    "a void without reason": (
        lambda root: _void(root, 27, 28, ""),
        "void_without_reason",
        [{"conv_id": CONV, "first_seq": 27, "last_seq": 28, "reason": ""}],
    ),
    "another time in the rows": (
        lambda root: _append(root, _row(27), ts=TS + 1),
        "segment_rows",
        [{"shard": 0, "segment": 18, "rows": 1, "rows_there": 1}],
    ),
    "a message without sender": (
        lambda root: _append(root, {**_row(27), "sender": None}),
        "impossible_records",
        [{"segment": 18, "row": 0, "conv_seq": 27}],
    ),
    "two writers in one epoch": (
        lambda root: _second_writer(root),
        "overlapping_epochs",
        [{"shard": 0, "epoch": 6, "first_segment": 17, "last_segment": 18, "writers": 2}],
    ),
}


def _void(root: Path, first: int, last: int, reason: str) -> None:
    writer = writer_of(root, 0)
    writer.append(void_table(CONV, first, last, reason, TS), TS)


def _second_writer(root: Path) -> None:
    first = writer_of(root, 0)
    Writer(FastStore(root), 0, LogProgress(first.segment, first.epoch, first.digest)).append(craft([_row(27)], TS), TS)


@pytest.mark.parametrize("what", sorted(CRAFTED))
def test_a_violation_is_found_by_exactly_its_audit(root: Path, what: str) -> None:
    make, name, rows = CRAFTED[what]
    make(root)
    found = _violations(root)
    if what == "a message in a void range":  # it stands behind a higher number too
        assert list(found.pop("order_against_log")[0].values())[:3] == [CONV, 27, 20]
    assert list(found) == [name]
    assert [{k: row[k] for k in wanted} for row, wanted in zip(found[name], rows, strict=True)] == rows


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def _swap(a: Path, b: Path) -> None:
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)


def _lower_epoch(root: Path) -> None:
    writer = writer_of(root, 0)
    progress = LogProgress(writer.segment, writer.epoch - 2, writer.digest)
    Writer(FastStore(root), 0, progress).append(craft([_row(27)], TS), TS)


def _postings(root: Path) -> Path:
    return next((root / "sealed/shard=0000").glob("*.postings.parquet"))


CORRUPT: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "flipped": (lambda r: _flip(r / segment_name(0, 9)), [segment_name(0, 9)], "digest is"),
    "removed": (lambda r: (r / segment_name(0, 9)).unlink(), [segment_name(0, 9)], "not there"),
    "two removed": (
        lambda r: [(r / segment_name(0, n)).unlink() for n in (9, 10)],
        [segment_name(0, 9)],
        f"nor are 1 more up to {10}",
    ),
    "removed below a checkpoint": (
        lambda r: [(r / segment_name(0, n)).unlink() for n in range(8, 17)],
        [segment_name(0, 8)],
        "a checkpoint covers it",
    ),
    "swapped": (
        lambda r: _swap(r / segment_name(0, 9), r / segment_name(0, 10)),
        [segment_name(0, 9), segment_name(0, 10)],
        "it is segment",
    ),
    "of another shard": (
        lambda r: (r / segment_name(0, 9)).write_bytes((r / segment_name(1, 9)).read_bytes()),
        [segment_name(0, 9)],
        "of shard 1",
    ),
    "epochs descend": (_lower_epoch, [segment_name(0, 18)], "epoch 4 after epoch 6"),
    "a foreign file": (lambda r: (r / "wal/shard=0000/x").write_text(""), ["wal/shard=0000/x"], "not a segment's"),
    "postings flipped": (lambda r: _flip(_postings(r)), ["postings.parquet"], "digest"),
    "postings removed": (lambda r: _postings(r).unlink(), ["postings.parquet"], "must be there"),
}


@pytest.mark.parametrize("what", sorted(CORRUPT))
def test_corruption_is_a_violation_and_the_rest_is_still_audited(root: Path, what: str) -> None:
    make, files, check = CORRUPT[what]
    make(root)
    found = _violations(root)
    assert list(found) == ["corrupt"]
    assert [row["file"].endswith(file) for row, file in zip(found["corrupt"], files, strict=True)] == [True] * len(
        files
    )
    assert check in found["corrupt"][0]["check"]
    assert found["corrupt"][0]["place"]


def test_another_logs_segment_breaks_the_chain(tmp_path: Path) -> None:
    for name in ("a", "b"):
        create_or_open(FastStore(tmp_path / name), 1)
        committer = open_committer(FastStore(tmp_path / name))
        for n in (1, 2, 3):
            commit(committer, [Msg(CONV, msg_id(n))])
    (tmp_path / "a" / segment_name(0, 3)).write_bytes((tmp_path / "b" / segment_name(0, 3)).read_bytes())
    found = _violations(tmp_path / "a")
    assert list(found) == ["corrupt"]
    assert [row["file"] for row in found["corrupt"]] == [segment_name(0, 3), segment_name(0, 4)]


def test_many_violations_are_counted_and_few_are_shown(root: Path) -> None:
    _append(root, *(_row(n) for n in range(29, 129, 2)))
    gaps = audit.run(root)["unexplained_gaps"]
    assert (gaps.total, len(gaps.rows)) == (50, 20)
    assert "... 50 in all" in gaps.to_table()


def test_users_text_cannot_steer_the_terminal() -> None:
    finding = replace(audit.Finding("x", "y", "violation", 1, ["name"]), rows=[["a\x1b[2J\u202eb"]])
    assert finding.to_table().split("\n")[1] == "a\\x1b[2J\\u202eb"
