"""PostgreSQL as a sequencer: a lock on the conversation's row, a unique index over the ids, one call for each batch.

One server-side function, arrays as arguments. In READ COMMITTED each statement of a function sees what was committed
before it began, so the second one, behind the lock, sees all ids of the calls before.
https://www.postgresql.org/docs/15/transaction-iso.html#XACT-READ-COMMITTED
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.daemons import Daemon, needs, other_user, version_of
from benchmarks.peers.judge import Stored
from benchmarks.peers.peer import Address, Row
from benchmarks.peers.work import CONV, ID_BYTES, Batch, Shape
from benchmarks.servers import free_port

ROW_LOCK = Row(
    "postgres",
    "PostgreSQL, row lock and unique index (its default: durable)",
    "committed: in the write-ahead log, fsynced",
    Shape(5_000, 1),
    durable=True,
)
_BINARIES = "/usr/lib/postgresql"
USER = "bench"
# More than the packaged defaults give it, so that it neither waits for checkpoints nor reads back what it wrote.
SETTINGS = {
    "shared_buffers": "2GB",
    "max_wal_size": "16GB",
    "min_wal_size": "1GB",
    "checkpoint_timeout": "30min",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_buffers": "64MB",
    "wal_compression": "lz4",
    "listen_addresses": "127.0.0.1",
}
_SCHEMA = """
CREATE TABLE conversations (conv_id text PRIMARY KEY, last_seq bigint NOT NULL);
CREATE TABLE messages (
    conv_id text NOT NULL, conv_seq bigint NOT NULL, client_msg_id uuid NOT NULL, body bytea NOT NULL,
    PRIMARY KEY (conv_id, conv_seq), UNIQUE (conv_id, client_msg_id));
CREATE FUNCTION send(conv text, ids uuid[], bodies bytea[], OUT last bigint, OUT known uuid[], OUT seqs bigint[])
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    fresh bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(conv));
    SELECT last_seq INTO last FROM conversations WHERE conv_id = conv FOR UPDATE;
    SELECT coalesce(array_agg(client_msg_id), '{}'), array_agg(conv_seq) INTO known, seqs
        FROM messages WHERE conv_id = conv AND client_msg_id = ANY (ids);
    INSERT INTO messages SELECT conv, last + row_number() OVER (ORDER BY at), id, body
        FROM unnest(ids, bodies) WITH ORDINALITY AS sent(id, body, at) WHERE id <> ALL (known);
    GET DIAGNOSTICS fresh = ROW_COUNT;
    UPDATE conversations SET last_seq = last + fresh WHERE conv_id = conv;
END $$;
"""


TABLES = f"{_SCHEMA} INSERT INTO conversations VALUES ('{CONV}', 0);"


def programs() -> Path | None:
    """The folder with initdb and postgres: the newest installed version of Debian's, or what is on the PATH."""
    found = sorted(Path(_BINARIES).glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    at = str(found[-1]) if found else shutil.which("initdb")
    return Path(at).parent if at else None


class Database:
    """A PostgreSQL server of our own, over a folder of its own, never as root."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        binaries, user = programs(), other_user("postgres", "nobody")
        assert binaries is not None
        data, port = folder / "postgres", free_port()
        data.mkdir()
        if user is not None:
            shutil.chown(data, user)
            # a temporary folder is its owner's alone; what is above it must be passable, too
            for above in (folder, data):
                above.chmod(0o755 if above is folder else 0o700)
        self.address: Address = {"port": port}
        command = [str(binaries / "initdb"), "-D", str(data), "-U", USER, "--auth=trust", "--encoding=UTF8"]
        command += ["--locale=C", "--no-instructions"]
        group = None if user is None else pwd.getpwnam(user).pw_gid
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=data, user=user, group=group)
        serve = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(data)]
        for name, value in settings.items():
            serve += ["-c", f"{name}={value}"]
        self._daemon = Daemon(serve, folder, lambda: asyncio.run(_answers(port)), user=user, stop=signal.SIGINT)
        self.kill, self.restart, self.stop = self._daemon.kill, self._daemon.start, self._daemon.stop

    def prepare(self, text: str) -> None:
        """Run statements."""
        asyncio.run(_execute(int(self.address["port"]), text))


async def open_connection(port: int, **options: Any) -> Any:
    """Connect as the owner of the database."""
    import asyncpg

    return await asyncpg.connect(host="127.0.0.1", port=port, user=USER, database="postgres", timeout=5, **options)


async def open_typed(address: Address) -> Any:
    """The same, where ids are 16 bytes, not objects."""
    connection = await open_connection(address["port"])
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")
    return connection


async def _answers(port: int) -> bool:
    import asyncpg

    try:
        connection = await open_connection(port)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    await connection.close()
    return True


async def _execute(port: int, text: str) -> None:
    connection = await open_connection(port)
    try:
        await connection.execute(text)
    finally:
        await connection.close()


class _Client:
    def __init__(self, connection: Any, statement: Any) -> None:
        self._connection, self._statement = connection, statement

    async def send(self, batch: Batch) -> np.ndarray:
        """One call of the function, one transaction."""
        last, known, seqs = await self._statement.fetchrow(CONV, batch.id_list, batch.bodies)
        if not known:
            return np.arange(last + 1, last + 1 + batch.rows, dtype=np.int64)
        first = dict(zip(known, seqs, strict=True))
        fresh = itertools.count(last + 1)
        return np.array([first[i] if i in first else next(fresh) for i in batch.id_list], np.int64)

    async def close(self) -> None:
        """Without a farewell: the server may be gone."""
        self._connection.terminate()


class _Postgres:
    ROWS = (ROW_LOCK,)

    def missing(self) -> str | None:
        """Debian's package."""
        return needs({"Debian package postgresql": programs()}, {"asyncpg": "asyncpg"})

    def version(self) -> str:
        """Server and client."""
        return version_of([str((programs() or Path()) / "postgres"), "--version"], "asyncpg")

    @contextlib.contextmanager
    def serve(self, row: Row, folder: Path) -> Iterator[Database]:
        """A server of our own; the machine's, if one runs, is left alone."""
        server = Database(folder, SETTINGS | {"autovacuum": "off"})
        try:
            server.prepare(TABLES)
            yield server
        finally:
            server.stop()

    async def connect(self, row: Row, address: Address) -> _Client:
        """A connection with a prepared statement; ids travel as the 16 bytes that they are."""
        connection = await open_typed(address)
        return _Client(connection, await connection.prepare("SELECT last, known, seqs FROM send($1, $2, $3)"))

    def stored(self, row: Row, address: Address, folder: Path) -> Stored:
        """The table."""
        ids, numbers = asyncio.run(_read(address["port"]))
        return Stored(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, ID_BYTES), np.array(numbers, np.int64))


async def _read(port: int) -> tuple[list[bytes], list[int]]:
    connection = await open_connection(port)
    try:
        rows = await connection.fetch("SELECT uuid_send(client_msg_id) AS id, conv_seq FROM messages ORDER BY conv_seq")
    finally:
        await connection.close()
    return [r["id"] for r in rows], [r["conv_seq"] for r in rows]


PEER = _Postgres()
