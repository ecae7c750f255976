"""What a deployment's actors are called inside its namespace."""

from __future__ import annotations

from imray.core.routing import home_of
from imray.rpc.directory import HISTORY


def shard(number: int) -> str:
    """A shard."""
    return f"shard-{number:04d}"


def partition(home: int, slot: int) -> str:
    """A partition of a home shard. Sorts after every shard: what ends in order of names ends it after its home."""
    return f"partition-{home:04d}-{slot:02d}"


def history() -> str:
    """The history reader."""
    return "history"


def of_log(log: int) -> str:
    """Who serves a log: a shard, a partition, or the history reader for HISTORY."""
    if log == HISTORY:
        return history()
    home, slot = home_of(log)
    return partition(home, slot) if slot else shard(home)
