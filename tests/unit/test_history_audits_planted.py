"""What is wrong in history and log is found and named: by arrays and SQL as by SQL alone, whatever was merged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from analytics import audit, screen
from imray.log.store import LocalStore
from tests.support.analytics_logs import craft, good_log, name_in, writer_of
from tests.support.analytics_merges import compact, delete_merged, end_of_log, found_by, merge
from tests.support.batches import msg_id

CONV = name_in(0)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here loses power: notes and pins need no disk."""
    monkeypatch.setattr(LocalStore, "_sync_file", lambda *_: None)
    monkeypatch.setattr(LocalStore, "_sync_folder", lambda *_: None)


CRAFTED: dict[str, tuple[list[dict[str, object]], str, dict[str, object]]] = {
    "a gap": (
        [{"conv_id": CONV, "conv_seq": 29, "client_msg_id": msg_id(5001)}],
        "unexplained_gaps",
        {"conv_id": CONV, "from_seq": 27, "to_seq": 28},
    ),
    "a number twice": (
        [{"conv_id": CONV, "conv_seq": 3, "client_msg_id": msg_id(5002)}],
        "duplicate_numbers",
        {"conv_id": CONV, "conv_seq": 3, "messages": 2},
    ),
    "an id twice": (
        [{"conv_id": CONV, "conv_seq": 27, "client_msg_id": msg_id(1)}],
        "duplicate_ids",
        {"conv_id": CONV, "messages": 2, "numbers": [1, 27]},
    ),
    "an id twice, in a conversation without voids": (
        [{"conv_id": name_in(0, 1), "conv_seq": 19, "client_msg_id": msg_id(2)}],
        "duplicate_ids",
        {"conv_id": name_in(0, 1), "messages": 2, "numbers": [1, 19]},
    ),
    "mixed order": (
        [
            {"conv_id": name_in(0, 1), "conv_seq": 20, "client_msg_id": msg_id(5003)},
            {"conv_id": name_in(0, 1), "conv_seq": 19, "client_msg_id": msg_id(5004)},
        ],
        "order_against_log",
        {"conv_id": name_in(0, 1), "highest_before": 20, "conv_seq": 19},
    ),
    "a wrong shard": (
        [{"conv_id": name_in(1, 7), "conv_seq": 1, "client_msg_id": msg_id(5005)}],
        "wrong_shard",
        {"conv_id": name_in(1, 7), "shard": 0, "belongs_to": 1},
    ),
    "no sender": (
        [{"conv_id": name_in(0, 1), "conv_seq": 19, "client_msg_id": msg_id(5006), "sender": None}],
        "impossible_records",
        {"conv_seq": 19},
    ),
    "an unknown kind": (
        [{"conv_id": name_in(0, 1), "conv_seq": 19, "client_msg_id": msg_id(5007), "kind": 9}],
        "impossible_records",
        {"conv_seq": 19, "kind": 9},
    ),
    "a void without reason": (
        [{"conv_id": name_in(0, 1), "conv_seq": 19, "kind": 1, "body": b'{"last": 19, "reason": ""}'}],
        "void_without_reason",
        {"conv_id": name_in(0, 1), "first_seq": 19, "last_seq": 19},
    ),
    "a message that is void": (
        [{"conv_id": CONV, "conv_seq": 20, "client_msg_id": msg_id(5010)}],
        "order_against_log",
        {"conv_id": CONV, "highest_before": 26, "conv_seq": 20},
    ),
    "a number below 0": (
        [{"conv_id": name_in(0, 1), "conv_seq": -1, "kind": 5}],
        "impossible_records",
        {"conv_seq": -1, "kind": 5},
    ),
    "a first number missing": (
        [{"conv_id": name_in(0, 9), "conv_seq": 2, "client_msg_id": msg_id(5008)}],
        "unexplained_gaps",
        {"conv_id": name_in(0, 9), "from_seq": 1, "to_seq": 1},
    ),
    "another time": (
        [{"conv_id": name_in(0, 1), "conv_seq": 19, "client_msg_id": msg_id(5009), "server_ts": 7}],
        "segment_rows",
        {"shard": 0, "rows": 1, "rows_there": 1},
    ),
}


ALSO = {"a message that is void": ["void_messages"]}
"""What else is found then."""


@pytest.mark.parametrize("what", sorted(CRAFTED))
def test_what_is_planted_is_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """In the log's tail, and in the history, in ranges of a few rows, shard by shard."""
    monkeypatch.setattr(screen, "RANGE_ROWS", 3)
    root = good_log(tmp_path)
    merge(root)
    rows, name, wanted = CRAFTED[what]
    writer = writer_of(root, 0)
    writer.append(craft(rows, 90_000), 90_000)
    writer.close()
    found = found_by(audit.run(root, reports=False))
    assert list(found) == [name, *ALSO.get(what, [])]
    assert {key: found[name][0][key] for key in wanted} == wanted
    assert merge(root, cut=end_of_log(root))
    delete_merged(root)
    compact(root)
    monkeypatch.setattr(audit, "ROWS_TOGETHER_MAX", 0)
    assert found_by(audit.run(root, reports=False)) == found


@pytest.mark.parametrize("seed", range(6))
def test_arrays_and_sql_find_what_sql_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """On logs in which much is wrong, some of it merged."""
    r = random.Random(seed)
    root = good_log(tmp_path)
    writer = writer_of(root, 0)
    for _ in range(r.randint(1, 6)):
        rows = [
            {
                "conv_id": r.choice([CONV, name_in(0, 1), name_in(0, 2), name_in(0, 3), name_in(1)]),
                "conv_seq": r.choice([0, 1, 2, 3, 19, 20, 26, 27, 28]),
                "client_msg_id": r.choice([None, msg_id(r.randint(1, 99)), msg_id(r.randint(6000, 6010))]),
                "kind": r.choice([0, 0, 0, 0, 0, 0, 0, 5, 9]),
                "sender": r.choice(["eve", "eve", "eve", "eve", None]),
            }
            for _ in range(r.randint(1, 3))
        ]
        writer.append(craft(rows, 90_000), 90_000)
        if r.random() < 0.3:
            merge(root, cut=end_of_log(root))
    writer.close()
    if r.random() < 0.5:
        delete_merged(root)
    monkeypatch.setattr(screen, "RANGE_ROWS", r.choice([1, 5, 1000]))
    found = found_by(audit.run(root, reports=False))
    assert found
    assert found == found_by(audit.run(root))
    if "wrong_shard" not in found:
        monkeypatch.setattr(audit, "ROWS_TOGETHER_MAX", 0)
        assert found_by(audit.run(root, reports=False)) == found
