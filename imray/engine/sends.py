"""Single sends as the Arrow IPC stream that goes to a shard, written without Arrow.

Making columns of a few rows costs Arrow 60 us hot, and three times that between other work. The metadata of such a
stream is the same each time but for its numbers: here Arrow writes it once, and the numbers are put in their places
(https://arrow.apache.org/docs/format/Columnar.html, Message.fbs, Schema.fbs). Reading is Arrow's as ever.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from imray.core.ids import ID_BYTES
from imray.log.schema import BATCH_SCHEMA, TEXT, encode_text, from_ipc, to_ipc
from imray.rpc.endpoint import Part

_PREFIX = struct.Struct("<ii")
"""Before a message's metadata: -1, and the bytes of the metadata; after the last message 0."""
_END = _PREFIX.pack(-1, 0)
_ALIGNMENT = 8
# numbers of fields in the flatbuffers of the format
_HEADER = 2
_BODY_LENGTH = 3
_ROWS = 0
_NODES = 1
_BUFFERS = 2
_DICTIONARY_DATA = 1


class Send(NamedTuple):
    """One message, checked."""

    conv_id: str
    client_msg_id: bytes
    sender: str
    topic: str | None
    content_type: str | None
    client_ts: int | None
    body: bytes


class _Column(NamedTuple):
    """A column of a record batch: how many values are null, and its buffers."""

    nulls: int
    buffers: tuple[bytes, ...]


class _Message:
    """A record batch or dictionary that Arrow wrote, as a form for others with the same columns."""

    def __init__(self, metadata: bytes, is_dictionary: bool) -> None:
        """`metadata` with its prefix."""
        self._metadata = metadata
        root = self._follow(_PREFIX.size)
        self._body_length_at = self._field(root, _BODY_LENGTH)
        batch = self._follow(self._field(root, _HEADER))
        if is_dictionary:
            batch = self._follow(self._field(batch, _DICTIONARY_DATA))
        self._rows_at = self._field(batch, _ROWS)
        # vectors of pairs of int64, behind their length
        self._nodes_at = self._follow(self._field(batch, _NODES)) + 4
        self._buffers_at = self._follow(self._field(batch, _BUFFERS)) + 4

    def _follow(self, at: int) -> int:
        return at + int.from_bytes(self._metadata[at : at + 4], "little")

    def _field(self, table: int, number: int) -> int:
        vtable = table - int.from_bytes(self._metadata[table : table + 4], "little", signed=True)
        entry = vtable + 4 + 2 * number
        return table + int.from_bytes(self._metadata[entry : entry + 2], "little")

    def write(self, rows: int, columns: Sequence[_Column], parts: list[Part]) -> None:
        """Append the message with these columns."""
        metadata = bytearray(self._metadata)
        parts.append(metadata)
        nodes: list[int] = []
        places: list[int] = []
        end = 0
        for nulls, buffers in columns:
            nodes += (rows, nulls)
            for buffer in buffers:
                size = len(buffer)
                places += (end, size)
                end += size
                parts.append(buffer)
                if extra := -size % _ALIGNMENT:
                    parts.append(bytes(extra))
                    end += extra
        struct.pack_into("<q", metadata, self._body_length_at, end)
        struct.pack_into("<q", metadata, self._rows_at, rows)
        struct.pack_into(f"<{len(nodes)}q", metadata, self._nodes_at, *nodes)
        struct.pack_into(f"<{len(places)}q", metadata, self._buffers_at, *places)


def _messages(topic: str | None) -> list[tuple[bytes, bytes]]:
    """The messages that Arrow writes for one send, each as metadata with its prefix, and body: the schema, the
    dictionaries of the text columns, the row."""
    values: tuple[Any, ...] = Send("x", bytes(ID_BYTES), "x", topic, topic, 0, b"x")
    columns = [
        encode_text([value]) if field.type == TEXT else pa.array([value], field.type)
        for field, value in zip(BATCH_SCHEMA, values, strict=True)
    ]
    stream = to_ipc(pa.record_batch(columns, schema=BATCH_SCHEMA)).to_pybytes()
    found = []
    at = 0
    for message in pa.ipc.MessageReader.open_stream(stream):
        body_at = at + _PREFIX.size + _PREFIX.unpack_from(stream, at)[1]
        end = body_at + (0 if message.body is None else message.body.size)
        found.append((stream[at:body_at], stream[body_at:end]))
        at = end
    return found


_SAMPLE = _messages("x")
_SCHEMA = _SAMPLE[0][0]
_DICTIONARIES = [_Message(metadata, is_dictionary=True) for metadata, _ in _SAMPLE[1:-1]]
"""Of the text columns, in their order."""
_EMPTY_DICTIONARIES = [b"".join(message) for message in _messages(None)[1:-1]]
"""The same where every row is null: whole messages. Those of columns that have no nulls are not used."""
_ROWS_MESSAGE = _Message(_SAMPLE[-1][0], is_dictionary=False)


def stream_of(sends: Sequence[Send]) -> bytes:
    """The Arrow IPC stream of one record batch with the columns of BATCH_SCHEMA, as `imray.log.schema.to_ipc` makes it.

    UnicodeError: a text holds what UTF-8 cannot."""
    conv_id, ids, sender, topic, content_type, client_ts, body = zip(*sends, strict=True)
    rows = len(sends)
    parts: list[Part] = [_SCHEMA]
    texts = [_text(i, values, parts) for i, values in enumerate((conv_id, sender, topic, content_type))]
    columns = (
        texts[0],
        _Column(0, (b"", b"".join(ids))),
        *texts[1:],
        _with_nulls(client_ts, array("q", [stamp or 0 for stamp in client_ts])),
        _Column(0, (b"", *_lengths_and_bytes(body))),
    )
    _ROWS_MESSAGE.write(rows, columns, parts)
    parts.append(_END)
    return b"".join(parts)


def record_batch(sends: Sequence[Send]) -> pa.RecordBatch:
    """The same as columns."""
    return from_ipc(stream_of(sends))


def _text(column: int, values: Sequence[str | None], parts: list[Part]) -> _Column:
    """Append a text column's dictionary; return its indices."""
    index_of: dict[str, int] = {}
    indices = array("i", [0 if v is None else index_of.setdefault(v, len(index_of)) for v in values])
    if index_of:
        dictionary = _Column(0, (b"", *_lengths_and_bytes([text.encode() for text in index_of])))
        _DICTIONARIES[column].write(len(index_of), (dictionary,), parts)
    else:
        parts.append(_EMPTY_DICTIONARIES[column])
    return _with_nulls(values, indices)


def _with_nulls(values: Sequence[object], stored: array[int]) -> _Column:
    """A column of numbers that are null where the value is None."""
    nulls = values.count(None)
    if not nulls:
        return _Column(0, (b"", stored.tobytes()))
    valid = 0
    if nulls < len(values):
        valid = sum(1 << i for i, value in enumerate(values) if value is not None)
    return _Column(nulls, (valid.to_bytes((len(values) + 7) // 8, "little"), stored.tobytes()))


def _lengths_and_bytes(values: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The buffers of a column of bytes or texts: where each one ends, and all together."""
    return array("i", accumulate(map(len, values), initial=0)).tobytes(), b"".join(values)
