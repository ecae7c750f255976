"""The file of an outbox: messages that were given to it and have no final answer yet, in their order.

Owns the file (SQLite: write-ahead log, synced in full before a call returns), its bounds, and that one process uses it.
Does not own sending (`imray.client.outbox`).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from imray.core.errors import BusyError, InvalidError

ROWS_MAX = 10_000
BYTES_MAX = 64 * 1024 * 1024
"""What may wait for a server: hours of somebody's typing. More means that nobody looks at the errors."""
_VERSION = 1
_APPLICATION_ID = 0x696D_7279
_SCHEMA = """
CREATE TABLE unanswered (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    conv_id TEXT NOT NULL,
    client_msg_id TEXT NOT NULL,
    fields BLOB NOT NULL,
    UNIQUE (conv_id, client_msg_id)
) STRICT
"""


@dataclass(frozen=True)
class OutboxRow:
    """A message without a final answer: its fields as a client's `send` takes them."""

    n: int
    """Its place in the order."""
    conv_id: str
    client_msg_id: str
    fields: Mapping[str, str | int]


class OutboxStore:
    """The file, open. Threads may share it."""

    def __init__(self, path: Path | str, rows_max: int = ROWS_MAX, bytes_max: int = BYTES_MAX) -> None:
        """Raises InvalidError where another process has it open, or where it is no outbox."""
        self.path = Path(path)
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # what is in it is for nobody else
            self._db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as e:
            raise InvalidError(f"the outbox {self.path} cannot be opened: {e}") from e
        try:
            self._open()
        except sqlite3.Error as e:
            self._db.close()
            busy = e.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            why = "another process uses it: each one needs an outbox of its own" if busy else f"{e}; is it one?"
            raise InvalidError(f"the outbox {self.path} cannot be used: {why}") from e
        except InvalidError:
            self._db.close()
            raise

    def put(self, conv_id: str, client_msg_id: str, fields: Mapping[str, str | int]) -> OutboxRow:
        """Keep a message; it is on disk when this returns. One that is there already stays where it is.

        Raises BusyError where there is no room, InvalidError where the id is there with other fields."""
        content = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            known = self._db.execute(
                "SELECT n, fields FROM unanswered WHERE conv_id = ? AND client_msg_id = ?", (conv_id, client_msg_id)
            ).fetchone()
            if known is not None:
                if known[1] != content:
                    raise InvalidError(f"{client_msg_id} waits in the outbox with another payload")
                return OutboxRow(known[0], conv_id, client_msg_id, fields)
            if self._rows + 1 > self._rows_max or self._bytes + len(content) > self._bytes_max:
                raise BusyError(f"the outbox {self.path} is full: {self._rows} messages, {self._bytes} bytes")
            added = self._db.execute(
                "INSERT INTO unanswered (conv_id, client_msg_id, fields) VALUES (?, ?, ?)",
                (conv_id, client_msg_id, content),
            )
            n = added.lastrowid
            assert n is not None
        self._rows += 1
        self._bytes += len(content)
        return OutboxRow(n, conv_id, client_msg_id, fields)

    def remove(self, row: OutboxRow) -> None:
        """It has its final answer."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            gone = self._db.execute("DELETE FROM unanswered WHERE n = ? RETURNING length(fields)", (row.n,)).fetchall()
        self._rows -= len(gone)
        self._bytes -= sum(length for (length,) in gone)

    def rows(self, conv_id: str | None = None, up_to: int | None = None) -> list[OutboxRow]:
        """What has no final answer, in order: of one conversation, and up to a place, where these are given."""
        with self._lock:
            found = self._db.execute(
                "SELECT n, conv_id, client_msg_id, fields FROM unanswered"
                " WHERE conv_id = ifnull(?1, conv_id) AND n <= ifnull(?2, n) ORDER BY n",
                (conv_id, up_to),
            ).fetchall()
        return [OutboxRow(n, conv, msg_id, orjson.loads(content)) for n, conv, msg_id, content in found]

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._db.close()

    def _open(self) -> None:
        db = self._db
        db.execute(
            "PRAGMA locking_mode = EXCLUSIVE"
        )  # from the first access to the end; a killed process holds nothing
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        with db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if tables == 0 and application == 0:
                db.execute(_SCHEMA)
                db.execute(f"PRAGMA user_version = {_VERSION}")
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            elif application != _APPLICATION_ID or version != _VERSION:
                raise InvalidError(f"{self.path} is no outbox of this version of imray")
        count = "SELECT count(*), ifnull(sum(length(fields)), 0) FROM unanswered"
        self._rows, self._bytes = db.execute(count).fetchone()
