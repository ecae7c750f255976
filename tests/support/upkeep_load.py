"""The load of the test of upkeep under kills: senders, a reader, and one that turns the room hot and cold.

Owns what clients do and record. Knows nothing of processes, kills and files.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from conftest import System

from imray.client import Client, Outgoing
from imray.core.errors import ImrayError
from tests.checker.events import EventLog

DEADLINE_S = 90.0
ROOM = "room"
_CONVS_AT_START = 4000
_SENT_TO = 24
_SENDERS = 4
_PAUSE_S_MAX = 0.08
_BATCH_MAX = 12
_HOT_S = 9.0
_COLD_S = 2.0


class Said(NamedTuple):
    """A message that was acked, as it was sent, and its first number."""

    conv: str
    id: str
    body: str
    topic: str | None
    seq: int = 0


def digest(body: str | bytes) -> str:
    """What stands for a body in the record."""
    return hashlib.blake2b(body.encode() if isinstance(body, str) else body, digest_size=8).hexdigest()


def send(client: Client, log: EventLog, batch: Sequence[Said]) -> list[tuple[Said, bool]]:
    """Send and record messages; each with the number it was answered, and whether it was there before.

    One goes alone, several as a batch. AssertionError where an answer is neither 200 nor 201."""
    for m in batch:
        log.send(m.conv, m.id, digest(m.body))
    found: list[tuple[Said, bool]] = []
    if len(batch) == 1:
        m = batch[0]
        one = client.send(m.conv, m.body, client_msg_id=m.id, topic=m.topic)
        log.ack(m.conv, m.id, one.conv_seq, one.duplicate, one.stable_seq)
        return [(m._replace(seq=one.conv_seq), one.duplicate)]
    outcomes = client.send_batch([Outgoing(m.conv, m.body, client_msg_id=m.id, topic=m.topic) for m in batch])
    for m, outcome in zip(batch, outcomes, strict=True):
        assert outcome.stored, outcome
        assert outcome.conv_seq is not None
        log.ack(m.conv, m.id, outcome.conv_seq, outcome.status == 200, outcome.stable_seq)
        found.append((m._replace(seq=outcome.conv_seq), outcome.status == 200))
    return found


class Worker(threading.Thread):
    """Works until `ended` is set; its error is kept for whoever looks."""

    def __init__(self, system: System, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.system = system
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as e:  # noqa: BLE001 the main thread raises it
            self.error = e

    def work(self) -> None:
        """To be said by each."""
        raise NotImplementedError


class Sender(Worker):
    """Sends single messages and small batches over several conversations, and now and then an old one again."""

    def __init__(self, system: System, name: str, seed: int, events: Path, convs: list[str]) -> None:
        super().__init__(system, name)
        self._rng = random.Random(f"{seed} {name}")
        self._events, self._convs = events, convs
        self.old: list[list[Said]] = []
        """What may be sent again: what was there at the start, and what each sender was acked, its own too."""
        self.kept: list[Said] = []
        self.acked = 0
        self.again = 0
        self.slowest_s = 0.0

    def work(self) -> None:
        with EventLog(self._events, self.name) as log, self.system.client(DEADLINE_S) as client:
            while not self.ended.is_set():
                self._turn(client, log)
                # a pace: the files of a long run must stay countable
                self.ended.wait(self._rng.random() * _PAUSE_S_MAX)

    def _turn(self, client: Client, log: EventLog) -> None:
        rng = self._rng
        count = 1 if rng.random() < 0.4 else rng.randint(2, _BATCH_MAX)
        new = [self._message() for _ in range(count)]
        batch = new + self._some_old() if rng.random() < 0.4 else new
        # a retry may also come first: as the first message of the room says, all of a request take one way
        rng.shuffle(batch)
        if rng.random() < 0.1:
            batch = self._some_old()[:1] or batch
        began = time.monotonic()
        found = send(client, log, batch)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        sent = {m.id for m in new}
        self.kept += [m for m, _ in found if m.id in sent]
        self.acked += len(found)

    def _message(self) -> Said:
        conv = ROOM if self._rng.random() < 0.3 else self._rng.choice(self._convs)
        body = f"{self.name} {self._rng.random()} {'x' * self._rng.randint(0, 200)}"
        return Said(conv, str(uuid.uuid4()), body, self.name if conv == ROOM else None)

    def _some_old(self) -> list[Said]:
        kept = [k for k in self.old if k]
        found = {m.id: m for m in (self._rng.choice(self._rng.choice(kept)) for _ in range(self._rng.randint(1, 3)))}
        self.again += len(found)
        return list(found.values())


class Reader(Worker):
    """Reads pages from anywhere in the history, so that the history reader has work when it is killed."""

    def __init__(self, system: System, seed: int, events: Path, convs: list[str]) -> None:
        super().__init__(system, "reader-under-way")
        self._rng = random.Random(f"{seed} {self.name}")
        self._events, self._convs = events, convs
        self.pages = 0

    def work(self) -> None:
        with EventLog(self._events, self.name) as log, self.system.client(DEADLINE_S) as client:
            while not self.ended.is_set():
                conv = self._rng.choice(self._convs)
                after = self._rng.randint(0, client.head(conv).stable_seq)
                read_page(client, log, conv, after, 100, final=False)
                self.pages += 1
                self.ended.wait(self._rng.random() * 2 * _PAUSE_S_MAX)  # a pace, as a sender's


class Heater(Worker):
    """Spreads the room over two partitions and back, again and again; most of the time it is hot."""

    def __init__(self, system: System) -> None:
        super().__init__(system, "heater")
        self.turns = 0

    def work(self) -> None:
        for count in itertools.cycle((2, 0)):
            self._partitions(count)
            self.turns += 1
            if self.ended.wait(_HOT_S if count else _COLD_S):  # how long it stays so
                return

    def _partitions(self, count: int) -> None:
        """Again where the answer is lost in a fault: to ask twice is to ask once."""
        deadline = time.monotonic() + DEADLINE_S
        while not self.ended.is_set():
            try:
                with self.system.client(20) as client:
                    assert client.set_topics(ROOM, count) == count
                return
            except ImrayError:
                if time.monotonic() > deadline:
                    raise
                self.ended.wait(0.2)  # between two tries


def read_page(client: Client, log: EventLog, conv: str, after: int, limit: int, final: bool) -> int | None:
    """Read and record one page; where the next one begins."""
    asked = time.monotonic_ns()
    page = client.history(conv, after=after, limit=limit)
    rows = [(m.conv_seq, m.client_msg_id, digest(m.body)) for m in page.messages]
    upto = page.next if page.next is not None else page.stable_seq
    holes = [(h.from_seq, h.to_seq, h.reason) for h in page.holes]
    log.read(conv, after, upto, rows, holes, page.stable_seq, t0=asked, final=final)
    return page.next


class Load:
    """All that clients do to one system, and what they keep of it."""

    def __init__(self, system: System, seed: int, folder: Path) -> None:
        self.system, self.seed, self._folder = system, seed, folder
        names = [f"conv-{i}" for i in range(_CONVS_AT_START)]
        sent_to = names[:_SENT_TO]
        self.convs = [*names[: 2 * _SENT_TO], ROOM]
        """All that is recorded, and read at the end."""
        self._at_start = self._fill(names)
        self.senders = [
            Sender(system, f"sender{i}", seed, folder / f"sender{i}.jsonl", sent_to) for i in range(_SENDERS)
        ]
        for s in self.senders:
            s.old = [self._at_start, *(other.kept for other in self.senders)]
        self.reader = Reader(system, seed, folder / "under-way.jsonl", [*sent_to, ROOM])
        self.heater = Heater(system)
        self.workers: list[Worker] = [*self.senders, self.reader, self.heater]

    def _fill(self, names: list[str]) -> list[Said]:
        """Many conversations, so that a checkpoint has something to write; what of it is recorded."""
        known = [Said(name, str(uuid.uuid4()), f"first in {name}", None) for name in [*self.convs[:-1], ROOM]]
        others = [Outgoing(name, "hello", client_msg_id=str(uuid.uuid4())) for name in names[2 * _SENT_TO :]]
        with EventLog(self._folder / "start.jsonl", "start") as log, self.system.client(DEADLINE_S) as client:
            assert all(o.stored for o in client.send_batch(others))
            return [m for m, _ in send(client, log, known)]

    def check(self) -> None:
        """Raise the first error of a worker."""
        for w in self.workers:
            if w.error is not None:
                raise AssertionError(f"{w.name}: {type(w.error).__name__}: {w.error}") from w.error

    def end(self) -> None:
        """End all workers."""
        for w in self.workers:
            w.ended.set()
        for w in self.workers:
            w.join(DEADLINE_S)
            assert not w.is_alive(), f"{w.name} does not end"
        self.check()

    def send_again(self, count: int) -> int:
        """Send old messages once more; each must be answered with its first number. How many there were."""
        rng = random.Random(self.seed)
        kept = [m for s in self.senders for m in s.kept]
        sample = self._at_start + rng.sample(kept, min(count, len(kept)))
        wrong: list[str] = []
        with EventLog(self._folder / "again.jsonl", "again") as log, self.system.client(DEADLINE_S) as client:
            for at in range(0, len(sample), 200):
                batch = sample[at : at + 200]
                for before, (now, duplicate) in zip(batch, send(client, log, batch), strict=True):
                    if not duplicate or now.seq != before.seq:
                        wrong.append(f"{before.conv} {before.id}: {before.seq}, now {now.seq}, duplicate {duplicate}")
        assert not wrong, f"{len(wrong)} old ids are not known as they were: {wrong[:10]}"
        return len(sample)

    def read_all(self) -> None:
        """The last complete reading of every conversation that is recorded."""
        deadline = time.monotonic() + DEADLINE_S
        with EventLog(self._folder / "last.jsonl", "last") as log, self.system.client(DEADLINE_S) as client:
            for conv in self.convs:
                head = client.head(conv).conv_seq
                while (stable := client.head(conv).stable_seq) < head:
                    assert time.monotonic() < deadline, f"{conv}: stable_seq stays at {stable}, the head is {head}"
                    threading.Event().wait(0.05)  # between two looks
                after: int | None = 0
                while after is not None:
                    after = read_page(client, log, conv, after, 1000, final=True)
