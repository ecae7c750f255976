"""Rows of the history as tests make them, in their order, and what a reader must find among them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec
import pyarrow as pa

from imray.core.log_progress import Fence, LogProgress
from imray.history.layout import HISTORY_SCHEMA
from imray.history.run_file import write_run
from imray.history.snapshot import Run
from imray.log.marks import LogEnd
from imray.log.schema import Record, RecordKind, VoidRecord, record_table
from imray.log.store import LocalStore, Store
from imray.log.writer import Writer
from imray.settings import Settings

SMALL = Settings(run_group_bytes=2048, run_file_bytes=16 * 1024)
"""Many groups and files of few rows."""


class UnsyncedStore(LocalStore):
    """A disk for tests that lose no power."""

    def _sync_file(self, fd: int) -> None:
        del fd

    def _sync_folder(self, folder: str) -> None:
        del folder


@dataclass(frozen=True)
class HistoryRow:
    """One row; `last` makes it a void."""

    conv_id: str
    conv_seq: int
    log: int = 0
    segment: int = 1
    row: int = 0
    kind: int = RecordKind.MESSAGE
    last: int = 0
    body: bytes = b"hello"

    @property
    def key(self) -> tuple[bytes, int, int, int, int]:
        """What the history is sorted by."""
        return self.conv_id.encode(), self.conv_seq, self.log, self.segment, self.row

    def values(self) -> dict[str, object]:
        """All columns."""
        is_message = self.kind == RecordKind.MESSAGE
        void = msgspec.json.encode(VoidRecord(self.last, "lost"))
        return {
            "conv_id": self.conv_id,
            "conv_seq": self.conv_seq,
            "kind": self.kind,
            "client_msg_id": random.Random(repr(self.key)).randbytes(16) if is_message else None,
            "sender": f"user-{self.conv_seq % 7}" if is_message else None,
            "topic": "news" if self.conv_seq % 5 == 0 else None,
            "content_type": None,
            "client_ts": None,
            "server_ts": 1_750_000_000_000_000 + self.segment,
            "body": void if self.kind == RecordKind.VOID else self.body,
            "log": self.log,
            "segment": self.segment,
            "row": self.row,
            "epoch": 1,
        }


def void_row(conv_id: str, first: int, last: int, **place: int) -> HistoryRow:
    """The row of a void."""
    return replace(HistoryRow(conv_id, first, kind=RecordKind.VOID, last=last), **place)


def history_table(rows: Iterable[HistoryRow]) -> pa.Table:
    """The table of rows, in their order."""
    return pa.Table.from_pylist([r.values() for r in rows], schema=HISTORY_SCHEMA)


def put_rows(store: Store, rows: Sequence[HistoryRow], settings: Settings = SMALL, tier: int = 0) -> Run:
    """A run of rows, in whatever order they come."""
    table = history_table(sorted(rows, key=lambda r: r.key))
    return Run(tuple(write_run(store, 0, tier, [table], [], [], settings)))


def wanted(
    rows: Iterable[HistoryRow], conv_id: str, low: int, high: int, limit: int | None, descending: bool
) -> list[HistoryRow]:
    """What a reader must find, by the meaning of the words."""
    if low > high:
        return []
    own = sorted((r for r in rows if r.conv_id == conv_id), key=lambda r: r.key)
    shown = [r for r in own if r.kind in (RecordKind.MESSAGE, RecordKind.VOID) and r.conv_seq <= high]
    found = [r for r in shown if max(r.conv_seq, r.last) >= low and (r.conv_seq >= low or r.last)]
    messages = [r.conv_seq for r in found if r.kind == RecordKind.MESSAGE]
    if limit is None or len(messages) < limit:
        return found
    if descending:
        return [r for r in found if r.conv_seq >= messages[-limit]]
    return [r for r in found if r.conv_seq <= messages[limit - 1]]


def keys_of(table: pa.Table) -> list[tuple[bytes, int, int, int, int]]:
    """The keys of a table's rows."""
    columns = [table.column(n).to_pylist() for n in ("conv_id", "conv_seq", "log", "segment", "row")]
    return [(name.encode(), *rest) for name, *rest in zip(*columns, strict=True)]


class LogMaker:
    """Writes a log of records and messages without a shard: each call of `put` is a segment."""

    def __init__(self, store: Store, log: int = 0, sequencer: int = 0) -> None:
        self.log = log
        self.progress = LogProgress()
        self._store = store
        self._sequencer = sequencer
        self.fence()

    def fence(self) -> None:
        """Another writer takes the log."""
        self._writer = Writer(self._store, self.log, self.progress, sequencer=self._sequencer)
        window_before = self.progress.window
        assert self._writer.fence(1000)
        self._advance(Fence(self._store.puts_at_once, self._writer.segment + window_before))

    def _advance(self, fence: Fence | None = None) -> None:
        self.progress.advance(self._writer.segment, self._writer.epoch, self._writer.digest, fence)
        self.progress.sequencer = max(self.progress.sequencer, self._sequencer)

    def put(self, records: Sequence[Record], server_ts_ms: int = 2000) -> None:
        """One segment of (conversation, number, kind, body)."""
        self._writer.append(record_table(records, server_ts_ms), server_ts_ms)
        self._advance()

    def end(self) -> LogEnd:
        """Where the log stands."""
        return LogEnd.of(self.log, self.progress)
