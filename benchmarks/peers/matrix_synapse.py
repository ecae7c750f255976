"""Matrix Synapse on PostgreSQL: a chat server that a Python team would deploy instead. Single sends to one room.

A message is an event of the room's graph: signed, hashed and checked against the room's rules; a second send with the
same transaction id makes no second event. Its order is the server's own; an ack tells the event's id and no number.
https://spec.matrix.org/latest/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from benchmarks.peers.daemons import Daemon, listens, needs
from benchmarks.peers.http import Connection
from benchmarks.peers.judge import Stored
from benchmarks.peers.peer import Address, Row
from benchmarks.peers.postgres_row_lock import SETTINGS, USER, Database, programs
from benchmarks.peers.work import ID_BYTES, NO_NUMBER, Batch, Shape
from benchmarks.servers import free_port

SYNAPSE = Row(
    "synapse",
    "Matrix Synapse on PostgreSQL, single sends over HTTP",
    "an event, committed in PostgreSQL, fsynced",
    Shape(1, 16),
    durable=True,
    numbered=False,
    group="single",
)
_NAME = "localhost"
_API = "/_matrix/client/v3"
_ID = "imray.bench.id"
_PAGE_ROWS = 1_000
_NO_LIMIT = {"per_second": 1e9, "burst_count": 1e9}


class _Server:
    """PostgreSQL, Synapse over it in one process, a user and a room."""

    def __init__(self, folder: Path) -> None:
        self._database = Database(folder, SETTINGS)
        with contextlib.ExitStack() as failed:
            failed.callback(self._database.stop)
            port, secret = free_port(), secrets.token_hex(16)
            self._synapse = _homeserver(folder, port, self._database.address["port"], secret)
            failed.callback(self._synapse.stop)
            self.address: Address = asyncio.run(_set_up(port, secret))
            failed.pop_all()

    def kill(self) -> None:
        """Both servers."""
        self._synapse.kill()
        self._database.kill()

    def restart(self) -> None:
        """Both, the database first."""
        self._database.restart()
        self._synapse.start()

    def stop(self) -> None:
        """Both."""
        self._synapse.stop()
        self._database.stop()


def _homeserver(folder: Path, port: int, database_port: int, secret: str) -> Daemon:
    """One process: what a room's events go through is one process also where there are workers."""
    config = folder / "homeserver.yaml"
    config.write_text(json.dumps(_config(folder, port, database_port, secret)))
    command = [sys.executable, "-m", "synapse.app.homeserver", "-c", str(config)]
    subprocess.run([*command, "--generate-keys"], check=True, capture_output=True, cwd=folder)
    return Daemon(command, folder, lambda: listens(port))


def _config(folder: Path, port: int, database_port: int, secret: str) -> dict[str, Any]:
    """No rate limits, no federation, no presence, no log of requests."""
    log = folder / "log.yaml"
    log.write_text(json.dumps({"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": False}))
    listener = {"port": port, "type": "http", "bind_addresses": ["127.0.0.1"], "resources": [{"names": ["client"]}]}
    arguments = {"user": USER, "dbname": "postgres", "host": "127.0.0.1", "port": database_port}
    return {
        "server_name": _NAME,
        "listeners": [listener],
        "database": {"name": "psycopg2", "args": arguments | {"cp_min": 5, "cp_max": 10}},
        "log_config": str(log),
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / "signing.key"),
        "registration_shared_secret": secret,
        "macaroon_secret_key": secret,
        "form_secret": secret,
        "report_stats": False,
        "trusted_key_servers": [],
        "presence": {"enabled": False},
        **{f"rc_{name}": _NO_LIMIT for name in ("message", "registration", "joins_per_room")},
        "rc_login": dict.fromkeys(("address", "account", "failed_attempts"), _NO_LIMIT),
        "rc_joins": dict.fromkeys(("local", "remote"), _NO_LIMIT),
    }


async def _set_up(port: int, secret: str) -> Address:
    """A user, made with the secret that registration shares with an administrator's tools, and a room of it."""
    register = "/_synapse/admin/v1/register"
    first = await Connection.open(port, "none")
    nonce = json.loads(await first.ask("GET", register, "application/json", b""))["nonce"]
    name, password = "bench", secrets.token_hex(16)
    text = b"\0".join(x.encode() for x in (nonce, name, password, "admin"))
    mac = hmac.new(secret.encode(), text, hashlib.sha1).hexdigest()
    user = {"nonce": nonce, "username": name, "password": password, "admin": True, "mac": mac}
    token = json.loads(await first.ask("POST", register, "application/json", json.dumps(user).encode()))["access_token"]
    await first.close()
    own = await Connection.open(port, token)
    room = json.loads(await own.ask("POST", f"{_API}/createRoom", "application/json", b"{}"))["room_id"]
    await own.close()
    return {"port": port, "token": token, "room": quote(room)}


class _Client:
    def __init__(self, connection: Connection, room: str) -> None:
        self._connection, self._path = connection, f"{_API}/rooms/{room}/send/m.room.message/"
        self.close = connection.close

    async def send(self, batch: Batch) -> np.ndarray:
        """One request for the one message; its id is the transaction's."""
        name = batch.id_list[0].hex()
        content = json.dumps({"msgtype": "m.text", "body": batch.bodies[0].decode(), _ID: name})
        await self._connection.ask("PUT", self._path + name, "application/json", content.encode())
        return np.full(1, NO_NUMBER, np.int64)


class _Synapse:
    ROWS = (SYNAPSE,)

    def missing(self) -> str | None:
        """PostgreSQL from Debian, the rest from PyPI."""
        return needs(
            {"Debian package postgresql": programs()},
            {"matrix-synapse": "synapse", "psycopg2-binary": "psycopg2", "asyncpg": "asyncpg"},
        )

    def version(self) -> str:
        """Server and client."""
        return ", ".join(f"{name} {metadata.version(name)}" for name in ("matrix-synapse", "psycopg2-binary"))

    @contextlib.contextmanager
    def serve(self, row: Row, folder: Path) -> Iterator[_Server]:
        """Servers of our own."""
        server = _Server(folder)
        try:
            yield server
        finally:
            server.stop()

    async def connect(self, row: Row, address: Address) -> _Client:
        """A keep-alive connection."""
        return _Client(await Connection.open(address["port"], address["token"]), address["room"])

    def stored(self, row: Row, address: Address, folder: Path) -> Stored:
        """The room's history, as a client reads it."""
        ids = asyncio.run(_history(address))
        return Stored(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, ID_BYTES), np.full(len(ids), NO_NUMBER))


async def _history(address: Address) -> list[bytes]:
    connection = await Connection.open(address["port"], address["token"])
    ids: list[bytes] = []
    at: dict[str, str] = {}
    while True:
        query = urlencode({"dir": "f", "limit": _PAGE_ROWS} | at)
        path = f"{_API}/rooms/{address['room']}/messages?{query}"
        page = json.loads(await connection.ask("GET", path, "application/json", b""))
        ids += [bytes.fromhex(e["content"][_ID]) for e in page["chunk"] if _ID in e["content"]]
        if "end" not in page:
            break
        at = {"from": page["end"]}
    await connection.close()
    return ids


PEER = _Synapse()
