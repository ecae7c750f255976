"""The checker finds what a listener was told wrongly (I7) in a history that is good otherwise, and passes good ones."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.checker.events import EventLog, MalformedError
from tests.checker.invariants import Report, check

Event = dict[str, Any]
LISTENERS = 3


def event(t: int, kind: str, client: str = "l", **fields: Any) -> Event:
    return {"t": t, "client": client, "ev": kind, "conv": "k", **fields}


def listen(t: int, after: int = 0, client: str = "l") -> Event:
    return event(t, "listen", client, after=after)


def relisten(t: int, after: int) -> Event:
    return event(t, "relisten", after=after)


def shown(t: int, *seqs: int, client: str = "l") -> Event:
    return event(t, "shown", client, rows=[[seq, f"m{seq}", f"p{seq}"] for seq in seqs])


def hole(t: int, low: int, high: int, reason: str = "fenced") -> Event:
    return {**event(t, "told_hole", reason=reason), "from": low, "to": high}


def room(head: int, voids: list[list[Any]]) -> list[Event]:
    """Sends, acks and a final reading of a conversation: numbers 1 to `head`, but for the voids."""
    void = {n for low, high, _ in voids for n in range(low, high + 1)}
    seqs = [n for n in range(1, head + 1) if n not in void]
    events: list[Event] = []
    for n in seqs:
        events.append(event(2 * n, "send", "s", id=f"m{n}", payload=f"p{n}"))
        events.append(event(2 * n + 1, "ack", "s", id=f"m{n}", seq=n, duplicate=False, stable=n))
    rows = [[n, f"m{n}", f"p{n}"] for n in seqs]
    last = {"after": 0, "upto": head, "rows": rows, "holes": voids, "stable": head, "t0": 9000, "final": True}
    return [*events, event(9001, "read", "r", **last)]


FOUR = room(4, [])
VOID = room(6, [[3, 4, "fenced"], [5, 5, "lost"]])

GOOD = {
    "from the beginning": [*FOUR, listen(1), shown(100, 1, 2), shown(101, 3, 4)],
    "from the middle": [*FOUR, listen(1, 2), shown(100, 3, 4)],
    "from the end": [*FOUR, listen(1, 4)],
    "two of them": [*FOUR, listen(1), shown(100, 1, 2, 3, 4), listen(2, 3, "m"), shown(101, 4, client="m")],
    "again from where it was": [*FOUR, listen(1), shown(100, 1), relisten(101, 1), shown(102, 2, 3, 4)],
    "again before anything came": [*FOUR, listen(1), relisten(2, 0), shown(102, 1, 2, 3, 4)],
    "with voids": [*VOID, listen(1), shown(100, 1, 2), hole(101, 3, 4), hole(102, 5, 5, "lost"), shown(103, 6)],
    "neighbouring voids in one": [*VOID, listen(1), shown(100, 1, 2), hole(101, 3, 5), shown(103, 6)],
    "begins inside a void": [*VOID, listen(1, 3), hole(101, 4, 5), shown(103, 6)],
    "ended before all came": [*FOUR, listen(1), shown(100, 1), event(101, "unlisten")],
    "ended and began anew": [*FOUR, listen(1), shown(9, 1, 2), event(10, "unlisten"), listen(11, 0),
                             shown(100, 1, 2, 3, 4)],
}  # fmt: skip

BAD = {
    "a duplicate": ("2: shown twice", [*FOUR, listen(1), shown(100, 1, 2, 2, 3, 4)]),
    "a duplicate after a reconnect": ("2: shown twice", [*FOUR, listen(1), shown(100, 1, 2), relisten(101, 2),
                                                          shown(102, 2, 3, 4)]),
    "a gap": ("2 to 3: left out before 4", [*FOUR, listen(1), shown(100, 1, 4)]),
    "a gap before a void": ("2 to 2: left out before the void", [*VOID, listen(1), shown(100, 1), hole(101, 3, 5),
                                                                  shown(102, 6)]),
    "a gap at the beginning": ("3 to 3: left out", [*FOUR, listen(1, 2), shown(100, 4)]),
    "an inversion": ("2: shown out of order, after 3", [*FOUR, listen(1), shown(100, 1, 3, 2, 4)]),
    "not above where it began": ("2: shown out of order", [*FOUR, listen(1, 2), shown(100, 2, 3, 4)]),
    "a message that is not in the final history": ("5: shown as m5 p5, in the final reading it is not there",
                                                   [*FOUR, listen(1), shown(100, 1, 2, 3, 4, 5)]),
    "another message under the number": ("4: shown as x p4", [*FOUR, listen(1), shown(100, 1, 2, 3),
                                         event(101, "shown", rows=[[4, "x", "p4"]])]),
    "another payload": ("4: shown as m4 x", [*FOUR, listen(1), shown(100, 1, 2, 3),
                        event(101, "shown", rows=[[4, "m4", "x"]])]),
    "a missing tail": ("3 to 4: never shown", [*FOUR, listen(1), shown(100, 1, 2)]),
    "nothing at all": ("1 to 4: never shown", [*FOUR, listen(1)]),
    "a missing tail after a reconnect": ("3 to 4: never shown", [*FOUR, listen(1), shown(100, 1, 2), relisten(101, 2)]),
    "a tail that one of two misses": ("m: 4 to 4: never shown", [*FOUR, listen(1), shown(100, 1, 2, 3, 4),
                                      listen(2, 2, "m"), shown(101, 3, client="m")]),
    "a void that is none": ("2 to 2: told as void, which", [*FOUR, listen(1), shown(100, 1), hole(101, 2, 2),
                                                             shown(102, 3, 4)]),
    "a void that goes too far": ("5 to 6: told as void, which", [*VOID, listen(1), shown(100, 1, 2), hole(101, 3, 4),
                                                                 hole(102, 5, 6)]),
    "a void without a reason": ("without a reason", [*VOID, listen(1), shown(100, 1, 2), hole(101, 3, 5, " "),
                                                     shown(102, 6)]),
    "an unexplained void": ("3 to 5: left out before 6", [*VOID, listen(1), shown(100, 1, 2, 6)]),
    "it goes on elsewhere": ("listens again from 1, but had been told everything up to 2",
                             [*FOUR, listen(1), shown(100, 1, 2), relisten(101, 1), shown(102, 3, 4)]),
    "it did not listen": ("shown [1] while it did not listen", [*FOUR, shown(100, 1)]),
    "it had ended": ("shown [3] while it did not listen, after 2", [*FOUR, listen(1), shown(100, 1, 2),
                     event(101, "unlisten"), shown(102, 3)]),
    "before it was sent": ("m4: shown with 4 before anybody had sent it", [*FOUR, listen(1), shown(7, 1, 2, 3, 4)]),
    "no final reading": ("no final reading", [*FOUR[:-1], {**FOUR[-1], "final": False}, listen(1), shown(100, 1)]),
}  # fmt: skip


@pytest.fixture
def verdict(tmp_path: Path) -> Callable[[list[Event]], Report]:
    return lambda events: judged(tmp_path / "events.jsonl", events)


def judged(path: Path, events: list[Event]) -> Report:
    path.write_text("\n".join(json.dumps(e) for e in events) + "\n")
    return check([path])


@pytest.mark.parametrize("name", GOOD)
def test_what_a_listener_was_told_rightly_passes(verdict: Callable[[list[Event]], Report], name: str) -> None:
    report = verdict(GOOD[name])
    assert report.violations == {}
    assert report.checked["listeners"] >= 1


@pytest.mark.parametrize("name", BAD)
def test_each_wrong_telling_is_found(verdict: Callable[[list[Event]], Report], name: str) -> None:
    told, events = BAD[name]
    report = verdict(events)
    assert any(told in row for row in report.violations["I7"]), report.to_text()
    again = verdict(random.Random(name).sample(events, len(events)))
    assert again.counts == report.counts  # lines in any order


def test_what_is_shown_is_published(verdict: Callable[[list[Event]], Report]) -> None:
    """I4: nothing is told above stable_seq, so none that is asked for afterwards may be lower."""
    ack = event(9, "ack", "s", id="m4", seq=4, duplicate=False, stable=2)
    events = [*(e for e in FOUR if e["t"] != 9), listen(1), shown(7, 1, 2, 3)]
    assert verdict([*events, ack, shown(100, 4)]).counts["I4"] == 1


def test_a_shown_number_belongs_to_one_message(verdict: Callable[[list[Event]], Report]) -> None:
    events = [*FOUR, listen(1), shown(100, 1, 2, 3), event(101, "shown", rows=[[4, "m3", "p3"]])]
    assert set(verdict(events).counts) == {"I2", "I3", "I7"}


def test_a_gap_counts_its_numbers_and_is_one_row(verdict: Callable[[list[Event]], Report]) -> None:
    report = verdict([*room(1000, []), listen(1), shown(9000, 1000)])
    assert report.counts == {"I7": 999}
    assert len(report.violations["I7"]) == 1


def heard(rng: random.Random, head: int, voids: list[list[Any]], client: str) -> list[Event]:
    """What one listener hears, in pieces of random size, with reconnects."""
    void = {low: [low, high, why] for low, high, why in voids}
    inside = {n for low, high, _ in voids for n in range(low + 1, high + 1)}
    t = 5000
    events: list[Event] = [listen(t, client=client)]
    waiting: list[int] = []
    for n in range(1, head + 1):
        t += 1
        if waiting and (n in void or rng.random() < 0.3):
            events.append(shown(t, *waiting, client=client))
            waiting = []
            if rng.random() < 0.3:
                events.append({**relisten(t := t + 1, n - 1), "client": client})
        if n in void:
            events.append({**hole(t := t + 1, *void[n]), "client": client})
        elif n not in inside:
            waiting.append(n)
    return [*events, shown(t + 1, *waiting, client=client)] if waiting else events


def drop(rows: list[Any], at: int) -> None:
    del rows[at]


def double(rows: list[Any], at: int) -> None:
    rows.insert(at, rows[at])


def invent(rows: list[Any], at: int) -> None:
    rows[at] = [rows[at][0], "never sent", "?"]


def swap(rows: list[Any], at: int) -> None:
    rows[at], rows[at - 1] = rows[at - 1], rows[at]


@pytest.mark.parametrize("mutate", [drop, double, invent, swap])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**9))
def test_random_faults_of_one_listener_among_several_are_found(
    mutate: Callable[[list[Any], int], None], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "listeners.jsonl"
    voids = [[3, 4, "fenced"], [9, 9, "lost"]]
    events = room(20, voids)
    for number in range(LISTENERS):
        events += heard(rng, 20, voids, f"l{number}")
    assert judged(path, events).violations == {}
    broken = copy.deepcopy(events)
    long = [e for e in broken if e["ev"] == "shown" and len(e["rows"]) > 1]
    assume(long)
    rows = rng.choice(long)["rows"]
    mutate(rows, rng.randrange(1, len(rows)))
    assert judged(path, broken).counts["I7"]


def test_a_listener_writes_what_the_checker_reads(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with EventLog(path, "s") as log:
        log.send("k", "a", "p")
        log.ack("k", "a", 1, False, 1)
        one = log.as_client("l1")
        one.listen("k", 0)
        one.shown("k", [(1, "a", "p")])
        one.listen("k", 1, again=True)
        one.told_hole("k", 2, 3, "fenced")
        two = log.as_client("l2")
        two.listen("k", 1)
        two.unlisten("k")
        log.read("k", 0, 3, [(1, "a", "p")], [(2, 3, "fenced")], 3, t0=0, final=True)
    report = check([path])
    assert report.violations == {}
    assert (report.judged["I7"], report.checked["listeners"]) == (2, 2)
    assert "ok   I7" in report.to_text()


@pytest.mark.parametrize(
    "wrong",
    [
        event(5, "listen"),
        event(5, "listen", after=-1),
        event(5, "relisten", after=None),
        event(5, "shown", rows=[[0, "a", "p"]]),
        event(5, "shown", rows=[[1, "a"]]),
        event(5, "shown", rows=[[[1], "a", "p"]]),
        hole(5, 3, 2),
        event(5, "told_hole", to=3, reason="x"),
    ],
)
def test_events_that_are_none_are_named(tmp_path: Path, wrong: Event) -> None:
    path = tmp_path / "x"
    path.write_text(json.dumps(FOUR[0]) + "\n" + json.dumps(wrong) + "\n")
    with pytest.raises(MalformedError, match="x, line 2: "):
        check([path])
