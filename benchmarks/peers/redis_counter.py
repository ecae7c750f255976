"""Redis as a sequencer: one Lua call for each batch takes numbers, keeps a map of ids and appends to a stream.

https://redis.io/docs/latest/develop/programmability/eval-intro/: a script runs alone, and its effects reach the
append-only file as one transaction.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.daemons import Daemon, needs, version_of
from benchmarks.peers.judge import Stored
from benchmarks.peers.peer import Address, Row
from benchmarks.peers.work import CONV, ID_BYTES, Batch, Shape
from benchmarks.servers import free_port

_SHAPE = Shape(2_500, 2)
ALWAYS = Row(
    "redis-always",
    "Redis, appendfsync always",
    "in the append-only file, fsynced",
    _SHAPE,
    durable=True,
)
EVERY_SECOND = Row(
    "redis-everysec",
    "Redis, appendfsync everysec (its default with a file)",
    "in memory, on disk within about a second",
    _SHAPE,
    durable=False,
)
# One HMGET for all ids, then one HSET and one XADD for each new message: fewer calls were not faster.
# A call of Lua takes some 7,000 results at most (unpack), hence the slices.
SCRIPT = """
local seqs, counter, ids, stream = {}, KEYS[1], KEYS[2], KEYS[3]
local n = #ARGV / 2
local next = tonumber(redis.call('GET', counter) or '0')
local first = next
for low = 1, n, 5000 do
  local high = math.min(low + 4999, n)
  local known = redis.call('HMGET', ids, unpack(ARGV, low, high))
  for i = low, high do
    local seq = known[i - low + 1]
    if seq then
      seqs[i] = tonumber(seq)
    else
      next = next + 1
      if redis.call('HSETNX', ids, ARGV[i], next) == 1 then
        redis.call('XADD', stream, next .. '-0', 'i', ARGV[i], 'b', ARGV[n + i])
        seqs[i] = next
      else
        next = next - 1
        seqs[i] = tonumber(redis.call('HGET', ids, ARGV[i]))
      end
    end
  end
end
redis.call('INCRBY', counter, next - first)
return seqs
"""
KEYS = (f"seq:{CONV}", f"ids:{CONV}", f"log:{CONV}")
_READ_ROWS = 20_000


class _Server:
    def __init__(self, folder: Path, row: Row) -> None:
        port = free_port()
        self.address: Address = {"port": port}
        policy = "always" if row is ALWAYS else "everysec"
        command = [_binary() or "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--appendonly", "yes", "--appendfsync", policy, "--save", ""]
        # a rewrite of the file in mid-run would cost Redis a fork and a second write of everything
        command += ["--auto-aof-rewrite-percentage", "0"]
        self._daemon = Daemon(command, folder, lambda: _answers(port))
        self.kill, self.restart, self.stop = self._daemon.kill, self._daemon.start, self._daemon.stop


def _binary() -> str | None:
    return shutil.which("redis-server")


def _answers(port: int) -> bool:
    """Up, and done with loading its file."""
    import redis

    try:
        with redis.Redis(port=port, socket_timeout=2) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
        return False


class _Client:
    def __init__(self, connection: Any, script: str) -> None:
        self._connection = connection
        self._script = connection.register_script(script)

    async def send(self, batch: Batch) -> np.ndarray:
        """One call of the script."""
        return np.array(await self._script(keys=KEYS, args=[*batch.id_list, *batch.bodies]), np.int64)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.aclose()


class _Redis:
    ROWS = (ALWAYS, EVERY_SECOND)

    def missing(self) -> str | None:
        """Debian's package."""
        return needs({"Debian package redis-server": _binary()}, {"redis": "redis", "hiredis": "hiredis"})

    def version(self) -> str:
        """Server and client."""
        said = version_of([_binary() or "", "--version"], "redis", "hiredis")
        return re.sub(r" sha=\S+| malloc=\S+| bits=\S+| build=\S+", "", said)

    @contextlib.contextmanager
    def serve(self, row: Row, folder: Path) -> Iterator[_Server]:
        """A redis-server of our own; the machine's, if one runs, is left alone."""
        server = _Server(folder, row)
        try:
            yield server
        finally:
            server.stop()

    async def connect(self, row: Row, address: Address, script: str = SCRIPT) -> _Client:
        """A connection with the C parser (hiredis)."""
        import redis.asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # a lost connection is the sender's to see: it counts what it sends again
        never = Retry(NoBackoff(), 0)
        connection = redis.asyncio.Redis(port=address["port"], single_connection_client=True, retry=never)
        await connection.initialize()
        await connection.ping()
        return _Client(connection, script)

    def stored(self, row: Row, address: Address, folder: Path) -> Stored:
        """The stream, from its first entry to its last."""
        import redis

        ids: list[bytes] = []
        numbers: list[int] = []
        with redis.Redis(port=address["port"]) as client:
            low = "-"
            while entries := client.xrange(KEYS[2], low, "+", count=_READ_ROWS):
                ids += [fields[b"i"] for _, fields in entries]
                numbers += [int(entry.split(b"-")[0]) for entry, _ in entries]
                low = f"{numbers[-1] + 1}-0"
        flat = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, ID_BYTES)
        return Stored(flat, np.array(numbers, np.int64))


PEER = _Redis()
