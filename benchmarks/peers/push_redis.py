"""Redis tells listeners: a blocked XREAD of the stream for each, or PUBLISH in the script that appends.

https://redis.io/docs/latest/commands/xread/: who names the last id that it has misses nothing, and asks again after
each answer. PUBLISH keeps nothing for whoever is away. With `appendfsync always` both kinds of answers leave after the
fsync of the turn of the event loop that made them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.peers.catalogue import row_of
from benchmarks.peers.peer import Address, Server
from benchmarks.peers.push_ear import Ear, Hearing
from benchmarks.peers.push_ways import Way
from benchmarks.peers.redis_counter import KEYS, PEER, SCRIPT
from benchmarks.peers.work import Client

_LOG = KEYS[2]
_CHANNEL = "told"
_PUBLISH = f"redis.call('PUBLISH', '{_CHANNEL}', table.concat(ARGV, '', n + 1))\nreturn seqs"
_ENTRIES = re.compile(rb"\*1\r\n\*2\r\n\$\d+\r\n%b\r\n\*(\d+)\r\n" % _LOG.encode())
_GREETED = b"+PONG\r\n"


def _command(*words: str) -> bytes:
    parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(parts)}".encode()


class _Reader(Ear):
    """XREAD BLOCK from the last number that it has. The script numbers entries from 1 on without a gap."""

    def __init__(self, crowd: Hearing, sampled: bool) -> None:
        super().__init__(crowd, sampled)
        self._upto = 0

    def greeting(self) -> bytes:
        return _command("PING")

    def greeted(self, data: bytes) -> bool:
        if not data.endswith(_GREETED):
            return False
        self._ask()
        return True

    def _ask(self) -> None:
        self.write(_command("XREAD", "BLOCK", "0", "STREAMS", _LOG, f"{self.heard}-0"))

    def around(self, data: bytes, at: int) -> int:
        """An answer is whole when as many entries came as its head says; what comes after is the end of its line."""
        head = _ENTRIES.search(data)
        if head is not None:
            self._upto += int(head[1])
        elif data.startswith(b"-"):
            self._crowd.fail(f"no entries: {data[:200]!r}")
        if self.heard == self._upto and at:
            self._ask()
        return at if at or head is None else head.end()


class _Subscriber(Ear):
    def greeting(self) -> bytes:
        return _command("SUBSCRIBE", _CHANNEL)

    def greeted(self, data: bytes) -> bool:
        return data.endswith(b":1\r\n")


class _Telling:
    def serve(self, way: Way, folder: Path) -> AbstractContextManager[Server]:
        """As the row has it."""
        return PEER.serve(row_of(way.row_key), folder)

    def ear(self, way: Way, address: Address) -> Callable[[Hearing, bool], Ear]:
        """By the way's key."""
        return _Reader if way.key.endswith("xread") else _Subscriber

    async def connect(self, way: Way, address: Address) -> Client:
        """The row's own, with its script or one that also publishes."""
        script = SCRIPT if way.key.endswith("xread") else SCRIPT.replace("return seqs", _PUBLISH)
        return await PEER.connect(row_of(way.row_key), address, script)


TELLING = _Telling()
