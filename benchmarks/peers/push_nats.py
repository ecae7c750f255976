"""NATS tells listeners: an ordered JetStream consumer for each, or core subscriptions beside the stream.

https://docs.nats.io/nats-concepts/jetstream/consumers: an ordered consumer is a push consumer without acks, in memory,
with flow control and heartbeats; it begins at any number, and is made anew from the last one after a break. A core
subscription is what the stream itself has: it is told when the message comes, before that is stored, and keeps nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.peers.catalogue import row_of
from benchmarks.peers.nats_jetstream import PEER, STREAM, SUBJECT
from benchmarks.peers.peer import Address, Server
from benchmarks.peers.push_ear import Ear, Hearing
from benchmarks.peers.push_ways import Way
from benchmarks.peers.work import Client

_CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"name":"ear"}\r\n'
_PING = b"PING\r\n"
_PONG = b"PONG\r\n"
_FLOW = re.compile(rb"HMSG \S+ \d+ (\S+) \d+ \d+\r\nNATS/1\.0 100 FlowControl Request\r\n\r\n\r\n")
_STALLED = re.compile(rb"Nats-Consumer-Stalled: (\S+)\r\n\r\n\r\n")
_HEARTBEAT_NS = 5_000_000_000
_AWAY_NS = 300_000_000_000
"""After which the server forgets a consumer without a listener: as long as the libraries of NATS have it."""


class _Core(Ear):
    """A subscription to the subject."""

    def greeting(self) -> bytes:
        return _CONNECT + f"SUB {SUBJECT} 1\r\n".encode() + _PING

    def greeted(self, data: bytes) -> bool:
        return data.endswith(_PONG)

    def around(self, data: bytes, at: int) -> int:
        if _PING in data[at:]:
            self.write(_PONG)
            at = len(data) if data.endswith(_PING) else at
        elif data.startswith(b"-ERR") or b"\r\n-ERR" in data[at:]:
            self._crowd.fail(f"{data[at : at + 200]!r}")
        return at


class _Ordered(_Core):
    """A consumer of its own, as the libraries of NATS make an ordered one."""

    def greeting(self) -> bytes:
        name = os.urandom(8).hex()
        deliver = f"_INBOX.{name}.told"
        config = {
            "name": name,
            "deliver_subject": deliver,
            "deliver_policy": "all",
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": _HEARTBEAT_NS,
            "inactive_threshold": _AWAY_NS,
            "mem_storage": True,
            "num_replicas": 1,
            "filter_subject": SUBJECT,
        }
        ask = json.dumps({"stream_name": STREAM, "config": config, "action": "create"}).encode()
        create = f"$JS.API.CONSUMER.CREATE.{STREAM}.{name}.{SUBJECT}"
        made = f"SUB {deliver} 1\r\nSUB _INBOX.{name}.made 2\r\nPUB {create} _INBOX.{name}.made {len(ask)}\r\n"
        return _CONNECT + made.encode() + ask + b"\r\n"

    def greeted(self, data: bytes) -> bool:
        if b'"error"' in data:
            self._crowd.fail(f"no consumer: {data[-300:]!r}")
        return b"consumer_create_response" in data and data.endswith(b"}\r\n")

    def around(self, data: bytes, at: int) -> int:
        """Flow control is answered, or the server stops."""
        if b"100 FlowControl" in data:
            for found in _FLOW.finditer(data):
                self.write(b"PUB %b 0\r\n\r\n" % found[1])
                at = max(at, found.end())
        if b"Stalled" in data:
            for found in _STALLED.finditer(data):
                self.write(b"PUB %b 0\r\n\r\n" % found[1])
                at = max(at, found.end())
        return super().around(data, at)


class _Telling:
    def serve(self, way: Way, folder: Path) -> AbstractContextManager[Server]:
        """As the row has it."""
        return PEER.serve(row_of(way.row_key), folder)

    def ear(self, way: Way, address: Address) -> Callable[[Hearing, bool], Ear]:
        """By the way's key."""
        return _Core if way.key.endswith("core") else _Ordered

    async def connect(self, way: Way, address: Address) -> Client:
        """The row's own."""
        return await PEER.connect(row_of(way.row_key), address)


TELLING = _Telling()
