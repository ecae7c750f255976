"""The systems, in the order of the table."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from benchmarks.peers.peer import Peer, Row

_MODULES = ("imray_engine", "redis_counter", "postgres_row_lock", "nats_jetstream", "kafka_partition", "matrix_synapse")


@cache
def peers() -> tuple[Peer, ...]:
    """One object for each module of a system."""
    return tuple(cast(Peer, importlib.import_module(f"benchmarks.peers.{name}").PEER) for name in _MODULES)


@cache
def _by_key() -> dict[str, tuple[Peer, Row]]:
    return {row.key: (peer, row) for peer in peers() for row in peer.ROWS}


def keys() -> tuple[str, ...]:
    """Of all rows."""
    return tuple(_by_key())


def peer_of(key: str) -> Peer:
    """The system of a row."""
    return _by_key()[key][0]


def row_of(key: str) -> Row:
    """A row by its key."""
    return _by_key()[key][1]
