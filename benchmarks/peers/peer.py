"""What a system under test is: its words for the table, its server, its clients, and what it has stored."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.judge import Stored
from benchmarks.peers.work import Client, Shape

Address = dict[str, Any]
"""What a client needs to find its server: plain values, it travels as JSON."""


class Server(Protocol):
    """A running server over a folder of its own."""

    address: Address

    def kill(self) -> None:
        """`kill -9` of every process of it, at once."""

    def restart(self) -> None:
        """Start it again over the same folder, at the same address."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a system in one configuration."""

    key: str
    title: str
    ack: str
    """What its ack means."""
    shape: Shape
    durable: bool
    """On disk before the ack."""
    once: bool = True
    """A retry gets the first number again, and writes nothing."""
    numbered: bool = True
    """The ack tells the number."""
    group: str = "batches"
    """What it is compared with: "batches" of many messages, or "single" sends over HTTP."""
    ours: bool = False


class Peer(Protocol):
    """A module of this package: everything about one system."""

    ROWS: tuple[Row, ...]

    def missing(self) -> str | None:
        """What has to be installed first; None: nothing."""

    def version(self) -> str:
        """Of the server and of the client's library, for the description of the machine; "" where it has them."""

    def serve(self, row: Row, folder: Path) -> AbstractContextManager[Server]:
        """Start it in an empty folder; it is gone when the block ends."""

    async def connect(self, row: Row, address: Address) -> Client:
        """A connection of a sender."""

    def stored(self, row: Row, address: Address, folder: Path) -> Stored:
        """Everything that it has of the conversation."""
