"""A seed lived through and judged."""

from __future__ import annotations

import gc
import logging
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from imray.core import ceilings
from imray.history import merger, merging, retiring
from imray.log import sealed
from imray.log.segment import Segment
from imray.shard import grants, home_link, hot_groups
from tests.simulation.deployment import Listener
from tests.simulation.network import SimChannel
from tests.simulation.verify import verify
from tests.simulation.world import World

_read_table = Segment.table
_LOG = logging.getLogger("imray")


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    digest: str
    events: int
    error: BaseException | None
    lines: list[str]


@contextmanager
def small_world(rng: random.Random) -> Iterator[None]:
    """Bounds so near that short runs reach them; and what is random elsewhere comes from the seed, too."""

    def token_hex(count: int = 32) -> str:
        return rng.getrandbits(8 * count).to_bytes(count, "big").hex()

    decoded: dict[bytes, Any] = {}

    def table(self: Segment, columns: list[str] | None = None) -> Any:
        # the same verified bytes are read again and again
        if self.digest not in decoded:
            decoded[self.digest] = _read_table(self)
        whole = decoded[self.digest]
        return whole if columns is None else whole.select(columns)

    with (
        patch.object(ceilings, "_STEP_MIN", 6),
        patch.object(ceilings, "_STEP_BLOCKS", 2),
        patch.object(grants, "_CEILING_MIN", 6),
        patch.object(hot_groups, "_TICK_S", 0.05),
        patch.object(sealed, "MERGE_FANOUT", 2),
        patch.object(sealed, "LIKE_SIZE_IDS_MIN", 1),
        patch.object(merging, "MERGE_FANOUT", 2),
        patch.object(merger, "CHECKPOINT_EVERY", 3),
        patch.object(retiring, "SWEEP_S", 0.05),
        patch.object(secrets, "token_hex", token_hex),
        patch.object(Segment, "table", table),
        patch.object(home_link, "Channel", SimChannel),
    ):
        yield


@contextmanager
def _listening(world: World) -> Iterator[None]:
    listener = Listener(world.sim)
    before = _LOG.propagate
    _LOG.propagate = False
    _LOG.addHandler(listener)
    real = grants.Grants.fence

    def fence(self: grants.Grants, slot: int) -> Any:
        world.fences += 1
        return real(self, slot)

    try:
        with patch.object(grants.Grants, "fence", fence):
            yield
    finally:
        _LOG.removeHandler(listener)
        _LOG.propagate = before


def run(seed: int, keep_trace: bool = False, with_listeners: bool = True) -> Outcome:
    """Live through a schedule; the error that was found, if any. Without listeners it takes half as long."""
    error: BaseException | None = None
    with small_world(random.Random(-seed - 1)):
        world = World(seed, keep_trace, with_listeners)
        with _listening(world):
            try:
                world.run()
                verify(world)
            except Exception as e:  # noqa: BLE001 whatever it is, the seed is told with it
                error = e
            world.end()
    sim = world.sim
    del world
    if seed % 50 == 0:
        gc.collect()
    return Outcome(seed, sim.digest, sim.events, error, sim.lines or [])


def complaint(outcome: Outcome) -> str:
    """What to print of a failing seed."""
    return (
        f"seed {outcome.seed}: {type(outcome.error).__name__}: {outcome.error}\n"
        f"replay it: python -m tests.simulation --seed {outcome.seed} --trace"
    )
