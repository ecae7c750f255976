"""One group of 100,000 members: what does a member cost, a restart, a send, and how soon is a removed one silent?"""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness import Figure, Options, Sample, column, differences, in_turns, percentile
from benchmarks.push_process import PushProcess, push_process
from benchmarks.push_sides import WARM_UP_S, Measured
from benchmarks.servers import Server, imray
from imray.client import Client
from imray.core.log_progress import LogProgress
from imray.core.routing import shard_of
from imray.log.reader import read_log
from imray.log.schema import RecordKind
from imray.log.store import LocalStore

QUESTION = "a group of 100,000 members, 90 % of those who listen passively: memory, log, restart, sends, removals"
MEMBERS = 100_000
_AT_ONCE = 1000
"""Members in one request: the most that one takes."""
_SHARDS = 2
_RATE_PER_S = 20.0
_REMOVALS = 20
_REMOVALS_QUICK = 5
_PASSIVE = 0.9
_HTTP_S_MAX = 60.0
_ENVIRONMENT = {"IMRAY_CONNECTIONS_MAX": "20000", "IMRAY_CONNECTIONS_PER_PEER_MAX": "20000"}
"""All listeners come from one address."""


class Group:
    """The group on a running system. Its shard has nothing else; the other shard has nothing at all."""

    def __init__(self, server: Server, options: Options) -> None:
        self.server = server
        self.on = Measured(server, options)
        self.quick = options.quick
        self.seconds = options.seconds
        self.name = next(name for i in itertools.count() if shard_of(name := f"group-{i}", _SHARDS) == 0)
        self.other = next(name for i in itertools.count() if shard_of(name := f"other-{i}", _SHARDS) == 1)
        os.environ["IMRAY_JWT_KEY_FILE"] = str(server.data / "run" / "jwt.key")  # for those who listen, started later
        self._headers = {"Authorization": f"Bearer {server.token}"}
        self._removed = 0

    def user(self, number: int) -> str:
        """Names of 16 bytes."""
        return f"member-{number:09d}"

    def post(self, path: str, content: dict[str, Any], method: str = "POST") -> dict[str, Any]:
        """A change of members."""
        where = f"{self.server.url}/v1/conversations/{self.name}{path}"
        answer = httpx.request(method, where, json=content, headers=self._headers, timeout=_HTTP_S_MAX)
        if answer.status_code not in (200, 201):
            raise RuntimeError(f"status {answer.status_code}: {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found

    def shard_pid(self, shard: int) -> int:
        """Its process."""
        answer = httpx.get(f"{self.server.url}/v1/status", headers=self._headers, timeout=_HTTP_S_MAX)
        return int(answer.json()["shards"][shard]["pid"])

    def fill(self) -> Sample:
        """Create the group, and add all its members."""
        for conv in (self.name, self.other):
            with Client(self.server.url, self.server.token) as client:
                client.send(conv, "first")
        pid = self.shard_pid(0)
        self.post("", {"members": [{"user": self.user(0), "role": "owner"}]}, "PUT")
        self._add(1, _AT_ONCE)  # compiled before the first look
        memory, written, latencies = _rss(pid), self._written(), []
        for first in range(1 + _AT_ONCE, MEMBERS, _AT_ONCE):
            began = time.perf_counter()
            self._add(first, min(_AT_ONCE, MEMBERS - first))
            latencies.append(time.perf_counter() - began)
        added = MEMBERS - 1 - _AT_ONCE
        return {
            "memory": (_rss(pid) - memory) / added,
            "log": (self._written() - written) / added,
            "request_ms": percentile(latencies, 0.5) * 1e3,
        }

    def _add(self, first: int, count: int) -> None:
        added = [{"user": self.user(first + i), "role": "member"} for i in range(count)]
        self.post("/members:add", {"members": added})

    def _written(self) -> int:
        return sum(path.stat().st_size for path in (self.server.data / "wal").rglob("*") if path.is_file())

    def _rows(self) -> int:
        """All rows of the shard's log that are about the group."""
        count = 0
        for segment in read_log(LocalStore(self.server.data), 0, LogProgress()):
            count += sum(conv == self.name for conv in segment.table().column("conv_id").to_pylist())
        return count

    def sends(self, passive_share: float) -> Sample:
        """Messages to members who listen, at a modest pace: rows, the gateway's CPU, and when the active ones have
        it. All listeners but some are passive."""
        listeners = self.on.listeners
        users = [self.user(MEMBERS - 1 - i) for i in range(listeners)]
        rows = self._rows()
        with push_process("benchmarks.members_crowd", self.server) as crowd:
            self._open(crowd, users, int(listeners * passive_share))
            found = self.on.during(crowd, "pace", rate_per_s=_RATE_PER_S)
        rows = self._rows() - rows
        per_message = found["gateway_cpu"] / _RATE_PER_S
        return {
            "rows": rows / found["sent"],
            "cpu_ms": 1e3 * per_message,
            "p99_ms": found["p99_ms"],
            "heads_per_s": found["heads"] / (self.seconds + WARM_UP_S),
        }

    def _open(self, crowd: PushProcess, users: list[str], passive: int) -> None:
        where = {"url": self.server.url, "conv": self.name, "sender": self.user(0)}
        crowd.start("open", **where, users=users, passive=passive)
        crowd.answer()

    def removals(self) -> Sample:
        """Members who listen are removed while messages come."""
        count = _REMOVALS_QUICK if self.quick else _REMOVALS
        first = 1 + self._removed
        self._removed += count
        users = [self.user(first + i) for i in range(count + 1)]
        with push_process("benchmarks.members_crowd", self.server) as crowd:
            self._open(crowd, users, 0)
            found: dict[str, Any] = crowd.ask("remove", count=count, rate_per_s=5 * _RATE_PER_S)
        return found

    def restart(self, shard: int) -> Sample:
        """Seconds from the kill of a shard's process to the ack of a send that started right after it."""
        pid = self.shard_pid(shard)
        with Client(self.server.url, self.server.token, timeout_s=_HTTP_S_MAX) as client:
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            client.send(self.other if shard else self.name, "after the kill", sender=self.user(0))
            elapsed = time.monotonic() - killed
        if self.shard_pid(shard) == pid:
            raise RuntimeError("the ack came from the process that was killed")
        return {"seconds": elapsed}


def _rss(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(options: Options) -> list[Figure]:
    """Fill the group once, then everything else in turns."""
    os.environ.update(_ENVIRONMENT)
    with imray(options, _SHARDS) as server:
        group = Group(server, options)
        filled = group.fill()
        sides = {
            "90 % passive": lambda: group.sends(_PASSIVE),
            "all active": lambda: group.sends(0.0),
            "removals": group.removals,
            "restart": lambda: group.restart(0),
            "restart, empty": lambda: group.restart(1),
        }
        turns = in_turns(sides, options.repeat)
        kinds = _kinds(server)
    return _figures(filled, turns, group.on.listeners, kinds)


def _kinds(server: Server) -> dict[int, int]:
    """How many rows of each kind the group's shard has written."""
    found: dict[int, int] = {}
    for segment in read_log(LocalStore(server.data), 0, LogProgress()):
        for kind in segment.table().column("kind").to_pylist():
            found[kind] = found.get(kind, 0) + 1
    return found


def _figures(filled: Sample, turns: dict[str, list[Sample]], listeners: int, kinds: dict[int, int]) -> list[Figure]:
    passive, active, removals = turns["90 % passive"], turns["all active"], turns["removals"]
    many = f"a send to {listeners:,} members who listen"
    restart = column(turns["restart"], "seconds")
    empty = column(turns["restart, empty"], "seconds")
    return [
        Figure("a member: memory of the shard", "bytes", [filled["memory"]], note=f"of {MEMBERS:,}, names of 16 bytes"),
        Figure("a member: log", "bytes", [filled["log"]]),
        Figure(f"adding {_AT_ONCE:,} members: p50", "ms", [filled["request_ms"]]),
        Figure("a send: rows in the log", "rows", column(passive, "rows"), 1.0, more_is_better=False),
        Figure("rows of members in the log", "rows", [float(kinds.get(RecordKind.MEMBERS, 0))]),
        Figure(f"{many}, 90 % passive: gateway", "CPU ms/message", column(passive, "cpu_ms")),
        Figure(f"{many}, all active: gateway", "CPU ms/message", column(active, "cpu_ms")),
        Figure(f"{many}, 90 % passive: send to push, p99", "ms", column(passive, "p99_ms")),
        Figure(f"{many}, 90 % passive: heads told to a passive one", "heads/s", column(passive, "heads_per_s")),
        Figure("removal: answered, p50", "ms", column(removals, "answered_p50_ms")),
        Figure("removal: answered, slowest", "ms", column(removals, "answered_ms")),
        Figure("removal: told that it is over, p50", "ms", column(removals, "over_p50_ms")),
        Figure("removal: told that it is over, slowest", "ms", column(removals, "over_ms")),
        Figure("removal: told that it is over, after the answer, latest", "ms", column(removals, "late_ms")),
        Figure("removal: last message after the request, latest", "ms", column(removals, "silent_ms")),
        Figure("kill -9 to the next ack, the group's shard", "s", restart),
        Figure("kill -9 to the next ack, an empty shard", "s", empty),
        Figure("the same, what the members cost", "s", differences(restart, empty)),
    ]
