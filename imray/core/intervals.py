"""Which segments a sealed interval covers, and what its files are called. What is in them: `imray.log.sealed`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

VERSION = 2
"""Of the intervals that are written: one with all that a retry is told. One of version 1 says where an id stands, and
the segment says the rest."""


def sealed_prefix(shard: int) -> str:
    """The folder of a shard's sealed intervals."""
    return f"sealed/shard={shard:04d}/"


class Interval(msgspec.Struct, frozen=True):
    """Which segments an interval covers, and how many ids it holds."""

    shard: int
    first: int
    last: int
    """Of the shard's own log."""
    ids: int
    tag: str = ""
    """Its own part of its files' names: nobody else's try writes, or deletes, the same files."""
    partitions: tuple[tuple[int, int, int], ...] | None = msgspec.field(default=None, name="topics")
    """Slot, first and last segment of each partition's log; None: made by a version that did not say."""
    version: int = 1
    """Up to 1: its ids are those of `imray.log.sealed_first`; 2: those of `imray.log.id_run`."""
    parts: int = 1
    """A power of two: its ids are in so many files, by the highest bits of their fingerprints."""

    def name(self, kind: str) -> str:
        """The name in the store of its `bloom` or `postings` file, or of the `ids` of an interval of version 1."""
        return f"{self._stem}.{kind}.{'parquet' if kind == 'postings' else 'arrow'}"

    def run_name(self, part: int) -> str:
        """The name in the store of a part of its ids."""
        return f"{self._stem}.{part:04d}.ids.run"

    @property
    def _stem(self) -> str:
        tag = f"-{self.tag}" if self.tag else ""
        return f"{sealed_prefix(self.shard)}{self.first:020d}-{self.last:020d}{tag}"

    @property
    def ids_names(self) -> list[str]:
        """The files that have its ids."""
        return [self.name("ids")] if self.version < VERSION else [self.run_name(part) for part in range(self.parts)]

    @property
    def names(self) -> list[str]:
        """All its files."""
        return [*self.ids_names, self.name("bloom"), self.name("postings")]


def overlap(partitions: Sequence[tuple[tuple[int, int, int], ...] | None]) -> bool:
    """Whether some of these cover one segment of a partition's log twice."""
    ends: dict[int, int] = {}
    for one in partitions:
        for slot, first, last in one or ():
            if first <= ends.get(slot, 0):
                return True
            ends[slot] = last
    return False


def joined(partitions: Sequence[tuple[tuple[int, int, int], ...] | None]) -> tuple[tuple[int, int, int], ...] | None:
    """What adjacent intervals cover of partitions' logs, as one; None where one of them does not say."""
    ranges: dict[int, tuple[int, int]] = {}
    for one in partitions:
        if one is None:
            return None
        for slot, first, last in one:
            low, high = ranges.get(slot, (first, last))
            ranges[slot] = min(low, first), max(high, last)
    return tuple((slot, low, high) for slot, (low, high) in sorted(ranges.items()))
