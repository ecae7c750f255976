"""The metadata of an Arrow IPC stream, bounded before a library reads it.

A flatbuffer may let many offsets point at one table: a few KB say gigabytes to whoever expands them. So what is
repeated is counted as often as it is named, and what a batch of messages does not need is refused.
Arrow's format: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from api.problems import ProblemError

_SCHEMA_BYTES_MAX = 64 * 1024
"""A frame library writes a few KB of its own into a schema."""
_BATCH_BYTES_MAX = 8 * 1024
"""A batch names 16 bytes for each column and each of its buffers."""
_METADATA_ENTRIES_MAX = 64
_NAME_BYTES_MAX = 256
_CONTINUATION = 0xFFFFFFFF

_MESSAGE_KIND, _MESSAGE_HEADER, _MESSAGE_BODY, _MESSAGE_METADATA = 1, 2, 3, 4
_SCHEMA = 1
_SCHEMA_FIELDS, _SCHEMA_METADATA = 1, 2
_FIELD_NAME, _FIELD_CHILDREN, _FIELD_METADATA = 0, 5, 6


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a flatbuffer. A wrong place raises struct.error or IndexError."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> Table:
        """The outermost one."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _place(self, slot: int) -> int | None:
        """Where a field stands; None: it has its default."""
        vtable = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        size = struct.unpack_from("<H", self.data, vtable)[0]
        offset = 4 + 2 * slot
        if offset + 2 > size:
            return None
        found = struct.unpack_from("<H", self.data, vtable + offset)[0]
        return self.at + found if found else None

    def number(self, slot: int, code: str) -> int:
        """A number, in the notation of `struct`."""
        at = self._place(slot)
        return 0 if at is None else struct.unpack_from(code, self.data, at)[0]

    def table(self, slot: int) -> Table | None:
        """A table below this one."""
        at = self._place(slot)
        return None if at is None else Table(self.data, at + struct.unpack_from("<I", self.data, at)[0])

    def length(self, slot: int) -> int:
        """How many entries a list has, or bytes a text."""
        at = self._place(slot)
        if at is None:
            return 0
        return struct.unpack_from("<I", self.data, at + struct.unpack_from("<I", self.data, at)[0])[0]

    def text(self, slot: int, bytes_max: int) -> str:
        """A text, cut at so many bytes."""
        at = self._place(slot)
        if at is None:
            return ""
        start = at + struct.unpack_from("<I", self.data, at)[0] + 4
        return self.data[start : start + min(self.length(slot), bytes_max)].decode(errors="replace")

    def tables(self, slot: int, count_max: int) -> Iterator[Table]:
        """The tables of a list, at most so many."""
        at = self._place(slot)
        if at is None:
            return
        start = at + struct.unpack_from("<I", self.data, at)[0]
        for i in range(min(self.length(slot), count_max)):
            entry = start + 4 + 4 * i
            yield Table(self.data, entry + struct.unpack_from("<I", self.data, entry)[0])


def look_at_metadata(data: bytes, columns_max: int) -> None:
    """ProblemError where the metadata of a stream says more than a batch of messages needs. struct.error where it is no
    stream; how its bodies look is for who reads them."""
    at = 0
    while at + 8 <= len(data):
        first, second = struct.unpack_from("<Ii", data, at)
        size = second if first == _CONTINUATION else first
        at += 8 if first == _CONTINUATION else 4
        if size == 0:
            return
        if not 0 < size <= _SCHEMA_BYTES_MAX or at + size > len(data):
            raise _refusal(f"the metadata of an IPC message has {size} bytes")
        message = Table.root(data[at : at + size])
        _look_at_message(message, size, columns_max)
        body = message.number(_MESSAGE_BODY, "<q")
        if body < 0:
            raise _refusal("an IPC message has a negative length")
        at += size + body


def _look_at_message(message: Table, size: int, columns_max: int) -> None:
    if message.length(_MESSAGE_METADATA):
        raise _refusal("an IPC message has metadata of its own")
    header = message.table(_MESSAGE_HEADER)
    if header is None or message.number(_MESSAGE_KIND, "<B") != _SCHEMA:
        if size > _BATCH_BYTES_MAX:
            raise _refusal(f"the metadata of a record batch or dictionary has {size} bytes")
        return
    if header.length(_SCHEMA_FIELDS) > columns_max:
        raise _refusal(f"the schema has more than {columns_max} columns")
    expanded = _metadata_bytes(header, _SCHEMA_METADATA)
    for column in header.tables(_SCHEMA_FIELDS, columns_max):
        if column.length(_FIELD_CHILDREN):
            raise _refusal(f"column {column.text(_FIELD_NAME, _NAME_BYTES_MAX)} is nested")
        if column.length(_FIELD_NAME) > _NAME_BYTES_MAX:
            raise _refusal("a column's name is too long")
        expanded += _metadata_bytes(column, _FIELD_METADATA)
    if expanded > _SCHEMA_BYTES_MAX:
        raise _refusal(f"the schema's own metadata has {expanded} bytes")


def _metadata_bytes(table: Table, slot: int) -> int:
    """Of keys and values, each counted as often as it is named."""
    if table.length(slot) > _METADATA_ENTRIES_MAX:
        raise _refusal(f"more than {_METADATA_ENTRIES_MAX} entries of metadata")
    return sum(entry.length(0) + entry.length(1) for entry in table.tables(slot, _METADATA_ENTRIES_MAX))


def _refusal(what: str) -> ProblemError:
    return ProblemError(422, "invalid", f"{what}: a batch of messages is plain columns, without more about them")
