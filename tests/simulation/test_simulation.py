"""Seeded schedules: every promise holds in each, a seed replays exactly, and rules broken on purpose are found.

IMRAY_TEST_SCHEDULES sets how many schedules; `python -m tests.simulation --schedules N --from S` runs more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.simulation import mutations_live, mutations_log, mutations_merge
from tests.simulation.mutations import ALL, broken
from tests.simulation.run import complaint, run

assert mutations_log, "it adds its rules to the others"
assert mutations_live, "so does it"
assert mutations_merge, "and it"

_SCHEDULES = int(os.environ.get("IMRAY_TEST_SCHEDULES", "400"))
_SCHEDULES_LONG = 10_000
_PROCESSES = 2
_PART = 50
_FAILURES_SHOWN = 5
_MUTATION_SEEDS_MAX = 10_000
_COVERED_MIN_PERCENT = 90
_COVERED_SCHEDULES = 40
_OWN = ["threads", "merge_process", "interval_merging"]
"""A simulation has threads of its own, and no child processes."""
_ROOT = Path(__file__).parents[2]


def _failures(seeds: range) -> list[str]:
    outcomes = (run(seed) for seed in seeds)
    return [complaint(outcome) for outcome in outcomes if outcome.error is not None]


def _check(schedules: int) -> None:
    parts = [range(first, min(first + _PART, schedules)) for first in range(0, schedules, _PART)]
    with ProcessPoolExecutor(_PROCESSES, get_context("spawn")) as pool:
        failures = [text for part in pool.map(_failures, parts) for text in part]
    shown = "\n\n".join(failures[:_FAILURES_SHOWN])
    assert not failures, f"{shown}\n\n{len(failures)} of {schedules} schedules failed"


@pytest.mark.timeout(120 + _SCHEDULES)
def test_every_promise_holds_in_every_schedule() -> None:
    _check(_SCHEDULES)


@pytest.mark.slow
@pytest.mark.timeout(_SCHEDULES_LONG)
def test_every_promise_holds_in_many_schedules() -> None:
    _check(_SCHEDULES_LONG)


@pytest.mark.parametrize("seed", range(10))
def test_a_seed_replays_exactly(seed: int) -> None:
    one = run(seed, keep_trace=True)
    other = run(seed)
    assert one.digest == other.digest
    assert one.events == other.events
    assert one.lines
    assert not other.lines
    assert (one.error is None) == (other.error is None)


def test_a_seed_replays_exactly_in_another_process() -> None:
    """Nothing depends on addresses in memory, on the hashes of texts, or on what ran before."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "3"]
    shown = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert f"trace {run(3).digest}," in shown


def test_seeds_differ() -> None:
    assert len({run(seed).digest for seed in range(10)}) == 10


def test_the_write_path_is_covered(tmp_path: Path) -> None:
    """How much of the code that writes logs these schedules run; what they leave out is printed."""
    data = f"--data-file={tmp_path / 'covered'}"
    coverage = [sys.executable, "-m", "coverage"]
    simulate = ["-m", "tests.simulation", "--schedules", str(_COVERED_SCHEDULES)]
    omit = "--omit=" + ",".join(f"imray/shard/{name}.py" for name in _OWN)
    measure = [*coverage, "run", data, "--concurrency=greenlet", "--source=imray/shard", omit, *simulate]
    subprocess.run(measure, cwd=_ROOT, check=True, timeout=170)
    print(subprocess.run([*coverage, "report", data, "-m"], cwd=_ROOT, capture_output=True, text=True).stdout)
    found = tmp_path / "covered.json"
    subprocess.run([*coverage, "json", data, "-o", found], cwd=_ROOT, check=True, capture_output=True)
    percent = json.loads(found.read_text())["totals"]["percent_covered"]
    assert percent >= _COVERED_MIN_PERCENT


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if r.rare else []) for n, r in sorted(ALL.items())]
)
@pytest.mark.timeout(3600)
def test_a_broken_rule_is_found(name: str) -> None:
    with broken(name) as shows:
        for seed in range(_MUTATION_SEEDS_MAX):
            outcome = run(seed, with_listeners=ALL[name].is_of_delivery)
            if outcome.error is not None and shows in complaint(outcome):
                print(f"{name}: found by seed {seed}")
                return
    pytest.fail(f"{_MUTATION_SEEDS_MAX} schedules did not find it")


def test_a_complaint_says_how_to_replay() -> None:
    with broken("stable_is_the_head"):
        outcome = next(o for seed in range(100) if (o := run(seed, keep_trace=True)).error is not None)
    assert f"python -m tests.simulation --seed {outcome.seed} --trace" in complaint(outcome)
    assert any("granted" in line or "send" in line for line in outcome.lines)
