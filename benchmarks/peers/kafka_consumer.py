"""The consumer of the Kafka scheme: `python -m benchmarks.peers.kafka_consumer PORT FILE`.

Reads the partition in order, numbers what it has not seen, stores it in SQLite with a full fsync, then answers. Ids are
checked against a dict in memory (an index on disk would cost more), read back from the table at a start. Where it
reads on after a crash does not matter: it begins at the start of the log, and what it has already is known by its id.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.peers.kafka_clients import (
    CONSUMER_OPTIONS,
    LOG,
    PRODUCER_OPTIONS,
    REPLY,
    SENDER_BYTES,
    TAG_BYTES,
    client_options,
    topic_of,
)

_BATCH_ROWS = 20_000
_WAIT_S = 0.003
"""librdkafka hands a batch over when it is full or after this long."""


class _Sequencer:
    """The table, and what of it is in memory."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA wal_autocheckpoint = 20000")
        self._db.execute("CREATE TABLE IF NOT EXISTS messages (conv_seq INTEGER PRIMARY KEY, id BLOB, body BLOB)")
        self._known: dict[bytes, int] = dict(self._db.execute("SELECT id, conv_seq FROM messages"))
        self._last = max(self._known.values(), default=0)

    def take(self, messages: list[Message]) -> tuple[bytes, np.ndarray]:
        """Number and store; all tags, and a number for each message."""
        values = [m.value() for m in messages]
        rows, seqs, known, last = [], [], self._known, self._last
        for key, value in zip([m.key() for m in messages], values, strict=True):
            seq = known.get(key)
            if seq is None:
                last += 1
                known[key] = seq = last
                rows.append((seq, key, value[TAG_BYTES:]))
            seqs.append(seq)
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO messages VALUES (?, ?, ?)", rows)
        self._db.execute("COMMIT")
        self._last = last
        return b"".join([v[:TAG_BYTES] for v in values]), np.array(seqs, np.int64)


def _answer(producer: Any, tags: bytes, seqs: np.ndarray) -> None:
    """One message to each process of senders."""
    fields = [("sender", f"V{SENDER_BYTES}"), ("place", "<u2"), ("turn", "<u2"), ("position", "<u2")]
    told = np.frombuffer(tags, fields)
    senders = told["sender"].view("<u4") if told["sender"].flags.c_contiguous else told["sender"].copy().view("<u4")
    for sender in np.unique(senders):
        mine = senders == sender
        reply = np.empty(int(mine.sum()), REPLY)
        for name in ("place", "turn", "position"):
            reply[name] = told[name][mine]
        reply["seq"] = seqs[mine]
        producer.produce(topic_of(sender.tobytes()), reply.tobytes(), partition=0)
    producer.poll(0)


def _contiguous(messages: list[Message], position: int) -> list[Message]:
    """Those that follow on the position without a hole.

    Tansu's fetch at times passes over a batch that another producer is just writing; Kafka's would not. What it passed
    over is in the log, and read at the next attempt.
    """
    offsets = np.array([m.offset() for m in messages], np.int64)
    holes = np.flatnonzero(offsets != position + np.arange(len(offsets)))
    return messages[: holes[0]] if len(holes) else messages


def main(port: int, path: str) -> None:
    """For ever: it is ended from outside."""
    sequencer = _Sequencer(path)
    options = client_options(port)
    producer = Producer(options | PRODUCER_OPTIONS)
    reading = {"group.id": "none", "enable.auto.commit": False, "fetch.wait.max.ms": 50}
    consumer = Consumer(options | reading | CONSUMER_OPTIONS)
    consumer.assign([TopicPartition(LOG, 0, 0)])
    position = 0
    while True:
        fetched = [m for m in consumer.consume(_BATCH_ROWS, _WAIT_S) if m.error() is None]
        got = _contiguous(fetched, position)
        position += len(got)
        if len(got) < len(fetched):
            consumer.seek(TopicPartition(LOG, 0, position))
        if got:
            _answer(producer, *sequencer.take(got))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
