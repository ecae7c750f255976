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
from imray.log import digest as digests
from imray.log.schema import RecordKind
from imray.log.segment import open_segment, segment_name
from tests.simulation.store import Disk
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
    """Segments and postings as a reader decodes them; each is decoded once."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._known: dict[str, Any] = {}

    def segment(self, log_position: int) -> File:
        """The segment at a position of the home shard's logs (shard 0)."""
        name = segment_name(*offset_of(0, log_position))
        if name not in self._known:
            data = self._disk.get(name)
            assert data is not None, f"{name} is read, and is not there"
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
    table = open_segment(data, name).table(["conv_id", "conv_seq", "kind", "client_msg_id", "body"])
    found = File([], [])
    for row in table.to_pylist():
        if row["kind"] == RecordKind.MESSAGE:
            number = int.from_bytes(row["client_msg_id"], "big") - 1
            found.rows.append((row["conv_id"], row["conv_seq"], f"m{number}", row["body"].decode()))
        elif row["kind"] == RecordKind.VOID:
            body = json.loads(row["body"])
            found.voids.append((row["conv_id"], row["conv_seq"], body["last"], body["reason"]))
    return found


def page(
    files: Files, conv: str, spans: Sequence[tuple[int, int, int]], after: int, upto: int
) -> tuple[list[tuple[int, str, str]], list[tuple[int, int, str]]]:
    """Messages and holes between two numbers, in the segments that some spans name."""
    rows: dict[tuple[int, int], tuple[int, str, str]] = {}
    holes = set()
    for log_position, first, last in spans:
        file = files.segment(log_position)
        for row, (name, seq, identity, payload) in enumerate(file.rows):
            if name == conv and max(first, after + 1) <= seq <= min(last, upto):
                rows[log_position, row] = seq, identity, payload
        for name, low, high, reason in file.voids:
            if name == conv and low <= upto and high > after:
                holes.add((low, high, reason))
    return sorted(rows.values()), sorted(holes)
