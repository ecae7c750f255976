"""The metadata of an Arrow IPC stream, bounded before a library reads it.

A flatbuffer may let many offsets point at one table: a few KB say gigabytes to whoever expands them. So what is
repeated is counted as often as it is named, and what a batch of messages does not need is refused.
Arrow's format: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from api.problems import ProblemError

SCHEMA = 1
DICTIONARY = 2
BATCH = 3
"""Kinds of messages."""
_SCHEMA_BYTES_MAX = 64 * 1024
"""A frame library writes a few KB of its own into a schema."""
_BATCH_BYTES_MAX = 32 * 1024
"""A batch names 16 bytes for each column and each of its buffers: views of large bodies have one for each."""
_METADATA_ENTRIES_MAX = 64
_NAME_BYTES_MAX = 256
_BUFFERS_MAX = 3
"""Of a column: validity, offsets and values; of views there may be more, which are counted."""
_CONTINUATION = 0xFFFFFFFF

# numbers of fields (Message.fbs, Schema.fbs)
_MESSAGE_KIND = 1
_MESSAGE_HEADER = 2
_MESSAGE_BODY = 3
_MESSAGE_METADATA = 4
_SCHEMA_ENDIANNESS = 0
_SCHEMA_FIELDS = 1
_SCHEMA_METADATA = 2
_FIELD_NAME = 0
_FIELD_KIND = 2
_FIELD_TYPE = 3
_FIELD_DICTIONARY = 4
_FIELD_CHILDREN = 5
_FIELD_METADATA = 6
_TIMESTAMP_ZONE = 1
_BATCH_NODES = 1
_BATCH_BUFFERS = 2
_BATCH_COMPRESSION = 3
_BATCH_VARIADIC = 4
_TIMESTAMP = 10


@dataclass(frozen=True, slots=True)
class FlatTable:
    """A table of a flatbuffer. A wrong offset raises struct.error or ValueError."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> FlatTable:
        """The outermost one."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _field(self, slot: int) -> int | None:
        """Where a field stands; None: it has its default."""
        vtable = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        if vtable < 0:
            raise ValueError("an offset points before its flatbuffer")  # struct would count it from the end
        size = struct.unpack_from("<H", self.data, vtable)[0]
        offset = 4 + 2 * slot
        if offset + 2 > size:
            return None
        found = struct.unpack_from("<H", self.data, vtable + offset)[0]
        return self.at + found if found else None

    def _target(self, slot: int) -> int | None:
        """Where that stands which a field points at."""
        at = self._field(slot)
        return None if at is None else at + struct.unpack_from("<I", self.data, at)[0]

    def number(self, slot: int, code: str) -> int:
        """A number, in the notation of `struct`."""
        at = self._field(slot)
        return 0 if at is None else struct.unpack_from(code, self.data, at)[0]

    def table(self, slot: int) -> FlatTable | None:
        """A table below this one."""
        at = self._target(slot)
        return None if at is None else FlatTable(self.data, at)

    def length(self, slot: int) -> int:
        """How many entries a list has, or bytes a text."""
        at = self._target(slot)
        return 0 if at is None else struct.unpack_from("<I", self.data, at)[0]

    def text(self, slot: int, bytes_max: int) -> str:
        """A text, cut at so many bytes."""
        at = self._target(slot)
        if at is None:
            return ""
        return self.data[at + 4 : at + 4 + min(self.length(slot), bytes_max)].decode(errors="replace")

    def tables(self, slot: int, count_max: int) -> Iterator[FlatTable]:
        """The tables of a list, at most so many."""
        at = self._target(slot)
        if at is None:
            return
        for entry in range(at + 4, at + 4 + 4 * min(self.length(slot), count_max), 4):
            yield FlatTable(self.data, entry + struct.unpack_from("<I", self.data, entry)[0])

    def numbers(self, slot: int, count_max: int) -> tuple[int, ...]:
        """A list of 64-bit numbers, at most so many."""
        at = self._target(slot)
        return () if at is None else struct.unpack_from(f"<{min(self.length(slot), count_max)}q", self.data, at + 4)


@dataclass(frozen=True, slots=True)
class IpcMessage:
    """An IPC message, of which only the metadata was looked at."""

    kind: int
    header: FlatTable
    whole: FlatTable
    body_bytes: int


def read_messages(data: bytes, count_max: int) -> Iterator[IpcMessage]:
    """The messages of a stream: a schema first, then dictionaries and batches. What is no stream raises ProblemError,
    ValueError or struct.error."""
    at = 0
    count = 0
    while at + 8 <= len(data):
        first, second = struct.unpack_from("<Ii", data, at)
        size = second if first == _CONTINUATION else first
        at += 8 if first == _CONTINUATION else 4
        if size == 0:
            return
        if size < 0 or at + size > len(data):
            raise ValueError("an IPC message ends before its metadata does")
        if count > count_max:
            raise ProblemError(413, "too-large", f"more than {count_max} IPC messages: send fewer, larger batches")
        message = _message(data, at, size, first=count == 0)
        at += size + message.body_bytes
        if at > len(data):
            raise ValueError("an IPC message ends before its body does")
        yield message
        count += 1


def _message(data: bytes, at: int, size: int, first: bool) -> IpcMessage:
    if size > (_SCHEMA_BYTES_MAX if first else _BATCH_BYTES_MAX):
        raise _refusal(f"the metadata of an IPC message has {size} bytes")
    whole = FlatTable.root(data[at : at + size])
    kind = whole.number(_MESSAGE_KIND, "<B")
    header = whole.table(_MESSAGE_HEADER)
    body_bytes = whole.number(_MESSAGE_BODY, "<q")
    if header is None:
        raise _refusal("an IPC message has no header")
    if kind not in (SCHEMA, DICTIONARY, BATCH):
        raise _refusal("the stream holds an IPC message that is no schema, dictionary or record batch")
    if (kind == SCHEMA) != first:
        raise _refusal("a stream begins with its schema and has no other")
    if kind != SCHEMA and whole.length(_MESSAGE_METADATA):
        raise _refusal("a record batch or dictionary has metadata of its own")
    if body_bytes < 0:
        raise ValueError("an IPC message has a negative length")
    return IpcMessage(kind, header, whole, body_bytes)


@dataclass
class SchemaLook:
    """What a schema says, each thing counted as often as it is named."""

    columns: int = 0
    dictionaries: Counter[int] = field(default_factory=Counter)
    """How many columns point into each."""
    _entries: int = 0
    _bytes: int = 0

    def over(self, message: IpcMessage, columns_max: int) -> None:
        """ProblemError where it says more than a batch of messages needs."""
        schema = message.header
        if schema.number(_SCHEMA_ENDIANNESS, "<h"):
            raise _refusal("the stream is big-endian: write it little-endian")
        self.columns = schema.length(_SCHEMA_FIELDS)
        if self.columns > columns_max:
            raise _refusal(f"the schema has more than {columns_max} columns")
        self._metadata(message.whole, _MESSAGE_METADATA)
        self._metadata(schema, _SCHEMA_METADATA)
        for column in schema.tables(_SCHEMA_FIELDS, columns_max):
            self._column(column)

    def _column(self, column: FlatTable) -> None:
        if column.length(_FIELD_NAME) > _NAME_BYTES_MAX:
            raise _refusal("a column's name is too long")
        if column.length(_FIELD_CHILDREN):
            raise _refusal(f"column {column.text(_FIELD_NAME, _NAME_BYTES_MAX)} is nested")
        kind = column.table(_FIELD_TYPE)
        if column.number(_FIELD_KIND, "<B") == _TIMESTAMP and kind and kind.length(_TIMESTAMP_ZONE) > _NAME_BYTES_MAX:
            raise _refusal("the name of a time zone is too long")
        dictionary = column.table(_FIELD_DICTIONARY)
        if dictionary is not None:
            self.dictionaries[dictionary.number(0, "<q")] += 1
        self._metadata(column, _FIELD_METADATA)

    def _metadata(self, table: FlatTable, slot: int) -> None:
        self._entries += table.length(slot)
        if self._entries > _METADATA_ENTRIES_MAX:
            raise _refusal(f"the schema has more than {_METADATA_ENTRIES_MAX} entries of metadata")
        for entry in table.tables(slot, _METADATA_ENTRIES_MAX):
            self._bytes += entry.length(0) + entry.length(1)
        if self._bytes > _SCHEMA_BYTES_MAX:
            raise _refusal(f"the schema's own metadata has {self._bytes} bytes")


def look_at_batch(batch: FlatTable, columns: int) -> None:
    """ProblemError where a record batch says more than so many plain columns need."""
    if batch.table(_BATCH_COMPRESSION) is not None:
        raise _refusal("the stream's buffers are compressed: write it without compression")
    if batch.length(_BATCH_VARIADIC) > columns or batch.length(_BATCH_NODES) > columns:
        raise _refusal(f"a record batch has more than its {columns} columns")
    views = batch.numbers(_BATCH_VARIADIC, columns)
    buffers = batch.length(_BATCH_BUFFERS)
    if any(count < 0 for count in views) or sum(views) > buffers:
        raise _refusal("a record batch counts buffers that it does not have")
    if buffers > _BUFFERS_MAX * columns + sum(views):
        raise _refusal(f"a record batch has {buffers} buffers for {columns} columns")


def _refusal(what: str) -> ProblemError:
    return ProblemError(422, "invalid", f"{what}: a batch of messages is plain columns, without more about them")
