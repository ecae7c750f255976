"""Seeded schedules: every promise holds in each, a seed replays exactly, and rules broken on purpose are found.

IMRAY_TEST_SCHEDULES sets how many schedules; `python -m tests.simulation --schedules N --from S` runs more.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.simulation.mutations import ALL, broken
from tests.simulation.run import complaint, run

_SCHEDULES = int(os.environ.get("IMRAY_TEST_SCHEDULES", "10000"))
_PROCESSES = 2
_PART = 250
_FAILURES_SHOWN = 5
_MUTATION_SEEDS_MAX = 4000
"""Most are found within 100 schedules."""


def _failures(seeds: range) -> list[str]:
    outcomes = (run(seed) for seed in seeds)
    return [complaint(outcome) for outcome in outcomes if outcome.error is not None]


@pytest.mark.timeout(120 + _SCHEDULES // 10)
def test_every_promise_holds_in_every_schedule() -> None:
    parts = [range(first, min(first + _PART, _SCHEDULES)) for first in range(0, _SCHEDULES, _PART)]
    with ProcessPoolExecutor(_PROCESSES, get_context("spawn")) as pool:
        failures = [text for part in pool.map(_failures, parts) for text in part]
    assert not failures, (
        "\n\n".join(failures[:_FAILURES_SHOWN]) + f"\n\n{len(failures)} of {_SCHEDULES} schedules failed"
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_replays_exactly(seed: int) -> None:
    one, other = run(seed, keep_trace=True), run(seed)
    assert one.digest == other.digest
    assert one.lines
    assert not other.lines
    assert (one.error is None) == (other.error is None)


def test_seeds_differ() -> None:
    assert len({run(seed).digest for seed in range(20)}) == 20


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_broken_rule_is_found(name: str) -> None:
    with broken(name) as shows:
        for seed in range(_MUTATION_SEEDS_MAX):
            outcome = run(seed)
            if outcome.error is not None and shows in complaint(outcome):
                return
    pytest.fail(f"{_MUTATION_SEEDS_MAX} schedules did not find it")


def test_a_complaint_says_how_to_replay() -> None:
    with broken("stable_is_the_head"):
        outcome = next(o for seed in range(100) if (o := run(seed, keep_trace=True)).error is not None)
    assert f"python -m tests.simulation --seed {outcome.seed} --trace" in complaint(outcome)
    assert any("granted" in line or "send" in line for line in outcome.lines)
