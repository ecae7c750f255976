"""Senders through Kafka's protocol: produce alone, or produce and wait for the answers of the one who numbers.

Driven through confluent-kafka, Python's binding of librdkafka: one producer for each process of senders, one record
batch for each batch, and only the last message of it asks for a report (a report for each costs a third of the rate).
"""

from __future__ import annotations

import asyncio
import os
import threading
from functools import cache
from typing import Any

import numpy as np

from benchmarks.peers.work import NO_NUMBER, Batch

LOG = "messages"
REPLY = np.dtype([("place", "<u2"), ("turn", "<u2"), ("position", "<u2"), ("seq", "<i8")])
"""What the consumer answers for each message; the first three are the message's own tag."""
TAG_BYTES = 10
"""Before each body: the process of the sender (4 bytes), its place, turn and position (2 each)."""
SENDER_BYTES = 4
_TIMEOUT_S = 10.0
CONSUMER_OPTIONS = {
    "fetch.message.max.bytes": 16_000_000,
    "queued.min.messages": 50_000,
    "check.crcs": False,
    "enable.partition.eof": False,
}


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


def create(port: int, topic: str) -> None:
    """A topic with one partition."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient(client_options(port))
    for made in admin.create_topics([NewTopic(topic, 1, 1)], operation_timeout=_TIMEOUT_S).values():
        made.result(_TIMEOUT_S)


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


class RawClient:
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
        create(port, topic_of(self.sender))
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

    def end(self) -> None:
        """Stop reading: an answer did not come. A broker that was killed has forgotten the topic, or has one made anew
        by whoever wrote to it, and a consumer's place in the old one means nothing there."""
        self._over.set()

    @property
    def over(self) -> bool:
        """Whether it has stopped."""
        return self._over.is_set()

    def _take(self, replies: np.ndarray) -> None:
        for place in np.unique(replies["place"]).tolist():
            turn, numbers, done = self._waiting.get(place, (-1, replies["seq"], None))
            mine = replies[(replies["place"] == place) & (replies["turn"] == turn)]
            numbers[mine["position"]] = mine["seq"]
            if done is not None and not done.done() and numbers.all():
                done.set_result(None)


@cache
def _made(port: int) -> _Answers:
    return _Answers(port, _process(port))


def _answers(port: int) -> _Answers:
    if _made(port).over:
        _made.cache_clear()
    return _made(port)


class SchemeClient:
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
        messages = [{"key": i, "value": flat[at : at + TAG_BYTES] + body} for at, i, body in rows]
        try:
            await self._process.produce(messages)
            await done
        except BaseException:
            self._answers.end()
            raise
        return numbers

    async def close(self) -> None:
        """The producer is the process's."""


def raw_client(port: int) -> RawClient:
    """A place in flight that only produces."""
    return RawClient(_process(port))


def scheme_client(port: int) -> SchemeClient:
    """A place in flight that waits for its numbers."""
    return SchemeClient(_process(port), _answers(port))
