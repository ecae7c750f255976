"""Messages of a schedule, small enough to write down, and what stands of them in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.errors import CorruptError
from imray.core.intervals import Interval
from imray.core.routing import offset_of
from imray.history.run_reader import RunReader
from imray.history.snapshot import TableSnapshot
from imray.history.table import Table
from imray.log import digest as digests
from imray.log.schema import RecordKind
from imray.log.segment import open_segment, segment_name
from tests.simulation.store import Disk, LookStore
from tests.support import batches

SEED = 7
CONVS = ("room", "hall", "den")
Request = tuple["Msg", ...]


class Msg(NamedTuple):
    """One message: its conversation and id by number; another variant is another payload."""

    conv: int
    id: int
    variant: int = 0

    def __str__(self) -> str:
        return f"{CONVS[self.conv]}/m{self.id}" + "'" * self.variant


@cache
def ipc_of(request: Request) -> pa.Buffer:
    """What a gateway sends of some messages."""
    return batches.ipc_of(
        [batches.Msg(CONVS[m.conv], batches.msg_id(m.id + 1), f"v{m.variant}".encode()) for m in request]
    )


@dataclass(frozen=True)
class File:
    """What a reader finds in a segment."""

    rows: list[tuple[str, int, str, str]]
    """Conversation, number, id and payload of each message."""
    voids: list[tuple[str, int, int, str]]
    """Conversation, first, last number and reason."""


class Files:
    """Segments, postings and runs as a reader decodes them; each is decoded once."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._known: dict[str, Any] = {}
        store = LookStore(disk)
        self._table = Table(store)
        self._runs = RunReader(store, 1 << 20)
        self._snapshot: TableSnapshot | None = None

    def snapshot(self) -> TableSnapshot:
        """The history as it is now."""
        self._snapshot = self._table.snapshot(self._snapshot)
        return self._snapshot

    def merged(self, snapshot: TableSnapshot, conv: str, low: int, high: int) -> File:
        """What the runs have of a conversation's numbers low to high."""
        found = File([], [])
        for run in snapshot.runs.get(0, ()):
            for file in run.files:
                if file.first <= conv <= file.last:
                    _decode(self._runs.rows(file, conv, low, high, None, False), found)
        return found

    def segment(self, log_position: int) -> File | None:
        """The segment at a position of the home shard's logs (shard 0). None: it was merged meanwhile, and deleted."""
        name = segment_name(*offset_of(0, log_position))
        if name not in self._known:
            data = self._disk.get(name)
            if data is None:
                return None
            self._known[name] = _decoded(data, name)
        found: File = self._known[name]
        return found

    def postings(self, interval: Interval) -> list[tuple[str, int, int, int]] | None:
        """Conversation, position, first and last number of each range in an interval. None: the file is gone."""
        name = interval.name("postings")
        if name not in self._known:
            data = self._disk.get(name)
            if data is None or not _verifies(data, name):
                return None
            table = pq.read_table(BytesIO(data), use_threads=False)
            columns = (table[c].to_pylist() for c in ("conv_id", "place", "first", "last"))
            self._known[name] = list(zip(*columns, strict=True))
        found: list[tuple[str, int, int, int]] = self._known[name]
        return found


def _verifies(data: bytes, name: str) -> bool:
    try:
        digests.verify(memoryview(data), name)
    except CorruptError:
        return False
    return True


def _decoded(data: bytes, name: str) -> File:
    found = File([], [])
    _decode(open_segment(data, name).table(["conv_id", "conv_seq", "kind", "client_msg_id", "body"]), found)
    return found


def _decode(table: pa.Table, found: File) -> None:
    for row in table.select(["conv_id", "conv_seq", "kind", "client_msg_id", "body"]).to_pylist():
        if row["kind"] == RecordKind.MESSAGE:
            number = int.from_bytes(row["client_msg_id"], "big") - 1
            found.rows.append((row["conv_id"], row["conv_seq"], f"m{number}", row["body"].decode()))
        elif row["kind"] == RecordKind.VOID:
            body = json.loads(row["body"])
            found.voids.append((row["conv_id"], row["conv_seq"], body["last"], body["reason"]))


def page(
    files: Files, conv: str, spans: Sequence[tuple[int, int, int]], after: int, upto: int
) -> tuple[list[tuple[int, str, str]], list[tuple[int, int, str]]] | None:
    """Messages and holes between two numbers, in the runs and in the segments above them that some spans name.

    None: a segment was merged meanwhile, and deleted: ask again."""
    snapshot = files.snapshot()
    parts = {(-1, 0, 0): files.merged(snapshot, conv, after + 1, upto)}
    for log_position, first, last in spans:
        log, segment = offset_of(0, log_position)
        if segment > snapshot.merged.get(log, 0):
            file = files.segment(log_position)
            if file is None:
                return None
            parts[log_position, first, last] = file
    rows: dict[tuple[int, int], tuple[int, str, str]] = {}
    holes = set()
    for (log_position, first, last), file in parts.items():
        low, high = (first, last) if log_position >= 0 else (1, upto)
        for row, (name, seq, identity, payload) in enumerate(file.rows):
            if name == conv and max(low, after + 1) <= seq <= min(high, upto):
                rows[log_position, row] = seq, identity, payload
        for name, begin, end, reason in file.voids:
            if name == conv and begin <= upto and end > after:
                holes.add((begin, end, reason))
    return sorted(rows.values()), sorted(holes)
