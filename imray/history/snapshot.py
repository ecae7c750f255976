"""What the table consists of at one version: runs, their files, and how far each log is merged.

Pure values. Who reads them from the store: `imray.history.table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from imray.core.routing import home_of
from imray.log.marks import LogEnd


class Covered(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Segments of a log that a run holds, all of them."""

    log: int
    first: int
    last: int


class RunFile(msgspec.Struct, frozen=True):
    """One live file of the table. A run is sorted as a whole, and has one file or several."""

    name: str
    """In the store."""
    shard: int
    run: str
    """The same for all files of a run, and for no other run's."""
    tier: int
    """0: made of segments; n: made of runs of tier n - 1."""
    bytes: int
    rows: int
    first: str
    """The lowest conv_id."""
    last: str
    """The highest conv_id."""
    covers: tuple[Covered, ...]
    """The whole run's."""
    ends: tuple[LogEnd, ...]
    """Where each of these logs stands after the run."""


@dataclass(frozen=True)
class Run:
    """A sorted run: its files in the order of their rows."""

    files: tuple[RunFile, ...]

    @property
    def tier(self) -> int:
        """As `RunFile.tier`."""
        return self.files[0].tier

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(f.bytes for f in self.files)

    @property
    def covers(self) -> tuple[Covered, ...]:
        """As `RunFile.covers`."""
        return self.files[0].covers

    @property
    def ends(self) -> tuple[LogEnd, ...]:
        """As `RunFile.ends`."""
        return self.files[0].ends


@dataclass(frozen=True)
class TableSnapshot:
    """The table at a version. Version -1 with nothing: there is no table yet."""

    version: int = -1
    digest: str = ""
    """Hex, of the commit that made the version: the next one names it."""
    runs: Mapping[int, Sequence[Run]] = field(default_factory=dict)
    """By shard, in the order in which their segments were written."""
    merged: Mapping[int, int] = field(default_factory=dict)
    """By log: its last segment that is in a run (the table's application transactions)."""
    fences: Mapping[int, int] = field(default_factory=dict)
    """By shard: how often runs that were being written were shut out (`imray.history.table.Table.fence_runs`)."""
    committed_ms: Mapping[str, int] = field(default_factory=dict)
    """By name of a live file: when it was committed, ms since 1970 UTC by its writer's clock. Says, orders nothing."""
    table_id: str = ""
    """The table's own, a UUID as text."""
    created_ms: int = 0

    def end(self, log: int) -> LogEnd | None:
        """Where a log stands after what is merged of it; None: nothing is."""
        home, _ = home_of(log)
        found = [end for run in self.runs.get(home, ()) for end in run.ends if end.log == log]
        return max(found, key=lambda end: end.segment, default=None)

    @property
    def files(self) -> dict[str, RunFile]:
        """All live files, by name."""
        return {f.name: f for runs in self.runs.values() for run in runs for f in run.files}
