"""Faults 1 and 12 on a running system: processes are killed at random moments under load; the checker decides."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
import uuid
from pathlib import Path

import pytest
from conftest import System, start, stop

from imray.client import Outgoing
from imray.core.errors import UnavailableError
from tests.checker.events import EventLog
from tests.checker.invariants import check

_DEADLINE_S = 90.0


def digest(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=8).hexdigest()


class Sender(threading.Thread):
    """A client process in small: sends batches and now and then a retry, and records what it sees."""

    def __init__(self, system: System, events: Path, name: str, convs: list[str]) -> None:
        super().__init__(name=name, daemon=True)
        self.system, self.events, self.convs = system, events, convs
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
        old: list[tuple[str, str, str]] = []
        with EventLog(self.events, self.name) as log, self.system.client(_DEADLINE_S) as client:
            while not self.ended.is_set():
                batch = [(rng.choice(self.convs), str(uuid.uuid4()), f"{self.name} {rng.random()}") for _ in range(20)]
                batch += rng.sample(old, min(2, len(old)))
                for conv, message_id, body in batch:
                    log.send(conv, message_id, digest(body))
                began = time.monotonic()
                outcomes = client.send_batch(
                    [Outgoing(conv, body, client_msg_id=message_id) for conv, message_id, body in batch]
                )
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                for (conv, message_id, _), outcome in zip(batch, outcomes, strict=True):
                    assert outcome.status in (200, 201), outcome
                    log.ack(conv, message_id, outcome.conv_seq, outcome.status == 200, outcome.stable_seq)
                self.acked += len(batch)
                old = batch[:20]


def read_back(system: System, events: Path, convs: list[str], bodies: bool = True) -> None:
    """The last complete read of every conversation, recorded for the checker."""
    with EventLog(events, "reader") as log, system.client(_DEADLINE_S) as client:
        for conv in convs:
            after: int | None = 0
            while after is not None:
                asked = time.monotonic_ns()
                page = client.history(conv, after=after, limit=5000)
                rows = [(m.conv_seq, m.client_msg_id, digest(m.body)) for m in page.messages]
                upto = page.next if page.next is not None else page.stable_seq
                holes = [(h.from_seq, h.to_seq, h.reason) for h in page.holes]
                log.read(conv, after, upto, rows, holes, page.stable_seq, t0=asked, final=True)
                after = page.next


def run_with_kills(system: System, tmp_path: Path, kills: int, victim: str) -> list[Sender]:
    convs = [f"{victim}-{i}" for i in range(6)]
    senders = [Sender(system, tmp_path / f"sender{i}.jsonl", f"sender{i}", convs) for i in range(3)]
    for s in senders:
        s.start()
    rng = random.Random(7)
    for _ in range(kills):
        before = [s.acked for s in senders]
        wait_for(lambda before=before: all(s.acked > b for s, b in zip(senders, before, strict=True)), senders)
        pause = threading.Event()
        pause.wait(rng.random() * 0.5)  # the random moment; not a wait for anything
        pid = gateway_pid(system) if victim == "gateway" else rng.choice(sorted(shard_pids(system).values()))
        os.kill(pid, signal.SIGKILL)
    before = [s.acked for s in senders]
    wait_for(lambda: all(s.acked > b for s, b in zip(senders, before, strict=True)), senders)
    for s in senders:
        s.ended.set()
    for s in senders:
        s.join(_DEADLINE_S)
        assert not s.is_alive()
        if s.error is not None:
            raise s.error
    read_back(system, tmp_path / "reader.jsonl", convs)
    return senders


def gateway_pid(system: System) -> int:
    """The gateway's process. An answer of the one that was killed before may have come after its end."""
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        try:
            return system.gateway_pid()
        except LookupError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def shard_pids(system: System) -> dict[int, int]:
    deadline = time.monotonic() + _DEADLINE_S
    while len(pids := system.shard_pids()) < 2:
        if time.monotonic() > deadline:
            raise UnavailableError("no shard answers")
    return pids


def wait_for(condition, senders: list[Sender]) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        for s in senders:
            if s.error is not None:
                raise s.error
        if time.monotonic() > deadline:
            raise TimeoutError("the senders make no progress")
        time.sleep(0.01)


@pytest.mark.parametrize(("victim", "kills"), [("shard", 10), ("gateway", 4)])
@pytest.mark.timeout(400)
def test_kills_under_load(tmp_path: Path, victim: str, kills: int) -> None:
    system = start(tmp_path / "data")
    try:
        senders = run_with_kills(system, tmp_path, kills, victim)
    finally:
        stop(system)
    report = check(sorted(tmp_path.glob("*.jsonl")))
    assert report.ok, report.to_text()
    print(f"{sum(s.acked for s in senders)} acks, longest pause {max(s.slowest_s for s in senders):.1f} s")
