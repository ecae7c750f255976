"""The reorder machine against the table of cases that every SDK runs."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from imray.core.errors import InvalidError
from imray.core.reorder import (
    TRANSITIONS,
    Action,
    Cue,
    Deliver,
    Phase,
    Pull,
    Reorder,
    ReorderConfig,
    SetTimer,
    Skip,
    Void,
)

TABLE = json.loads(files("imray.core").joinpath("reorder_cases.json").read_text("utf-8"))


def machine_of(config: dict[str, int]) -> Reorder[int]:
    values = TABLE["defaults"] | config
    return Reorder(ReorderConfig(**{k: v for k, v in values.items() if k != "last_shown"}), values["last_shown"])


def feed(machine: Reorder[int], event: dict[str, Any], at_ms: int) -> list[Action[int]]:
    ((kind, value),) = event.items()
    match kind:
        case "subscribed":
            return machine.subscribed(at_ms)
        case "live":
            return machine.live([(n, n) for n in value], at_ms)
        case "head":
            return machine.head(value, at_ms)
        case "pulled":
            messages = [(n, n) for n in value["messages"]]
            holes = [Void(*hole) for hole in value["holes"]]
            return machine.pulled(messages, holes, value["stable_seq"], value["next"], at_ms)
        case "pull_failed":
            return machine.pull_failed(at_ms)
        case "tick":
            return machine.tick(at_ms)
    raise AssertionError(f"unknown event {kind}")


def written(action: Action[int]) -> dict[str, Any]:
    match action:
        case Deliver(messages):
            assert all(seq == message for seq, message in messages)
            return {"deliver": [seq for seq, _ in messages]}
        case Skip(void):
            return {"skip": [void.from_seq, void.to_seq, void.reason]}
        case Pull(after, upto):
            return {"pull": [after, upto]}
        case SetTimer(at_ms):
            return {"timer": at_ms}


def state_of(machine: Reorder[int]) -> dict[str, Any]:
    return {"next_seq": machine.next_seq, "buffered": machine.buffered, "phase": machine.phase.name}


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: case["name"])
def test_case(case: dict[str, Any]) -> None:
    machine = machine_of(case["config"])
    for i, step in enumerate(case["steps"]):
        actions = [written(a) for a in feed(machine, step["event"], step["at_ms"])]
        assert actions == step["actions"], f"step {i}: {step['event']}"
        expected = step.get("state", {})
        assert {k: v for k, v in state_of(machine).items() if k in expected} == expected, f"step {i}"


def test_the_table_is_whole() -> None:
    names = [case["name"] for case in TABLE["cases"]]
    assert len(set(names)) == len(names) >= 25
    events = {kind for case in TABLE["cases"] for step in case["steps"] for kind in step["event"]}
    assert events == {"subscribed", "live", "head", "pulled", "pull_failed", "tick"}


def test_every_transition_is_taken_by_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transition that no case takes is one that other SDKs may get wrong unseen."""
    taken: set[tuple[Phase, Cue]] = set()

    class Spy(dict[Cue, Phase]):
        def __init__(self, phase: Phase) -> None:
            super().__init__(TRANSITIONS[phase])
            self.phase = phase

        def __getitem__(self, cue: Cue) -> Phase:
            taken.add((self.phase, cue))
            return super().__getitem__(cue)

    monkeypatch.setattr("imray.core.reorder.TRANSITIONS", {phase: Spy(phase) for phase in Phase})
    for case in TABLE["cases"]:
        machine = machine_of(case["config"])
        for step in case["steps"]:
            feed(machine, step["event"], step["at_ms"])
    assert taken == {(phase, cue) for phase, row in TRANSITIONS.items() for cue in row}


@pytest.mark.parametrize(
    "bounds",
    [
        {"gap_timeout_ms": -1},
        {"retry_ms_min": 0},
        {"retry_ms_min": 9, "retry_ms_max": 8},
        {"buffer_messages_max": 0},
    ],
)
def test_bounds_that_make_no_sense_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(InvalidError):
        ReorderConfig(**bounds)


def test_a_cursor_below_zero_is_refused() -> None:
    with pytest.raises(InvalidError, match="last_shown is -1"):
        Reorder(ReorderConfig(), last_shown=-1)
