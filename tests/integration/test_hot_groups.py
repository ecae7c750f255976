"""Hot groups on a running system: turned hot and cold under load, their processes killed and stopped; the checker
decides what was kept, and a clock that `stable_seq` moves again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import System, start, stop

from analytics import audit
from imray.client import Outgoing
from imray.core.errors import ImrayError
from tests.checker.events import EventLog
from tests.checker.invariants import check

_DEADLINE_S = 90.0
_STABLE_S_MAX = 10.0
ROOM = "room"


def _digest(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=8).hexdigest()


class Sender(threading.Thread):
    """Sends batches to the room under its own topic, and now and then a retry, by way of another topic's batch."""

    def __init__(self, system: System, events: Path, name: str, others: list[Any]) -> None:
        super().__init__(name=name, daemon=True)
        self.system, self.events, self.others = system, events, others
        self.ended = threading.Event()
        self.acked = 0
        self.slowest_s = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as e:  # noqa: BLE001 the main thread raises it
            self.error = e

    def _run(self) -> None:
        rng = random.Random(self.name)
        with EventLog(self.events, self.name) as log, self.system.client(_DEADLINE_S) as client:
            while not self.ended.is_set():
                batch = [(str(uuid.uuid4()), f"{self.name} {rng.random()}", self.name) for _ in range(20)]
                # as the first one's topic says, all of a request take one way: the retries take another than at first
                again = rng.sample(self.others, min(2, len(self.others))) if rng.random() < 0.3 else []
                for message_id, body, _ in [*batch, *again]:
                    log.send(ROOM, message_id, _digest(body))
                began = time.monotonic()
                outcomes = client.send_batch(
                    [Outgoing(ROOM, body, client_msg_id=i, topic=topic) for i, body, topic in [*batch, *again]]
                )
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                for (message_id, _, _), outcome in zip([*batch, *again], outcomes, strict=True):
                    assert outcome.status in (200, 201), outcome
                    log.ack(ROOM, message_id, outcome.conv_seq, outcome.status == 200, outcome.stable_seq)
                self.acked += len(batch)
                self.others[:] = [*self.others[-200:], *batch[:3]]


def _status(system: System) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {system.token}"}
    shards: list[dict[str, Any]] = httpx.get(f"{system.url}/v1/status", headers=headers, timeout=30).json()["shards"]
    return shards


def _until(condition: Callable[[], Any], what: str, senders: list[Sender], timeout_s: float = _DEADLINE_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        for s in senders:
            if s.error is not None:
                raise s.error
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in {timeout_s:.0f} s: {what}")
        time.sleep(0.02)  # between two looks
    return found


class Room:
    """The system with senders that keep on sending, and what can be done to it."""

    def __init__(self, system: System, folder: Path, senders: int = 4) -> None:
        self.system, self.folder = system, folder
        others: list[Any] = []
        self.senders = [Sender(system, folder / f"s{i}.jsonl", f"s{i}", others) for i in range(senders)]
        self.pauses_s: list[float] = []

    def home(self) -> dict[str, Any]:
        """The figures of the room's shard."""
        with self.system.client(_DEADLINE_S) as client:
            shard = client.head(ROOM).shard

        def look() -> Any:
            found = _status(self.system)[shard]
            return found if "pid" in found else None

        return _until(look, "the home shard answers", self.senders)  # type: ignore[no-any-return]

    def pids(self, who: str) -> list[int]:
        """The processes of the home shard, of its partitions, or of both."""
        home = self.home()
        topics = [t["pid"] for t in home.get("topics", ()) if "pid" in t]
        return {"home": [home["pid"]], "topic": topics[:1], "both": [home["pid"], *topics[:1]]}[who]

    def topics(self, count: int) -> None:
        """Spread the room; again where the answer is lost in a fault."""
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                with self.system.client(20) as client:
                    assert client.set_topics(ROOM, count) == count
                return
            except ImrayError:
                if time.monotonic() > deadline:
                    raise

    def progress(self) -> None:
        """Every sender gets acks, and what was given out by now becomes stable, in time."""
        before = [s.acked for s in self.senders]
        _until(lambda: all(s.acked > b for s, b in zip(self.senders, before, strict=True)), "acks", self.senders)

    def settled(self) -> None:
        """`stable_seq` passes all that was given out when this was called; how long that takes is kept."""
        began = time.monotonic()
        with self.system.client(_DEADLINE_S) as client:
            head = client.head(ROOM).conv_seq
            _until(lambda: client.head(ROOM).stable_seq >= head, "stable_seq moves", self.senders)
        self.pauses_s.append(time.monotonic() - began)

    def end(self) -> None:
        """Stop sending, read everything, and have it judged."""
        for s in self.senders:
            s.ended.set()
        for s in self.senders:
            s.join(_DEADLINE_S)
            assert not s.is_alive()
            if s.error is not None:
                raise s.error
        with EventLog(self.folder / "reader.jsonl", "reader") as log, self.system.client(_DEADLINE_S) as client:
            head = client.head(ROOM).conv_seq
            _until(lambda: client.head(ROOM).stable_seq >= head, "all is stable", [])
            after: int | None = 0
            while after is not None:
                asked = time.monotonic_ns()
                page = client.history(ROOM, after=after, limit=5000)
                rows = [(m.conv_seq, m.client_msg_id, _digest(m.body)) for m in page.messages]
                upto = page.next if page.next is not None else page.stable_seq
                holes = [(h.from_seq, h.to_seq, h.reason) for h in page.holes]
                log.read(ROOM, after, upto, rows, holes, page.stable_seq, t0=asked, final=True)
                after = page.next
        report = check(sorted(self.folder.glob("*.jsonl")))
        assert report.ok, report.to_text()
        acks, slowest = sum(s.acked for s in self.senders), max(s.slowest_s for s in self.senders)
        told = [f"{p:.1f}" for p in self.pauses_s]
        print(f"{acks} acks, longest pause of a sender {slowest:.1f} s, stable again after {', '.join(told)} s")


@contextlib.contextmanager
def _room(tmp_path: Path) -> Iterator[Room]:
    system = start(tmp_path / "data", "--shards", "1")
    try:
        room = Room(system, tmp_path)
        for s in room.senders:
            s.start()
        room.progress()
        yield room
        room.end()
    finally:
        stop(system)
    found = audit.run(tmp_path / "data")
    assert found.ok, found.to_text(True)


def _stop_and_go(pids: list[int], meanwhile: Callable[[], None]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        meanwhile()
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.timeout(300)
def test_hot_and_cold_under_load(tmp_path: Path) -> None:
    """By an operator, with K changed on the way: senders see a pause at most, retries get the first number."""
    with _room(tmp_path) as room:
        for count in (2, 4, 1, 3, 0, 2, 0):
            room.topics(count)
            room.progress()
            room.settled()
            groups = room.home()["hot"]
            assert [g["topics"] for g in groups] == ([count] if count else [])
        assert max(s.slowest_s for s in room.senders) < _STABLE_S_MAX


@pytest.mark.parametrize("who", ["topic", "both", pytest.param("home", marks=pytest.mark.slow)])
@pytest.mark.timeout(400)
def test_killed_while_hot_and_while_turning(tmp_path: Path, who: str) -> None:
    """SIGKILL while hot, while turning hot, while K changes and while turning cold."""
    with _room(tmp_path) as room:
        for before, after in ((0, 2), (2, 2), (2, 3), (3, 1), (1, 0)):
            room.topics(before)
            room.progress()
            turning = threading.Thread(target=room.topics, args=(after,))
            turning.start()
            for pid in room.pids(who if before else "home"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            turning.join(_DEADLINE_S)
            room.progress()
            room.settled()
        assert max(room.pauses_s) < _STABLE_S_MAX


@pytest.mark.parametrize("who", ["topic", "home", pytest.param("both", marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_stopped_and_continued_while_hot(tmp_path: Path, who: str) -> None:
    """SIGSTOP, then SIGCONT when others have gone on (a partition) or when it was missed (the home shard)."""
    with _room(tmp_path) as room:
        room.topics(2)
        room.progress()

        def meanwhile() -> None:
            if who == "topic":
                room.progress()
                room.settled()
            else:
                time.sleep(1.5)  # as long as it is stopped, nothing can happen that could be awaited

        for _ in range(2):
            _stop_and_go(room.pids(who), meanwhile)
            room.progress()
            room.settled()
        assert max(room.pauses_s) < _STABLE_S_MAX
