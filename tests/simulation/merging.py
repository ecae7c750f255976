"""Mergers under simulation: production code over the simulated store. They are killed, stopped, and two at once."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from imray.history.merger import Merger
from imray.settings import Settings
from tests.simulation.kernel import MS, Process
from tests.simulation.store import Disk, SimStore
from tests.simulation.threads import SimWorker

_PAUSE_US_MAX = 8 * MS
_DAMAGE = {"corrupt", "unexpected"}
"""Words of what a merger holds back where a file is damaged, or by a bug: only derived files rot here."""


def merging_settings(settings: Settings, rng: random.Random) -> Settings:
    """Bounds so near that a short schedule merges, replaces and deletes. `rng`: dice of their own, so that schedules
    without a merger stay as they were."""
    return replace(
        settings,
        merge_step_bytes_max=rng.choice([5_000, 20_000, 1_000_000]),
        run_file_bytes=rng.choice([3_000, 1_000_000]),
        run_group_bytes=rng.choice([300, 100_000]),
        checkpoint_wait_s=rng.choice([0.01, 0.04]),
        checkpoint_segments_min=rng.choice([1, 3]),
        read_s_max=rng.choice([0.0, 0.02]),
        pin_s_max=0.05,
        orphan_s=rng.choice([0.05, 10.0]),
    )


class MergerProcess:
    """A process that merges shard 0, step after step, until it is killed."""

    def __init__(self, process: Process, disk: Disk, settings: Settings) -> None:
        self.process = process
        self._sim = process.sim
        self._worker = SimWorker(process, 1)
        store = SimStore(disk, process)
        self._merger = Merger(store, 1, settings, lambda: self._sim.now / 1e6, lambda: 1_000_000 + self._sim.now // MS)
        process.post(lambda: process.spawn(self._live()).add_done_callback(self._ended))

    async def _live(self) -> None:
        while True:
            again = await self._worker.run(self._merger.step, 0)
            for hold in self._merger._work[0].holds.details():
                assert _DAMAGE.isdisjoint(hold.replace(":", " ").split()), hold
            await self.process.sleep(0 if again else int(self._sim.rng.random() * _PAUSE_US_MAX))

    def _ended(self, living: Any) -> None:
        if not living.cancelled() and (error := living.exception()) is not None:
            self._sim.failed(self.process, "merge", error)
