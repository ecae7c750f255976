"""One measurement each of live delivery: rates beside what they cost the gateway, and memory.

Owns how each is driven. Does not own which are asked for (`benchmarks.push`), nor what happens when all connections are
cut (`benchmarks.push_cut`).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Sample
from benchmarks.processes import descendants, process_cpu
from benchmarks.push_process import PushProcess, push_process
from benchmarks.push_wire import JSON
from benchmarks.servers import Server, imray

WARM_UP_S = 1.0
FRAME_ROWS = 50
GROUP = 10
_SENDERS = 8
_WINDOW = 4
"""Frames in flight of each sender, and to the listeners of one conversation."""
_DEAF_BODY_BYTES = 4096
"""What a listener that does not read leaves lying must pass all buffers within the measurement."""
_DEAF_GROUP = 100
_FLOOD_S = 3.0
_WARM = 50
_IDLE = 2000
_DEAF_BYTES_PER_S = 8 * 1024 * 1024
"""Of all deliveries together, at most: others must not be slow because the machine is busy."""


class Measured:
    """A running system, and its gateway."""

    def __init__(self, server: Server, options: Options) -> None:
        self.server = server
        self.options = options
        below = descendants(server.pid)
        self.gateway_pid = next(pid for pid, words in below.items() if words[0].startswith("ray::Gateway"))
        self._numbers = itertools.count()
        self.listeners = 200 if options.quick else 1000
        self.group_rate_per_s = 0.0
        """Messages a second that `one_group` told to all listeners: what `send_to_push` takes half of."""

    def names(self, count: int) -> list[str]:
        """Conversations that are new each time, with names of one length."""
        return [f"push-{next(self._numbers):08d}" for _ in range(count)]

    def during(self, process: PushProcess, op: str, **arguments: Any) -> dict[str, float]:
        """Run something after a warm-up, and what the gateway used of the CPU meanwhile."""
        begin_s = time.perf_counter() + WARM_UP_S
        end_s = begin_s + self.options.seconds
        process.start(op, begin_s=begin_s, end_s=end_s, **arguments)
        time.sleep(max(0.0, begin_s - time.perf_counter()))
        before = process_cpu(self.gateway_pid)
        time.sleep(max(0.0, end_s - time.perf_counter()))
        used = process_cpu(self.gateway_pid) - before
        return process.answer(self.options.seconds) | {"gateway_cpu": used.total_s / self.options.seconds}

    def rss(self) -> int:
        """Bytes of memory that the gateway has in use."""
        fields = Path(f"/proc/{self.gateway_pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def sends(on: Measured, subprotocol: str) -> Sample:
    """Acked sends in frames of 50 over some connections, all into one conversation."""
    return _sends(on, subprotocol, on.names(1), _SENDERS, FRAME_ROWS, _WINDOW)


def single_sends(on: Measured) -> Sample:
    """One message a frame, one frame in flight on each of many connections, each in a conversation of its own."""
    return _sends(on, JSON, on.names(on.listeners), on.listeners, 1, 1)


def _sends(
    on: Measured, subprotocol: str, conversations: Sequence[str], connections: int, rows: int, window: int
) -> Sample:
    with push_process("benchmarks.push_senders", on.server) as senders:
        names = list(conversations)
        where = on.server.url
        senders.ask("open", url=where, subprotocol=subprotocol, conversations=names, connections=connections, rows=rows)
        return on.during(senders, "run", window=window)


def deliveries(on: Measured) -> Sample:
    """Many listeners of one conversation, frames of 50 messages sent as fast as all are told."""
    return _told(on, 1, FRAME_ROWS, _WINDOW)


def one_group(on: Measured) -> Sample:
    """One message a frame to many listeners: the next is written to the log while the one before is told."""
    found = _told(on, 1, 1, 2)
    on.group_rate_per_s = found["told_per_s"] / on.listeners
    return found


def small_groups(on: Measured) -> Sample:
    """One message a frame to groups of 10: in each, the next is sent when all were told the one before."""
    return _told(on, on.listeners // GROUP, 1, 1)


def _told(on: Measured, conversations: int, rows: int, window: int) -> Sample:
    with push_process("benchmarks.push_crowd", on.server) as crowd:
        crowd.ask("open", url=on.server.url, conversations=on.names(conversations), listeners=on.listeners, seed=1)
        return on.during(crowd, "drive", rows=rows, window=window)


def send_to_push(on: Measured) -> Sample:
    """From when a message was due to when a listener has it, at half the rate of `one_group`, evenly paced."""
    with push_process("benchmarks.push_crowd", on.server) as crowd:
        crowd.ask("open", url=on.server.url, conversations=on.names(1), listeners=on.listeners, seed=1)
        return on.during(crowd, "pace", rows=1, rate_per_s=max(1.0, on.group_rate_per_s / 2))


def beside_the_deaf(on: Measured, deaf: int) -> Sample:
    """The time from send to push for some listeners while `deaf` others do not read; large bodies."""
    rate_per_s = _DEAF_BYTES_PER_S / _DEAF_BODY_BYTES / _DEAF_GROUP * 5
    with push_process("benchmarks.push_crowd", on.server) as crowd:
        crowd.ask("open", url=on.server.url, conversations=on.names(1), listeners=_DEAF_GROUP + deaf, seed=1)
        crowd.ask("deafen", listeners=deaf)
        # what they leave lying fills every buffer on the way, and then what the gateway keeps for one listener
        now = time.perf_counter()
        flood = {"rows": FRAME_ROWS, "window": 2, "body_bytes": _DEAF_BODY_BYTES}
        crowd.ask("drive", begin_s=now, end_s=now + _FLOOD_S, **flood)
        found = on.during(crowd, "pace", rows=1, rate_per_s=rate_per_s, body_bytes=_DEAF_BODY_BYTES)
        crowd.ask("hear")
        return found


def memory(options: Options) -> Sample:
    """What a fresh gateway grows by: for a connection that does nothing, and when that listens to a quiet conversation
    of its own. A gateway that had many connections before has room that it would use again."""
    with imray(options) as server, push_process("benchmarks.push_crowd", server) as crowd:
        on = Measured(server, options)
        crowd.ask("open", url=server.url, conversations=on.names(_WARM), listeners=_WARM, seed=1)
        before = on.rss()
        names = on.names(_IDLE)
        crowd.ask("open", url=server.url, conversations=names, listeners=_IDLE, seed=2, idle=True, sends=False)
        idle = on.rss()
        crowd.ask("wake")
        return {"idle": (idle - before) / _IDLE / 1024, "listening": (on.rss() - before) / _IDLE / 1024}
