"""A storm around one conversation: a thousand listeners in some processes, paced senders, and all that may befall them.

Owns the load and the ways to disturb it. Does not own the system (the fixture that starts one) nor the judgement
(`tests.checker`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from imray.client import Client, Outgoing
from imray.core.errors import ImrayError
from tests.checker.events import EventLog
from tests.support.listeners import digest

_ROOT = Path(__file__).parents[2]
_DEADLINE_S = 90.0
_LINE_S_MAX = 60.0
_POLL_S = 0.05
ROOM = "storm"


class Running(Protocol):
    """A system, as the integration tests start it."""

    url: str
    token: str

    def client(self, timeout_s: float = 60) -> Client:
        """A client of it."""

    def gateway_pid(self) -> int:
        """The process that listens on the port."""


class StormSender(threading.Thread):
    """Sends one to three messages about once a `pace_s`, and now and then one again, and records what it sees."""

    def __init__(self, system: Running, events: Path, name: str, pace_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.ended = threading.Event()
        self.acked = 0
        self.slowest_s = 0.0
        self.error: BaseException | None = None
        self._system = system
        self._events = events
        self._pace_s = pace_s

    def run(self) -> None:
        try:
            self._run()
        except BaseException as e:  # noqa: BLE001 the main thread raises it
            self.error = e

    def _run(self) -> None:
        rng = random.Random(self.name)
        old: list[tuple[str, str]] = []
        with EventLog(self._events, self.name) as log, self._system.client(_DEADLINE_S) as client:
            while not self.ended.wait(rng.uniform(0, 2 * self._pace_s)):
                batch = [(str(uuid.uuid4()), f"{self.name} {rng.random()}") for _ in range(rng.randint(1, 3))]
                again = old if rng.random() < 0.1 else []
                for message_id, body in [*batch, *again]:
                    log.send(ROOM, message_id, digest(body))
                began = time.monotonic()
                sent = [Outgoing(ROOM, body, client_msg_id=i, topic=self.name) for i, body in [*batch, *again]]
                outcomes = client.send_batch(sent)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                for (message_id, _), outcome in zip([*batch, *again], outcomes, strict=True):
                    assert outcome.status in (200, 201), outcome
                    log.ack(ROOM, message_id, outcome.conv_seq, outcome.status == 200, outcome.stable_seq)
                self.acked += len(batch)
                old = batch[:1]


class Listeners:
    """One process of devices (`tests.support.listeners`)."""

    def __init__(self, system: Running, events: Path, first: int, count: int) -> None:
        self.count = count
        command = [sys.executable, "-m", "tests.support.listeners", system.url, ROOM, str(first), str(count)]
        self._process = subprocess.Popen(
            [*command, str(events)],
            cwd=_ROOT,
            env=os.environ | {"IMRAY_TOKEN": system.token},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One line to it, and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(_LINE_S_MAX, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps({"op": op} | arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise RuntimeError(f"a process of listeners ended with {self._process.wait(_DEADLINE_S)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it, however it is."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Storm:
    """The system with all that goes on around it."""

    def __init__(self, system: Running, folder: Path, listeners: int, senders: int, processes: int = 3) -> None:
        self.system = system
        self.recoveries_s: list[tuple[str, float]] = []
        """After each disturbance, how long until every sender had an ack, and every listener what was stable then."""
        self.counts: Counter[str] = Counter()
        self._folder = folder
        self._rng = random.Random(listeners)
        shares = [listeners // processes + (i < listeners % processes) for i in range(processes)]
        firsts = [sum(shares[:i]) for i in range(processes)]
        self.senders = [StormSender(system, folder / f"s{i}.jsonl", f"s{i}", 1.0) for i in range(senders)]
        for s in self.senders:
            s.start()
        self.crowds = [
            Listeners(system, folder / f"listeners{first}.jsonl", first, count)
            for first, count in zip(firsts, shares, strict=True)
        ]

    @property
    def listeners(self) -> int:
        """How many listen."""
        return sum(crowd.count for crowd in self.crowds)

    def each(self, op: str, **arguments: Any) -> list[dict[str, Any]]:
        """Ask all processes of listeners."""
        return [crowd.ask(op, **arguments) for crowd in self.crowds]

    def current(self, upto: int) -> int:
        """How many listeners were shown everything up to there."""
        return sum(int(answer["current"]) for answer in self.each("status", upto=upto))

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = _DEADLINE_S) -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            for s in self.senders:
                if s.error is not None:
                    raise s.error
            if time.monotonic() > deadline:
                raise TimeoutError(f"not in {timeout_s:.0f} s: {what}; {[a['counts'] for a in self.each('status')]}")
            time.sleep(_POLL_S)  # between two looks

    def stable(self) -> int:
        """What can be read now."""
        with self.system.client(_DEADLINE_S) as client:
            return client.head(ROOM).stable_seq

    def all_current(self, after_what: str) -> None:
        """Every sender gets another ack, and every listener what is stable then; how long that takes is kept."""
        began = time.monotonic()
        acked = [s.acked for s in self.senders]
        self.until(
            lambda: all(s.acked > a for s, a in zip(self.senders, acked, strict=True)), f"acks after {after_what}"
        )
        upto = self.stable()
        self.until(lambda: self.current(upto) == self.listeners, f"all are current after {after_what}")
        self.recoveries_s.append((after_what, time.monotonic() - began))

    def turn(self, partitions: int) -> None:
        """Spread the conversation over so many partitions (0: cold); again where the answer is lost in a fault."""
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                with self.system.client(20) as client:
                    assert client.set_topics(ROOM, partitions) == partitions
                return
            except ImrayError:
                if time.monotonic() > deadline:
                    raise

    def cut(self, share: float) -> None:
        """Reset some connections."""
        self.each("cut", share=share)

    def delay(self, share: float, seconds_max: float) -> None:
        """Let some connections read nothing for a while."""
        self.each("delay", share=share, seconds_max=seconds_max)

    def kill(self, who: str) -> None:
        """SIGKILL to the gateway, the home shard, or one of its partitions."""
        pids = [self.system.gateway_pid()] if who == "gateway" else self._pids(who)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._rng.choice(pids), signal.SIGKILL)

    def _pids(self, who: str) -> Sequence[int]:
        """Those of the room's home shard or of its partitions, out of the status."""
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            with contextlib.suppress(ImrayError, httpx.HTTPError):
                with self.system.client(_DEADLINE_S) as client:
                    home = client.head(ROOM).shard
                headers = {"Authorization": f"Bearer {self.system.token}"}
                shard = httpx.get(f"{self.system.url}/v1/status", headers=headers, timeout=10).json()["shards"][home]
                found = [shard["pid"]] if who == "shard" else [t["pid"] for t in shard["topics"] if "pid" in t]
                if found:
                    return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {who} says its process")
            time.sleep(_POLL_S)  # between two looks

    def end_of_sending(self) -> None:
        """Senders stop; an error of theirs is raised."""
        for s in self.senders:
            s.ended.set()
        for s in self.senders:
            s.join(_DEADLINE_S)
            assert not s.is_alive(), f"{s.name} does not end"
            if s.error is not None:
                raise s.error

    def read_back(self) -> None:
        """The last complete reading, recorded, once all that was given out is stable; every listener has it, too."""
        with EventLog(self._folder / "reader.jsonl", "reader") as log, self.system.client(_DEADLINE_S) as client:
            head = client.head(ROOM).conv_seq
            self.until(lambda: self.stable() >= head, "all is stable")
            self.until(lambda: self.current(head) == self.listeners, "every listener has the last message")
            after: int | None = 0
            while after is not None:
                asked = time.monotonic_ns()
                page = client.history(ROOM, after=after, limit=5000)
                rows = [(m.conv_seq, m.client_msg_id, digest(m.body)) for m in page.messages]
                upto = page.next if page.next is not None else page.stable_seq
                holes = [(h.from_seq, h.to_seq, h.reason) for h in page.holes]
                log.read(ROOM, after, upto, rows, holes, page.stable_seq, t0=asked, final=True)
                after = page.next
        for answer in self.each("end"):
            self.counts.update(answer["counts"])

    def close(self) -> None:
        """Leave nothing behind."""
        for s in self.senders:
            s.ended.set()
        for crowd in self.crowds:
            crowd.close()
        for s in self.senders:
            s.join(_DEADLINE_S)
