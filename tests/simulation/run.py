"""A seed lived through and judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from imray.core import blocks
from imray.shard import grants
from tests.simulation.verify import verify
from tests.simulation.world import Parts, World


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    digest: str
    events: int
    error: BaseException | None
    lines: list[str]


@contextmanager
def small_ceilings() -> Iterator[None]:
    """Ceilings so near that short runs reach them."""
    before = blocks._STEP_MIN, blocks._STEP_BLOCKS, grants._CEILING_MIN
    blocks._STEP_MIN, blocks._STEP_BLOCKS, grants._CEILING_MIN = 6, 2, 6
    try:
        yield
    finally:
        blocks._STEP_MIN, blocks._STEP_BLOCKS, grants._CEILING_MIN = before


def run(seed: int, parts: Parts | None = None, keep_trace: bool = False) -> Outcome:
    """Live through a schedule; the error that was found, if any."""
    with small_ceilings():
        world = World(seed, parts or Parts(), keep_trace)
        error: BaseException | None = None
        try:
            world.run()
            verify(world)
        except Exception as e:  # noqa: BLE001 whatever it is, the seed is told with it
            error = e
        world.end()
        sim = world.sim
        return Outcome(seed, sim.digest, sim.events, error, sim.lines or [])


def complaint(outcome: Outcome) -> str:
    """What to print of a failing seed."""
    return (
        f"seed {outcome.seed}: {type(outcome.error).__name__}: {outcome.error}\n"
        f"replay it: python -m tests.simulation --seed {outcome.seed} --trace"
    )
