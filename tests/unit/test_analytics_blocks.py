"""Audits of hot groups: sound logs are clean, blocks in flight are no violation, and what no writer may do is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analytics import audit
from analytics.sql import query
from analytics.verified import Verifier
from imray.core.log_progress import LogProgress
from imray.core.routing import log_of
from imray.log.schema import RecordKind, record_table, void_table
from imray.log.segment import GrantNote
from imray.log.writer import Writer
from imray.shard.recovery import become_partition_writer
from tests.support.analytics_logs import FastStore, HotLog, craft, hot_log, name_in, writer_of
from tests.support.batches import Msg, msg_id

ROOM, OTHER = name_in(0), name_in(0, 1)
HEAD = 1_059
"""The last number of the room in `hot_log`."""
ALONE = "it is not hot: its home shard alone writes it"


@pytest.fixture
def log(tmp_path: Path) -> HotLog:
    return hot_log(tmp_path / "chat")


def _violations(root: Path) -> dict[str, list[dict[str, Any]]]:
    report = audit.run(root)
    assert report.ok == (not any(f.violated for f in report.findings))
    return {f["name"]: f["rows"] for f in report.to_dict()["findings"] if f["violated"]}


def _unsettled(root: Path) -> list[tuple[int, int]]:
    return [(row[1], row[2]) for row in audit.run(root)["unsettled_blocks"].rows]


def _head(log: HotLog, conv: str = ROOM) -> int:
    conversations = log.committer.state.conversations
    return int(conversations.heads[conversations.index(conv)])


def _m(n: int, conv: str = ROOM) -> Msg:
    return Msg(conv, msg_id(20_000 + n))


def test_a_sound_hot_log_is_clean(log: HotLog) -> None:
    report = audit.run(log.root)
    assert report.ok, report.to_text()
    assert report["unsettled_blocks"].total == 0
    groups = {row[0]: dict(zip(report["hot_groups"].columns, row, strict=True)) for row in report["hot_groups"].rows}
    assert {c: (g["topics_now"], g["messages"], g["by_topics"], g["turned_cold"]) for c, g in groups.items()} == {
        ROOM: (2, 33, 22, 1),
        OTHER: (1, 8, 2, 0),
    }
    slots = {(row[0], row[1]): row[2] for row in report["hot_group_slots"].rows}
    assert slots == {(ROOM, 0): 11, (ROOM, 1): 8, (ROOM, 2): 12, (ROOM, 3): 2, (OTHER, 0): 6, (OTHER, 1): 2}
    assert [row[:3] for row in report["epochs"].rows] == [
        [0, 0, 0], [10_001, 0, 1], [10_002, 0, 2], [10_003, 0, 3], [1, 1, 0],
    ]  # fmt: skip


def test_the_views_of_hot_groups(log: HotLog) -> None:
    blocks = query(log.root, "FROM blocks ORDER BY conv_id, first_seq").to_pylist()
    assert list(blocks[0]) == [
        "conv_id", "sequencer", "grant", "first_seq", "last_seq", "home", "slot", "shard", "segment", "epoch",
        "server_ts",
    ]  # fmt: skip
    of_rows = query(
        log.root,
        "SELECT conv_id, min(conv_seq) AS a, max(conv_seq) AS b, home, shard, segment FROM messages "
        "WHERE slot_of(shard) > 0 GROUP BY ALL ORDER BY conv_id, a",
    ).to_pylist()
    assert [(b["conv_id"], b["first_seq"], b["last_seq"], b["home"], b["shard"], b["segment"]) for b in blocks] == [
        tuple(r.values()) for r in of_rows
    ]
    assert {b["sequencer"] for b in blocks} == {1, 2}
    records = query(log.root, f"FROM hot_groups WHERE conv_id = '{ROOM}' ORDER BY segment").to_pylist()
    assert [(r["at_seq"], r["topics"], r["by_rate"], r["shard"], r["epoch"]) for r in records] == [
        (2, 2, False, 0, 1), (24, 3, False, 0, 1), (1_048, 3, False, 0, 2), (1_051, 0, None, 0, 2),
        (1_054, 2, False, 0, 2),
    ]  # fmt: skip
    fences = query(log.root, "SELECT sequencer, count(*) AS n FROM segments WHERE by_home GROUP BY ALL").to_pylist()
    assert fences == [{"sequencer": 2, "n": 3}]


def test_blocks_in_flight_are_reported_and_are_no_violation(log: HotLog) -> None:
    head = _head(log)
    first = log.ask(1, _m(1), _m(2))
    assert _unsettled(log.root) == []  # nobody knows of it yet
    second = log.ask(2, _m(3))
    log.send(0, _m(4))
    assert audit.run(log.root).ok
    assert _unsettled(log.root) == [(head + 1, head + 3)]
    log.write(*second)
    assert _unsettled(log.root) == [(head + 1, head + 2)]
    log.make_hot(ROOM, 3)
    assert _unsettled(log.root) == [(head + 1, head + 2)]
    log.write(*first)
    log.ask(1, _m(5))
    log.make_hot(ROOM, 1)
    assert audit.run(log.root).ok
    assert _unsettled(log.root) == [(head + 5, head + 5)]  # the record says that it was given out
    log.restart()
    assert audit.run(log.root).ok
    assert _unsettled(log.root) == []


def _append(
    log: HotLog, slot: int, *numbers: int, note: GrantNote | None, sequencer: int = 0, conv: str = ROOM
) -> None:
    writer = log.slots[slot]
    rows = [{"conv_id": conv, "conv_seq": n, "client_msg_id": msg_id(50_000 + n)} for n in numbers]
    writer.put(writer.encode(craft(rows, log.now), log.now, [note] if note else [], sequencer))


def _next(log: HotLog, first: int = 1, count: int = 1, grant: int = 900, conv: str = ROOM) -> GrantNote:
    return GrantNote(grant, conv, _head(log, conv) + first, count)


def _home(log: HotLog, *records: tuple[str, int, int, dict[str, object]]) -> None:
    log.committer.writer.append(record_table(records, log.now), log.now)


def _after_cold(log: HotLog) -> None:
    log.make_cold(ROOM)
    _append(log, 2, _head(log) + 1, note=_next(log))


def _of_a_slot_that_never_was(log: HotLog) -> None:
    _, writer = become_partition_writer(FastStore(log.root), 0, 9, lambda: log.now)
    progress = LogProgress(writer.segment, writer.epoch, writer.digest)
    log.slots[9] = Writer(FastStore(log.root), log_of(0, 9), progress, 2)
    log.slots[9].nonce = writer.nonce
    _append(log, 9, _head(log) + 1, note=_next(log))


def _cold_over_a_hole(log: HotLog) -> None:
    log.ask(1, _m(1))
    _home(log, (ROOM, _head(log), RecordKind.COLD, {}))


def _restarted_without_voids(log: HotLog) -> None:
    log.ask(1, _m(1))
    hot = {"topics": 2, "ceiling": 10**6, "by_rate": False}
    writer_of(log.root, 0).append(record_table([(ROOM, _head(log), RecordKind.HOT, hot)], log.now), log.now)


def _restarted_without_a_word(log: HotLog) -> None:
    log.ask(1, _m(1))
    log.send(2, _m(2))
    row = {"conv_id": name_in(0, 2), "conv_seq": 1, "client_msg_id": msg_id(50_000)}
    writer_of(log.root, 0).append(craft([row], log.now), log.now)


def _forgotten(log: HotLog) -> None:
    log.ask(1, _m(1))
    log.send(2, _m(2))
    log.now += 61_000
    log.send(0, _m(3, OTHER))


Make = Callable[[HotLog], object]
DOCTORED: dict[str, tuple[Make, dict[str, dict[str, Any]]]] = {
    "numbers of another block": (
        lambda log: _append(log, 1, _head(log), note=_next(log, 0)),
        {"duplicate_numbers": {}, "overlapping_blocks": {"first_seq": HEAD, "reached": HEAD}},
    ),
    "rows without a block": (
        lambda log: _append(log, 1, _head(log) + 1, note=None),
        {"blocks_against_rows": {"shard": 10_001, "blocks": None, "rows": 1, "first_row": HEAD + 1}},
    ),
    "a number of a block not used": (
        lambda log: _append(log, 1, _head(log) + 1, _head(log) + 2, note=_next(log, count=3)),
        {"blocks_against_rows": {"blocks": 1, "last_seq": HEAD + 3, "rows": 2, "last_row": HEAD + 2}},
    ),
    "a block without rows": (
        lambda log: _append(log, 1, note=_next(log)),
        {"blocks_against_rows": {"blocks": 1, "rows": None}},
    ),
    "above the ceiling": (
        lambda log: _append(log, 1, 2_079, note=GrantNote(900, ROOM, 2_079, 1)),
        {"ungranted_blocks": {"first_seq": 2_079, "why": "the ceiling was 2078"}},
    ),
    "never hot": (
        lambda log: _append(log, 1, 1, note=GrantNote(900, name_in(0, 2), 1, 1), conv=name_in(0, 2)),
        {"ungranted_blocks": {"conv_id": name_in(0, 2), "why": "the conversation was not hot"}},
    ),
    "cold again": (_after_cold, {"ungranted_blocks": {"why": "the conversation was not hot"}}),
    "an epoch that never was": (
        lambda log: _append(log, 1, _head(log) + 1, note=_next(log), sequencer=7),
        {
            "old_sequencers": {"shard": 10_001, "sequencer": 7},
            "ungranted_blocks": {"sequencer": 7, "why": "its home shard has no epoch 7"},
        },
    ),
    "an older epoch": (
        lambda log: _append(log, 1, _head(log) + 1, note=_next(log), sequencer=1),
        {
            "old_sequencers": {"sequencer": 1, "sequencer_before": 2},
            "ungranted_blocks": {"why": "the ceiling was 1048"},
        },
    ),
    "a partition that never was": (
        _of_a_slot_that_never_was,
        {"ungranted_blocks": {"shard": 10_009, "why": "there never were more than 3 partitions"}},
    ),
    "a grant twice": (
        lambda log: _append(log, 1, _head(log) + 1, note=_next(log, grant=1)),
        {"repeated_grants": {"home": 0, "sequencer": 2, "grant": 1, "segments": ["10001/8", "10001/9"]}},
    ),
    "a void in a partition's log": (
        lambda log: log.slots[1].append(void_table(ROOM, _head(log) + 1, _head(log) + 1, "so", log.now), log.now),
        {"impossible_records": {"shard": 10_001, "kind": 1}},
    ),
    "a hot record without partitions": (
        lambda log: _home(log, (ROOM, _head(log), RecordKind.HOT, {"topics": 500, "ceiling": 10**6})),
        {"impossible_records": {"shard": 0, "conv_seq": HEAD, "kind": 2}},
    ),
    "in a partition's log of another shard": (
        lambda log: _append(log, 1, 1, note=GrantNote(900, name_in(1, 3), 1, 1), conv=name_in(1, 3)),
        {
            "ungranted_blocks": {"conv_id": name_in(1, 3)},
            "wrong_shard": {"conv_id": name_in(1, 3), "shard": 10_001, "home": 0, "belongs_to": 1},
        },
    ),
    "cold over a hole": (
        _cold_over_a_hole,
        {"unexplained_gaps": {"from_seq": HEAD + 1, "to_seq": HEAD + 1, "why": ALONE}},
    ),
    "restarted without voids": (
        _restarted_without_voids,
        {"unexplained_gaps": {"from_seq": HEAD + 1, "to_seq": HEAD + 1, "why": "all up to 1060 had been settled"}},
    ),
    "restarted without a word": (
        _restarted_without_a_word,
        {"unexplained_gaps": {"from_seq": HEAD + 1, "why": "its home shard went on in epoch 3 without it"}},
    ),
    "forgotten": (
        _forgotten,
        {"unexplained_gaps": {"from_seq": HEAD + 1, "why": "messages above it are older than a minute"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(DOCTORED))
def test_what_no_writer_may_do_is_found(log: HotLog, what: str) -> None:
    make, expected = DOCTORED[what]
    make(log)
    found = _violations(log.root)
    assert sorted(found) == sorted(expected)
    for name, row in expected.items():
        assert len(found[name]) == 1
        assert {k: found[name][0][k] for k in row} == row


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_audit_while_the_system_writes(log: HotLog, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions go on before and after the home shard's log is read, and what they write rests on newer records."""
    survey, listed = Verifier.survey, iter(range(100))

    def surveyed(verifier: Verifier, number: int) -> Any:
        found = survey(verifier, number) if when == "after" else None
        if number == 0:
            new, n = name_in(0, 10 + next(listed)), 100 * (1 + next(listed))
            log.restart()
            log.send(0, _m(n, new))
            log.make_hot(new, 4)
            log.send(0, _m(n + 1, new))
            log.send(4, _m(n + 2, new), _m(n + 3))
            log.ask(1, _m(n + 4, new))
            log.send(1, _m(n + 7, OTHER))
            log.make_cold(OTHER)
            log.send(0, _m(n + 5, OTHER))
            log.make_hot(OTHER, 1)
            log.send(4, _m(n + 6, OTHER))
        return found or survey(verifier, number)

    monkeypatch.setattr(Verifier, "survey", surveyed)
    for _ in range(2):
        report = audit.run(log.root)
        assert report.ok, report.to_text()
    monkeypatch.undo()
    assert audit.run(log.root).ok
