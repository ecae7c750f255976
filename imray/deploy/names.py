"""What a deployment's actors are called inside its namespace."""

from __future__ import annotations

from imray.core.routing import home_of
from imray.rpc.directory import MERGER, reader_of_log

MERGER_NAME = "merger"
"""There is one in a deployment."""


def shard(number: int) -> str:
    """A shard."""
    return f"shard-{number:04d}"


def partition(home: int, slot: int) -> str:
    """A partition of a home shard. Sorts after every shard: what ends in order of names ends it after its home."""
    return f"partition-{home:04d}-{slot:02d}"


def history(number: int) -> str:
    """A history reader. The first has the name that the only one had in 0.1: over a system that runs, `up` finds it."""
    return f"history-{number}" if number else "history"


def of_log(log: int) -> str:
    """Who serves a log: a shard, a partition, or for the numbers of `imray.rpc.directory` a history reader or the
    merger."""
    if log == MERGER:
        return MERGER_NAME
    reader = reader_of_log(log)
    if reader is not None:
        return history(reader)
    home, slot = home_of(log)
    return partition(home, slot) if slot else shard(home)
