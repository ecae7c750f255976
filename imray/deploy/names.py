"""What a deployment's actors are called inside its namespace."""

from __future__ import annotations


def shard(number: int) -> str:
    """A shard."""
    return f"shard-{number:04d}"


def partition(home: int, slot: int) -> str:
    """A partition of a home shard. Sorts after every shard: what ends in order of names ends it after its home."""
    return f"partition-{home:04d}-{slot:02d}"
