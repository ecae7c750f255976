"""The checker finds each violation in a history that is otherwise good, and passes good ones."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checker.__main__ import main
from tests.checker.events import EventLog, MalformedError
from tests.checker.invariants import Report, check

Event = dict[str, Any]


def event(t: int, kind: str, client: str = "c", **fields: Any) -> Event:
    return {"t": t, "client": client, "ev": kind, "conv": "k", **fields}


def send(t: int, message_id: str, payload: str = "p", client: str = "c") -> Event:
    return event(t, "send", client, id=message_id, payload=payload)


def ack(t: int, message_id: str, seq: int, stable: int | None = None, duplicate: bool = False) -> Event:
    return event(t, "ack", id=message_id, seq=seq, duplicate=duplicate, stable=stable)


def read(t: int, rows: list[Any], stable: int, holes: list[Any] | None = None, **other: Any) -> Event:
    known = {"after": 0, "upto": stable, "rows": rows, "holes": holes or [], "stable": stable, "t0": t - 1}
    return event(t, "read", **known | {"final": True} | other)


def verdict(events: list[Event]) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        path.write_text("\n".join(json.dumps(e) for e in events) + "\n")
        return check([path])


A, B, C = [1, "a", "p"], [2, "b", "p"], [3, "c", "p"]
SENT = [send(1, "a"), ack(2, "a", 1), send(3, "b"), ack(4, "b", 2)]
VOID_3 = [[3, 3, "fenced"]]
CONFLICT = event(6, "conflict", "d", id="a", seq=1)

GOOD = {
    "plain": [*SENT, read(9, [A, B], 2)],
    "final in pages": [*SENT, read(9, [A], 2, upto=1), read(9, [B], 2, after=1)],
    "a retry after no answer": [send(1, "a"), event(2, "unknown", id="a"), send(3, "a"), ack(4, "a", 1, 1, True),
                                read(9, [A], 1)],
    "a late stable of a late answer": [*SENT, read(9, [A, B], 2, t0=5), event(6, "stable", stable=1)],
    "overlapping reads": [*SENT, read(8, [A, B], 2), read(9, [A], 1, t0=7, final=False)],
    "overlapping sends": [send(1, "a"), send(2, "b"), ack(3, "b", 2), ack(4, "a", 1), read(9, [A, B], 2)],
    "ack and send in one instant": [send(1, "b"), ack(3, "b", 2), send(3, "a"), ack(4, "a", 1), read(9, [A, B], 2)],
    "a conflict": [*SENT, send(5, "a", "q", "d"), CONFLICT, read(9, [A, B], 2)],
    "a huge hole": [*SENT, read(9, [A, B], 10**15, [[3, 10**15, "ceiling"]])],
    "a hole over two pages": [*SENT, read(9, [A, B], 4, [[3, 4, "x"]], upto=3), read(9, [], 4, [[3, 4, "x"]], after=3)],
    "another's message": [*SENT, read(9, [A, B, [3, "z", "?"]], 3)],
}  # fmt: skip

BAD = {
    "I1 lost": ({"I1", "I5"}, [*SENT, read(9, [A], 2)]),
    "I1 lost above stable": ({"I1"}, [*SENT, read(9, [A], 1)]),
    "I1 other payload": ({"I1"}, [*SENT, read(9, [A, [2, "b", "q"]], 2)]),
    "I1 no final reading": ({"I1"}, [*SENT, read(9, [A, B], 2, final=False)]),
    "I1 final reading has a gap": ({"I1"}, [*SENT, read(9, [A, B], 3, VOID_3, upto=2)]),
    "I1 never sent": ({"I1"}, [*SENT, ack(5, "c", 3), read(9, [A, B, C], 3)]),
    "I1 acked before sent": ({"I1", "I6"}, [*SENT, ack(5, "c", 3), send(6, "c"), read(9, [A, B, C], 3)]),
    "I1 another payload acked": ({"I1"}, [*SENT, send(5, "a", "q"), ack(6, "a", 1, 2, True), read(9, [A, B], 2)]),
    "I1 unacked but changed": ({"I1"}, [*SENT, send(5, "c"), read(9, [A, B, [3, "c", "q"]], 3)]),
    "I2 retry moved": ({"I1", "I2"}, [*SENT, send(5, "a"), ack(6, "a", 3, None, True), read(9, [A, B], 2)]),
    "I2 read twice": ({"I2"}, [*SENT, read(9, [A, B, [3, "a", "p"]], 3)]),
    "I2 conflict moved": ({"I2", "I3"}, [*SENT, send(5, "a", "q", "d"), {**CONFLICT, "seq": 2}, read(9, [A, B], 2)]),
    "I2 no conflict": ({"I2"}, [*SENT, send(5, "a", "p", "d"), CONFLICT, read(9, [A, B], 2)]),
    "I2 conflict of the first": ({"I2"}, [*SENT, send(5, "a", "q"), send(5, "a", "p", "d"), CONFLICT,
                                          read(9, [A, B], 2)]),
    "I3 two owners": ({"I3"}, [*SENT, read(9, [A, B, [2, "z", "p"]], 2)]),
    "I3 a doubled row": ({"I3"}, [*SENT, read(9, [A, B, B], 2)]),
    "I3 a message changes": ({"I3"}, [*SENT, read(9, [A, B, C], 3), read(11, [A, B, [3, "c", "q"]], 3)]),
    "I4 reads go back": ({"I4"}, [*SENT, read(6, [A, B], 2), read(9, [A], 1, final=False)]),
    "I4 an ack goes back": ({"I4"}, [*SENT[:3], event(2, "stable", stable=9), ack(4, "b", 10, 8),
                                     read(9, [A, [10, "b", "p"]], 10, [[2, 9, "x"]])]),
    "I4 new below stable": ({"I4"}, [*SENT, event(5, "stable", stable=3), send(6, "c"), ack(7, "c", 3),
                                     read(9, [A, B, C], 3)]),
    "I4 appears in a void": ({"I4", "I5"}, [*SENT, read(6, [A, B], 3, VOID_3, final=False), read(9, [A, B, C], 3)]),
    "I4 appears in a gap": ({"I4", "I5"}, [*SENT, read(6, [A], 2, final=False), read(9, [A, B], 2)]),
    "I5 unexplained": ({"I5"}, [*SENT, read(9, [A, B], 3)]),
    "I5 no reason": ({"I5"}, [*SENT, read(9, [A, B], 3, [[3, 3, " "]])]),
    "I5 both": ({"I5"}, [*SENT, read(9, [A, B], 2, [[2, 2, "x"]])]),
    "I5 acked but void": ({"I1", "I5"}, [*SENT, read(9, [A], 2, [[2, 2, "x"]])]),
    "I5 read but later void": ({"I5"}, [*SENT, read(6, [A, B, C], 3, final=False), read(9, [A, B], 3, VOID_3)]),
    "I5 read but later absent": ({"I5"}, [*SENT, read(6, [A, B, C], 3, final=False), read(9, [A, B], 3)]),
    "I6 against time": ({"I6"}, [send(1, "b"), ack(2, "b", 2), send(3, "a"), ack(4, "a", 1), read(9, [A, B], 2)]),
    "I6 its ack was lost": ({"I6"}, [send(1, "b"), ack(2, "b", 2), send(3, "a"), read(9, [A, B], 2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    assert verdict(GOOD[name]).violations == {}


@pytest.mark.parametrize("name", BAD)
def test_each_violation_is_found(name: str) -> None:
    found, events = BAD[name]
    assert set(verdict(events).counts) == found
    assert set(verdict(random.Random(name).sample(events, len(events))).counts) == found  # lines in any order


def history(rng: random.Random, messages: int) -> list[Event]:
    """Sends in overlapping groups, voids, retries, a stable_seq that lags, readings on the way and a final one."""
    t, head, rows, holes, events = 0, 0, [], [], []

    def page(final: bool) -> Event:
        upto = head if final else rng.randint(0, head)
        known = ([r for r in rows if r[0] <= upto], upto, [[s, s, "void"] for s in holes if s <= upto])
        return read(t := 10 * (len(events) + 9) ** 2 if final else 0, *known, final=final, t0=max(0, t - 1))

    while len(rows) < messages:
        group = [f"m{len(rows) + i}" for i in range(rng.randint(2, 4))]
        stable = head
        events += [send(t := t + 1, m, f"p{m}") for m in group]
        rng.shuffle(group)
        if rng.random() < 0.3:
            holes.append(head := head + 1)
        numbered = [[(head := head + 1), m, f"p{m}"] for m in group]
        rows += numbered
        events += [ack(t := t + 1, m, s, stable) for s, m, _ in rng.sample(numbered, len(numbered))]
        if rng.random() < 0.3:
            seq, m, payload = rng.choice(rows)
            events += [send(t := t + 1, m, payload), ack(t := t + 1, m, seq, head, True)]
        if rng.random() < 0.3:
            events.append({**page(False), "t": (t := t + 2), "t0": t - 1, "stable": head})
    return [*events, page(True)]


def acked_new(events: list[Event]) -> list[Event]:
    return [e for e in events if e["ev"] == "ack" and not e["duplicate"]]


def swap_numbers(events: list[Event], rng: random.Random) -> set[str]:
    one, other = rng.sample(events[-1]["rows"], 2)
    one[0], other[0] = other[0], one[0]
    return {"I1", "I2", "I3"}


def drop_row(events: list[Event], rng: random.Random) -> set[str]:
    events[-1]["rows"].remove(rng.choice(events[-1]["rows"]))
    return {"I1", "I5"}


def double_row(events: list[Event], rng: random.Random) -> set[str]:
    events[-1]["rows"].append(rng.choice(events[-1]["rows"]))
    return {"I3"}


def void_over_acked(events: list[Event], rng: random.Random) -> set[str]:
    seq = rng.choice(acked_new(events))["seq"]
    events[-1]["holes"].append([seq, seq, "lost"])
    return {"I5"}


def stable_back(events: list[Event], rng: random.Random) -> set[str]:
    last = events[-1]
    events.append({**last, "t": last["t"] + 2, "t0": last["t"] + 1, "stable": rng.randrange(last["stable"])})
    return {"I4"}


def send_after_higher_ack(events: list[Event], rng: random.Random) -> set[str]:
    """The first send of a message moves behind the ack of a higher number."""
    higher = max(acked_new(events), key=lambda e: e["seq"])
    lower = rng.choice([e for e in acked_new(events) if e["seq"] < higher["seq"]])
    for e in events:
        if e["ev"] in ("send", "ack") and e["id"] == lower["id"]:
            e["t"] += higher["t"]  # all its tries: a retry keeps its distance
    return {"I6"}


def ack_before_send(events: list[Event], rng: random.Random) -> set[str]:
    e = rng.choice(acked_new(events))
    e["t"] = 0
    return {"I1"}


MUTATIONS = [
    swap_numbers, drop_row, double_row, void_over_acked, stable_back, send_after_higher_ack, ack_before_send,
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTATIONS)
@settings(deadline=None)
@given(seed=st.integers(0, 10**9), messages=st.integers(2, 40))
def test_random_faults_are_found(
    mutate: Callable[[list[Event], random.Random], set[str]], seed: int, messages: int
) -> None:
    rng = random.Random(seed)
    events = history(rng, messages)
    assert verdict(events).violations == {}
    broken = copy.deepcopy(events)
    found = mutate(broken, rng)
    assert set(verdict(broken).counts) >= found


def test_many_violations_are_counted_and_few_shown() -> None:
    sent = [e for i in range(1, 31) for e in (send(2 * i, f"m{i}"), ack(2 * i + 1, f"m{i}", i))]
    report = verdict([*sent, read(99, [], 30)])
    assert report.counts == {"I1": 30, "I5": 30}
    assert len(report.violations["I1"]) == 10
    assert "... 30 in all" in report.to_text()


def record(path: Path, seq: int = 1) -> None:
    with EventLog(path, "c") as log:
        log.send("k", "a", "p")
        log.ack("k", "a", seq, False, None)
        log.read("k", 0, 1, [(1, "a", "p")], [], 1, t0=0, final=True)


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, empty = tmp_path / "good", tmp_path / "bad", tmp_path / "empty"
    record(good)
    record(bad, seq=2)
    empty.touch()
    assert main([str(good)]) == 0
    assert "ok   I1" in capsys.readouterr().out
    assert main([str(good), str(bad), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["checked"]["acks"], report["judged"]["I2"]) == (False, 2, 1)
    assert set(report["counts"]) == {"I1", "I2"}
    for files in ([str(empty)], [], [str(tmp_path / "none")]):
        assert main(files) == 2
    assert "nothing to check" in capsys.readouterr().err


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a"
    record(path)
    with path.open("a") as file:
        file.write('{"t": 1, "to')
    assert check([path]).checked["acks"] == 1
    record(path)  # the client starts again
    assert check([path]).checked["acks"] == 2


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"t": 1}', *(json.dumps(e) for e in (
        event(1, "what"), event(1, "ack", id="a"), send(True, "a"), ack(1, "a", 0), read(5, [A], 1, t0=6),
        read(5, [[1, "a"]], 1), read(5, [], 1, [[2, 1, "x"]]), event(1, "unknown", id=7)))],
)  # fmt: skip
def test_malformed_files_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x"
    path.write_text(json.dumps(send(1, "a")) + "\n" + line + "\n")
    with pytest.raises(MalformedError, match="x, line 2: "):
        check([path])
