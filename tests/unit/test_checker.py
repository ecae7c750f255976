"""The checker finds each violation in a history that is otherwise good, and passes good ones."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checker.events import EventLog, MalformedError
from tests.checker.invariants import check

Event = dict[str, Any]


def send(t: int, message_id: str, payload: str = "p") -> Event:
    return {"t": t, "client": "c", "ev": "send", "conv": "k", "id": message_id, "payload": payload}


def ack(t: int, message_id: str, seq: int, stable: int | None = None, duplicate: bool = False) -> Event:
    known = {"seq": seq, "duplicate": duplicate, "stable": seq if stable is None else stable}
    return {"t": t, "client": "c", "ev": "ack", "conv": "k", "id": message_id, **known}


def read(t: int, rows: list[Any], stable: int, holes: list[Any] | None = None, final: bool = True) -> Event:
    known = {"after": 0, "upto": stable, "rows": rows, "holes": holes or [], "stable": stable, "t0": t - 1}
    return {"t": t, "client": "c", "ev": "read", "conv": "k", "final": final, **known}


def good() -> list[Event]:
    return [
        send(1, "a"), ack(2, "a", 1), send(3, "b"), send(4, "c"), ack(5, "c", 2), ack(6, "b", 3),
        send(7, "a"), ack(8, "a", 1, stable=3, duplicate=True), send(9, "d"), ack(10, "d", 5),
        read(20, [[1, "a", "p"], [2, "c", "p"], [3, "b", "p"], [5, "d", "p"]], 5, [[4, 4, "fenced"]]),
    ]  # fmt: skip


def verdict(tmp_path: Path, events: list[Event]) -> set[str]:
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(json.dumps(e) for e in events) + "\n")
    return set(check([path]).counts)


def test_a_good_history_passes(tmp_path: Path) -> None:
    assert verdict(tmp_path, good()) == set()


def lose_a_row(events: list[Event]) -> None:
    events[-1]["rows"].pop(1)


def hide_a_loss(events: list[Event]) -> None:
    events[-1]["rows"].pop(1)
    events[-1]["holes"].append([2, 2, "void"])


def swap(events: list[Event]) -> None:
    events[-1]["rows"][0][0], events[-1]["rows"][1][0] = 2, 1


def double(events: list[Event]) -> None:
    events[-1]["rows"].append([4, "a", "p"])
    events[-1]["holes"] = []


def two_owners(events: list[Event]) -> None:
    events[-1]["rows"].append([3, "z", "p"])


def other_payload(events: list[Event]) -> None:
    events[-1]["rows"][0][2] = "q"


def no_reason(events: list[Event]) -> None:
    events[-1]["holes"] = [[4, 4, ""]]


def unexplained(events: list[Event]) -> None:
    events[-1]["holes"] = []


def goes_back(events: list[Event]) -> None:
    events[-1]["stable"] = 4


def late(events: list[Event]) -> None:
    events.insert(2, {"t": 2, "client": "x", "ev": "stable", "conv": "k", "stable": 3})


def late_in_void(events: list[Event]) -> None:
    early = read(12, [[1, "a", "p"], [2, "c", "p"], [3, "b", "p"]], 4, [[4, 4, "fenced"]], final=False)
    events[-1]["rows"].append([4, "e", "p"])
    events[-1]["holes"] = []
    events.insert(-1, early)


def against_time(events: list[Event]) -> None:
    events[3]["t"], events[4]["t"] = 1, 2
    events[1]["t"] = events[0]["t"] = 3
    events.sort(key=lambda e: e["t"])


def retry_moved(events: list[Event]) -> None:
    events[7]["seq"] = 4


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lose_a_row, {"I1", "I5"}), (hide_a_loss, {"I1", "I5"}), (swap, {"I1", "I2", "I3"}), (double, {"I1", "I2"}),
        (two_owners, {"I3"}), (other_payload, {"I1"}), (no_reason, {"I5"}), (unexplained, {"I5"}),
        (goes_back, {"I4"}), (late, {"I4"}), (late_in_void, {"I4"}), (against_time, {"I6"}),
        (retry_moved, {"I1", "I2"}),
    ],
)  # fmt: skip
def test_each_violation_is_found(tmp_path: Path, change: Callable[[list[Event]], None], found: set[str]) -> None:
    events = good()
    change(events)
    assert verdict(tmp_path, events) >= found


@given(seed=st.integers(0, 10**9), messages=st.integers(2, 60))
def test_random_histories_and_random_faults(tmp_path_factory: pytest.TempPathFactory, seed: int, messages: int) -> None:
    rng = random.Random(seed)
    tmp_path = tmp_path_factory.mktemp("h")
    t, events = 0, []
    for seq in range(1, messages + 1):
        events += [send(t := t + 1, f"m{seq}"), ack(t := t + 1, f"m{seq}", seq)]
        if rng.random() < 0.3:
            old = rng.randint(1, seq)
            events += [send(t := t + 1, f"m{old}"), ack(t := t + 1, f"m{old}", old, seq, duplicate=True)]
    rows = [[seq, f"m{seq}", "p"] for seq in range(1, messages + 1)]
    events.append(read(t + 10, rows, messages))
    assert verdict(tmp_path, events) == set()
    broken = copy.deepcopy(events)
    i, j = rng.sample(range(messages), 2)
    broken[-1]["rows"][i][1], broken[-1]["rows"][j][1] = rows[j][1], rows[i][1]
    assert verdict(tmp_path, broken) >= {"I1", "I2", "I3"}
    broken = copy.deepcopy(events)
    broken[-1]["rows"].pop(i)
    assert verdict(tmp_path, broken) >= {"I1", "I5"}


def test_the_program(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with EventLog(path, "c") as log:
        log.send("k", "a", "p")
        log.ack("k", "a", 1, False, 1)
        log.read("k", 0, 1, [(1, "a", "p")], [], 1, t0=0, final=True)
    with path.open("a") as f:
        f.write('{"t": 1, "torn')

    def run(*files: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.checker", *map(str, files)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert run(path).returncode == 0
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert run(empty).returncode == 2
    assert "nothing to check" in run(empty).stderr
    bad = tmp_path / "bad.jsonl"
    bad.write_text(path.read_text().replace('"seq": 1', '"seq": 2', 1).replace('{"t": 1, "torn', ""))
    failed = run(bad)
    assert failed.returncode == 1
    assert "FAIL I1" in failed.stdout


def test_malformed_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"t": 1, "client": "c", "ev": "ack"}\n{"t": 2}\n')
    with pytest.raises(MalformedError, match=r"x\.jsonl, line 1"):
        check([path])
