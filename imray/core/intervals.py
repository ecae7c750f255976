"""Which segments a sealed interval covers, and what its files are called. What is in them: `imray.log.sealed`."""

from __future__ import annotations

import msgspec


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

    def name(self, kind: str) -> str:
        """The name in the store of its `ids`, `bloom` or `postings` file."""
        suffix = "parquet" if kind == "postings" else "arrow"
        tag = f"-{self.tag}" if self.tag else ""
        return f"{sealed_prefix(self.shard)}{self.first:020d}-{self.last:020d}{tag}.{kind}.{suffix}"

    @property
    def names(self) -> list[str]:
        """All its files."""
        return [self.name(kind) for kind in ("ids", "bloom", "postings")]
