"""PostgreSQL tells listeners: NOTIFY with the bodies of a batch, in the transaction that writes it.

https://www.postgresql.org/docs/15/sql-notify.html: it goes out when the transaction has committed, to each connection
that listens, which is a process of the server; a payload has less than 8,000 bytes. Whoever is away is not told, and
reads the table. Listeners speak the protocol directly
(https://www.postgresql.org/docs/15/protocol-message-formats.html).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.peer import Address
from benchmarks.peers.postgres_row_lock import SETTINGS, TABLES, USER, Database, open_typed
from benchmarks.peers.push_ear import Ear, Hearing
from benchmarks.peers.push_ways import LISTENERS, Way
from benchmarks.peers.work import CONV, Batch

_CHANNEL = "told"
_PROTOCOL = 0x00030000
_READY = b"Z\x00\x00\x00\x05I"
_CONNECTIONS = {"max_connections": str(LISTENERS + 100)}
_SEND = f"SELECT s.last, pg_notify('{_CHANNEL}', $4) FROM send($1, $2, $3) s"


class _Listener(Ear):
    def __init__(self, crowd: Hearing, sampled: bool) -> None:
        super().__init__(crowd, sampled)
        self._asked = False

    def greeting(self) -> bytes:
        fields = b"".join(f"{name}\0{value}\0".encode() for name, value in (("user", USER), ("database", "postgres")))
        return struct.pack("!ii", len(fields) + 9, _PROTOCOL) + fields + b"\0"

    def greeted(self, data: bytes) -> bool:
        if data.startswith(b"E"):
            self._crowd.fail(f"refused: {data[:200]!r}")
        if not data.endswith(_READY):
            return False
        if not self._asked:
            self._asked = True
            query = f"LISTEN {_CHANNEL}\0".encode()
            self.write(b"Q" + struct.pack("!i", len(query) + 4) + query)
            return False
        return data.count(_READY) == 2


class _Client:
    def __init__(self, connection: Any, statement: Any) -> None:
        self._connection = connection
        self._statement = statement

    async def send(self, batch: Batch) -> np.ndarray:
        """One transaction: the row's call, and the notice."""
        told = b"".join(batch.bodies).decode()
        row = await self._statement.fetchrow(CONV, batch.id_list, batch.bodies, told)
        return np.arange(row["last"] + 1, row["last"] + 1 + batch.rows, dtype=np.int64)

    async def close(self) -> None:
        """Without a farewell."""
        self._connection.terminate()


class _Telling:
    @contextlib.contextmanager
    def serve(self, way: Way, folder: Path) -> Iterator[Database]:
        """As the row has it, with room for the connections of the listeners."""
        server = Database(folder, SETTINGS | _CONNECTIONS | {"autovacuum": "off"})
        try:
            server.prepare(TABLES)
            yield server
        finally:
            server.stop()

    def ear(self, way: Way, address: Address) -> Callable[[Hearing, bool], Ear]:
        """There is one kind."""
        return _Listener

    async def connect(self, way: Way, address: Address) -> _Client:
        """As the row's, with another statement."""
        connection = await open_typed(address)
        return _Client(connection, await connection.prepare(_SEND))


TELLING = _Telling()
