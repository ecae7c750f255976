"""The columns of a send batch (gateway to shard) and of a segment (the log), and the moves between them.

Owns names, types and encodings of columns. Owns no bytes on disk (`imray.log.segment`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from imray.core.errors import InvalidError
from imray.core.ids import ID_BYTES
from imray.core.members import Role
from imray.kernels.arrays import I32, I64, U8, U64, Bools
from imray.kernels.hashing import keyed_hashes, mix_keys

SCHEMA_VERSION = 1


class RecordKind(IntEnum):
    """What a row of a segment is."""

    MESSAGE = 0
    VOID = 1
    """The numbers from `conv_seq` on will never be messages: body `VoidRecord`."""
    HOT = 2
    """At head `conv_seq` the conversation is spread over partitions: body `HotRecord`."""
    COLD = 3
    """At head `conv_seq` its home shard alone writes it again: an empty body."""
    MEMBERS = 4
    """Between `conv_seq` and the next number its members change: body `MembersRecord`."""
    CURSORS = 5
    """Up to where some users have read it, whose head is `conv_seq`: body `CursorsRecord`."""


# shorter names, until those who import them say `RecordKind`
TEXT = pa.dictionary(pa.int32(), pa.string())
MS = pa.timestamp("ms", tz="UTC")

BATCH_SCHEMA = pa.schema(
    [
        pa.field("conv_id", TEXT, nullable=False),
        pa.field("client_msg_id", pa.binary(ID_BYTES), nullable=False),
        pa.field("sender", TEXT, nullable=False),
        pa.field("topic", TEXT),
        pa.field("content_type", TEXT),
        pa.field("client_ts", MS),
        pa.field("body", pa.binary(), nullable=False),
    ]
)

SEGMENT_SCHEMA = pa.schema(
    [
        pa.field("conv_id", TEXT, nullable=False),
        pa.field("conv_seq", pa.int64(), nullable=False),
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("client_msg_id", pa.binary(ID_BYTES)),
        pa.field("sender", TEXT),
        pa.field("topic", TEXT),
        pa.field("content_type", TEXT),
        pa.field("client_ts", MS),
        pa.field("server_ts", MS, nullable=False),
        pa.field("body", pa.binary()),
    ]
)


class _Field(NamedTuple):
    """What is asked of a batch's column: at hand, since each question to pyarrow costs half a microsecond."""

    name: str
    nullable: bool
    is_text: bool


_PLAIN_SEGMENT_SCHEMA = pa.schema([f.with_type(pa.string()) if f.type == TEXT else f for f in SEGMENT_SCHEMA])
FEW_ROWS_MAX = 32
"""Of a segment: with so few, writing a text column as a dictionary costs 15 us more than plain, and saves few bytes."""
_NO_TEXTS = pa.nulls(FEW_ROWS_MAX, pa.string())
_BATCH_FIELDS = [_Field(f.name, f.nullable, f.type == TEXT) for f in BATCH_SCHEMA]
_ROWS_PER_EDGE_MIN = 128
"""Measured: copying so many rows costs what a slice does."""


class VoidRecord(msgspec.Struct, frozen=True):
    """The body of a void record: its last number, and why."""

    last: int
    reason: str


class HotRecord(msgspec.Struct, frozen=True):
    """The body of a record that turns a conversation hot, or says more of a hot one."""

    partitions: int = msgspec.field(name="topics")
    ceiling: int
    """Numbers up to it may be granted."""
    by_rate: bool = False
    exact: bool | msgspec.UnsetType = msgspec.UNSET
    """True: the shard stopped in good order, no number above the ceiling was granted, whatever earlier records say."""


class MembersRecord(msgspec.Struct, frozen=True):
    """The body of a record of members: how it differs from what was before."""

    public: bool
    set: dict[str, Role]
    """Who is in a role from here on."""
    removed: list[str]
    created: bool
    """The conversation is created by this."""


class CursorsRecord(msgspec.Struct, frozen=True):
    """The body of a record of cursors."""

    seqs: dict[str, int]
    """By user. Never lower than before."""


RecordBody = VoidRecord | HotRecord | MembersRecord | CursorsRecord


class LogRecord(NamedTuple):
    """A record that is no message."""

    conv_id: str
    seq: int
    kind: RecordKind
    body: RecordBody | None
    """None: an empty one."""


Record = tuple[str, int, int, dict[str, object]]
"""The same with any body: what no writer makes, and a reader may find."""

_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)
_NO_OFFSETS = pa.py_buffer(bytes(4))
_PAYLOAD_TEXTS = ("sender", "topic", "content_type")


def encode_text(values: Sequence[str | None]) -> pa.DictionaryArray:
    """A dictionary column from row values."""
    index_of: dict[str, int] = {}
    indices = [None if v is None else index_of.setdefault(v, len(index_of)) for v in values]
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(index_of), pa.string()))


def constant_text(value: str | None, rows: int) -> pa.DictionaryArray:
    """A dictionary column that says the same in every row."""
    if value is None:
        return pa.DictionaryArray.from_arrays(pa.nulls(rows, pa.int32()), pa.array([], pa.string()))
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value], pa.string()))


def to_ipc(batch: pa.RecordBatch) -> pa.Buffer:
    """The Arrow IPC stream of one record batch: what goes to a shard."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def from_ipc(data: object) -> pa.RecordBatch:
    """The one record batch of a stream made by `to_ipc`, zero-copy over `data` (anything with a buffer)."""
    with pa.ipc.open_stream(pa.py_buffer(data), options=_READ_OPTIONS) as reader:
        try:
            return reader.read_next_batch()
        except StopIteration:
            raise InvalidError("the Arrow stream holds no record batch") from None


def check_batch(batch: pa.RecordBatch) -> list[pa.Array]:
    """The columns of a batch. Refuse one whose columns are not those of BATCH_SCHEMA, that has nulls where none may be,
    or whose buffers do not hold what they say."""
    # lengths, offsets and indices that compiled code would follow; 3 ns a row
    try:
        batch.validate(full=True)
    except pa.ArrowException as e:
        raise InvalidError(f"the batch is malformed: {e}") from e
    if not batch.schema.equals(BATCH_SCHEMA, check_metadata=False):
        raise InvalidError(f"the batch has columns {batch.schema}; expected {BATCH_SCHEMA}")
    columns: list[pa.Array] = batch.columns
    for field, column in zip(_BATCH_FIELDS, columns, strict=True):
        if not field.nullable and column.null_count:
            raise InvalidError(f"column {field.name} holds null")
        if field.is_text and column.dictionary.null_count:
            raise InvalidError(f"the dictionary of column {field.name} holds null")
    return columns


def dictionary_rows(column: pa.DictionaryArray) -> I32:
    """Row indices (int32, -1 for null) of a dictionary column."""
    indices = column.indices
    if indices.null_count == len(indices):
        return np.full(len(indices), -1, np.int32)
    if indices.null_count:
        indices = indices.fill_null(-1)
    rows: I32 = indices.to_numpy(zero_copy_only=False)
    return rows


def id_words(column: pa.Array) -> U64:
    """The ids of a fixed_size_binary(16) column as a (rows, 2) view of two words each."""
    if not len(column):
        return np.empty((0, 2), np.uint64)
    # no more of the buffer than the rows need: what lies behind may be no multiple of a word
    end = column.offset + len(column)
    words: U64 = np.frombuffer(column.buffers()[1], np.uint64, 2 * end).reshape(-1, 2)
    return words[column.offset :]


def body_parts(column: pa.Array) -> tuple[U8, I32]:
    """Data (uint8) and offsets (int32, rows + 1) of a binary or string column."""
    _, offsets, data = column.buffers()
    offs = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return (np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)), offs


def payload_fingerprints(batch: pa.RecordBatch, seed: int) -> U64:
    """`payloads_of` of a batch or a segment."""
    return payloads_of(batch.column("body"), [batch.column(name) for name in _PAYLOAD_TEXTS], seed)


def payloads_of(body: pa.Array, texts: Sequence[pa.DictionaryArray], seed: int) -> U64:
    """What tells a retry from a conflict, one value a row: of body, sender, topic and content type, all of them valid.

    `client_ts` is left out: a client that stamps its retry anew still retries. `seed` is the folder's secret: nobody
    can make another payload with the fingerprint of a known one. Runs of old ids have it (`imray.log.id_run`), so it
    may not change for a data folder."""
    key = np.uint64(seed)
    hashes = keyed_hashes(*_strings(body), key)
    for column in texts:
        valid, indices = column.buffers()
        first = column.offset
        at = indices.address + 4 * first if indices else 0
        mix_keys(hashes, at, valid.address if valid else 0, first, keyed_hashes(*_strings(column.dictionary), key))
    return hashes


def _strings(column: pa.Array) -> tuple[int, int, int]:
    """How many rows a binary or string column has, and the addresses of its first offset and its data."""
    _, offsets, data = column.buffers()
    if not offsets or not len(column):
        return 0, _NO_OFFSETS.address, 0
    return len(column), offsets.address + 4 * column.offset, data.address if data else 0


def segment_table(table: pa.Table, keep: Bools | None, seq: I64, server_ts_ms: int) -> pa.Table:
    """The rows of a batch table that are new (`keep`; None: all) with their numbers, as a segment's table; up to
    FEW_ROWS_MAX with plain texts.

    `seq` holds the numbers of the kept rows only."""
    if keep is not None:
        table = _kept(table, keep)
    rows = len(seq)
    numbers = pa.Array.from_buffers(pa.int64(), rows, [None, pa.py_buffer(np.ascontiguousarray(seq, np.int64))])
    kinds = pa.Array.from_buffers(pa.int8(), rows, [None, pa.py_buffer(bytes(rows))])
    times = pa.Array.from_buffers(
        MS, rows, [None, pa.py_buffer(server_ts_ms.to_bytes(8, "little", signed=True) * rows)]
    )
    few = 0 < rows <= FEW_ROWS_MAX
    columns = table.combine_chunks().to_batches()[0].columns if few else table.columns
    conv, ids, sender, topic, content_type, client_ts, body = [_plain(c) for c in columns] if few else columns
    return pa.Table.from_arrays(
        [conv, numbers, kinds, ids, sender, topic, content_type, client_ts, times, body],
        schema=_PLAIN_SEGMENT_SCHEMA if few else SEGMENT_SCHEMA,
    )


def _plain(column: pa.Array) -> pa.Array:
    """A dictionary column as its values; another one as it is."""
    if not isinstance(column, pa.DictionaryArray):
        return column
    rows = len(column)
    if column.null_count == rows:
        return _NO_TEXTS.slice(0, rows)
    # of one row the dictionary is the column; pyarrow takes 4 us to find out, and four times that in a cold cache
    values = column.dictionary
    return values if len(values) == rows == 1 else column.dictionary_decode()


def _kept(table: pa.Table, keep: Bools) -> pa.Table:
    """The rows where `keep` holds. Retries come in runs, and slices between a few of them cost no copy of bodies."""
    edges = np.flatnonzero(np.diff(keep, prepend=False, append=False))
    if len(edges) > len(keep) // _ROWS_PER_EDGE_MIN:
        return table.filter(pa.array(keep))
    runs = [table.slice(first, end - first) for first, end in edges.reshape(-1, 2).tolist()]
    return pa.concat_tables(runs) if runs else table.slice(0, 0)


def record_table(records: Sequence[LogRecord | Record], server_ts_ms: int) -> pa.Table:
    """A segment's table of records that are no messages."""
    rows = [
        {"conv_id": conv, "conv_seq": seq, "kind": kind, "server_ts": server_ts_ms, "body": _json(body)}
        for conv, seq, kind, body in records
    ]
    return pa.Table.from_pylist(rows, schema=_PLAIN_SEGMENT_SCHEMA).cast(SEGMENT_SCHEMA)


def _json(body: RecordBody | dict[str, object] | None) -> bytes:
    # the notation (spaces, escapes) of the records that are in logs already
    return json.dumps({} if body is None else msgspec.to_builtins(body)).encode()


def void_table(conv_id: str, first: int, last: int, reason: str, server_ts_ms: int) -> pa.Table:
    """A segment's table that says: numbers first..last of the conversation will never be messages, and why."""
    return record_table([LogRecord(conv_id, first, RecordKind.VOID, VoidRecord(last, reason))], server_ts_ms)
