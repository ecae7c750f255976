"""How systems tell listeners what was sent, in the order of the table, and why others are not asked.

Owns the list and its words. Does not own how each is spoken (`push_nats`, `push_redis`, `push_postgres`), nor what is
measured (`push_run`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

from benchmarks.peers.peer import Address, Server
from benchmarks.peers.push_ear import Ear, Hearing
from benchmarks.peers.work import Client

QUICK_LISTENERS: Final = 200
LISTENERS: Final = 1_000


@dataclass(frozen=True)
class Way:
    """One way of telling: a line of the table of pushes."""

    key: str
    row_key: str
    """The row whose server, settings and ack it has."""
    module: str
    how: str
    """In the words of the table."""
    durable_first: bool = True
    """A listener is told only what is as durable as the row's ack says."""
    again: bool = True
    """A listener that comes back is told what it missed."""
    one_order: bool = True
    """All listeners see one order, whoever sends."""


class Telling(Protocol):
    """A module's object: one system, as its listeners meet it."""

    def serve(self, way: Way, folder: Path) -> AbstractContextManager[Server]:
        """Start it in an empty folder; it is gone when the block ends."""

    def ear(self, way: Way, address: Address) -> Callable[[Hearing, bool], Ear]:
        """What makes a listener's connection: of a crowd, and whether its times are looked at."""

    async def connect(self, way: Way, address: Address) -> Client:
        """A connection of a sender."""


IMRAY: Final = Way("imray-ws", "imray-single", "", "WebSocket at its gateway, sends over WebSocket, too")
_CORE: Final = "core subscriptions to the stream's subject"
_ORDERED: Final = "an ordered push consumer for each listener"
WAYS: Final = (
    IMRAY,
    Way("redis-always-xread", "redis-always", "push_redis", "XREAD BLOCK for each listener"),
    Way("redis-always-pubsub", "redis-always", "push_redis", "PUBLISH in the same script", again=False),
    Way("postgres-notify", "postgres", "push_postgres", "NOTIFY with the bodies, in the same transaction", again=False),
    Way("nats-always-ordered", "nats-always", "push_nats", _ORDERED),
    Way("nats-always-core", "nats-always", "push_nats", _CORE, durable_first=False, again=False, one_order=False),
    Way("nats-ordered", "nats", "push_nats", _ORDERED),
    Way("nats-core", "nats", "push_nats", _CORE, durable_first=False, again=False, one_order=False),
)
_CONSUMERS: Final = "each listener would be a consumer of librdkafka, which has threads of its own in the generator"
NOT_ASKED: Final = {
    "imray-ray": "programs on the cluster have no listeners of their own: they use the gateway, as the single sends do",
    "imray-http": "the gateway is the same as that of the single sends",
    "redis-everysec": "listeners are told as with `appendfsync always`",
    "kafka-scheme": _CONSUMERS,
    "kafka-raw": _CONSUMERS,
    "synapse": "not asked: each listener would be a user of its own, registered and joined, with a `/sync` in flight",
}
"""Rows without a way, and the reason."""


def ways_of(row_key: str) -> tuple[Way, ...]:
    """Of a row: the first one stands in the table of speeds."""
    return tuple(way for way in WAYS if way.row_key == row_key)


def way_of(key: str) -> Way:
    """A way by its key."""
    return next(way for way in WAYS if way.key == key)


def telling_of(way: Way) -> Telling:
    """The system of a way; imray has a generator of its own (`benchmarks.push_crowd`)."""
    return cast(Telling, importlib.import_module(f"benchmarks.peers.{way.module}").TELLING)
