"""Batches as Arrow IPC streams: refused by their metadata before a byte of them is decoded.

A stream can say much in little: compressed buffers, dictionaries that ten thousand rows point into, views of one text.
What it would become is bounded here, first from the flatbuffers of its IPC messages, then from the lengths of values.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from api.auth import SENDER_BYTES_MAX, Caller
from api.checks import (
    CONTENT_TYPE_BYTES_MAX,
    TOPIC_BYTES_MAX,
    check_columns,
    check_count,
    check_size,
    ids_array,
    invalid,
    not_service,
)
from api.flatbuffer import BATCH, DICTIONARY, IpcMessage, SchemaLook, look_at_batch, read_messages
from api.problems import ProblemError
from imray.core.errors import InvalidError
from imray.core.ids import parse_client_msg_id
from imray.core.routing import CONV_ID_BYTES_MAX
from imray.log.schema import BATCH_SCHEMA, MS, TEXT, constant_text
from imray.settings import Settings

_COLUMNS_MAX = 100
_ID_TEXT_BYTES_MAX = 64
_TEXT_BYTES_MAX = {
    "conv_id": CONV_ID_BYTES_MAX,
    "client_msg_id": _ID_TEXT_BYTES_MAX,
    "sender": SENDER_BYTES_MAX,
    "topic": TOPIC_BYTES_MAX,
    "content_type": CONTENT_TYPE_BYTES_MAX,
}
_NEEDED = ("conv_id", "client_msg_id", "body")
_WORK = 4
"""Reading may look at so many times what a request may have: dictionaries are looked at once for each batch."""
_NULL = pa.null().id
_FIXED = pa.binary(1).id
_DICTIONARY_TYPE = pa.dictionary(pa.int32(), pa.string()).id
_TEXTS = frozenset(kind.id for kind in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary()))
_VIEWS = frozenset(kind.id for kind in (pa.string_view(), pa.binary_view()))
"""Types by their numbers: comparing whole types costs ten times that."""
_OPTIONS = pa.ipc.IpcReadOptions(ensure_native_endian=False, use_threads=False)
"""No swap of bytes: `_Walk` has refused what would need it."""
# numbers of fields in the flatbuffers of the format (Message.fbs)
_DICTIONARY_ID = 0
_DICTIONARY_DATA = 1
_DICTIONARY_DELTA = 2
_BATCH_LENGTH = 0


def check_batch_arrow(data: bytes, caller: Caller, settings: Settings) -> pa.RecordBatch:
    """The columns of an Arrow IPC stream. Untrusted: every offset is checked before it is followed."""
    try:
        _Walk(settings).over(data)  # before pyarrow: it expands what is named again and again
        with pa.ipc.open_stream(pa.py_buffer(data), options=_OPTIONS) as reader:
            _check_schema(reader.schema)
            table = reader.read_all()
        table.validate()
        check_count(table.num_rows, settings)
        _check_lengths(table, settings)
        table.validate(full=True)  # last: it reads a text as often as a view names it
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as e:
        raise ProblemError(400, "invalid", f"not a valid Arrow IPC stream: {e}") from e
    try:
        columns = [_column(table, f, caller) for f in BATCH_SCHEMA]
    except (pa.ArrowException, UnicodeError) as e:
        raise invalid(f"a column has the wrong type: {e}; expected {BATCH_SCHEMA}") from e
    batch = pa.record_batch(columns, schema=BATCH_SCHEMA)
    for name in ("conv_id", "client_msg_id", "sender", "body"):
        if batch.column(name).null_count:
            raise invalid(f"column {name} holds null")
    check_columns(batch, settings)
    return batch


@dataclass
class _Walk:
    """Over the IPC messages of a stream, before any is decoded."""

    settings: Settings
    schema: SchemaLook = field(default_factory=SchemaLook)
    rows: int = 0
    work: int = 0
    """Bytes that reading looks at."""
    dictionaries: Counter[int] = field(default_factory=Counter)
    """Bytes of each."""
    shared: int = 0
    """Bytes of all dictionaries, for each column that points into one: every batch looks at them."""

    def over(self, data: bytes) -> None:
        """ProblemError where the stream is larger than it looks."""
        for message in read_messages(data, self.settings.arrow_parts_max):
            if message.kind == DICTIONARY:
                self._dictionary(message)
            elif message.kind == BATCH:
                self._batch(message)
            else:
                self.schema.over(message, _COLUMNS_MAX)

    def _dictionary(self, message: IpcMessage) -> None:
        header = message.header
        if header.number(_DICTIONARY_DELTA, "<B"):
            raise invalid("the stream holds a delta dictionary: write whole ones")
        data = header.table(_DICTIONARY_DATA)
        if data is None:
            raise invalid("a dictionary has no data")
        look_at_batch(data, 1)
        if not 0 <= data.number(_BATCH_LENGTH, "<q") <= message.body_bytes:
            raise invalid("a dictionary has more values than bytes")
        name = header.number(_DICTIONARY_ID, "<q")
        if name not in self.schema.dictionaries:
            raise invalid("the stream holds a dictionary that no column points into")
        self.shared += (message.body_bytes - self.dictionaries[name]) * self.schema.dictionaries[name]
        self.dictionaries[name] = message.body_bytes

    def _batch(self, message: IpcMessage) -> None:
        look_at_batch(message.header, self.schema.columns)
        rows = message.header.number(_BATCH_LENGTH, "<q")
        if rows < 0:
            raise invalid("a record batch has a negative length")
        self.rows += rows
        if self.rows:
            check_count(self.rows, self.settings)
        self.work += message.body_bytes + self.shared
        if self.work > _WORK * self.settings.request_bytes_max:
            raise ProblemError(
                413, "too-large", "dictionaries over too many record batches: send fewer, larger batches"
            )


def _check_schema(schema: pa.Schema) -> None:
    known = set(BATCH_SCHEMA.names)
    if unknown := [n[:100] for n in schema.names if n not in known]:
        raise invalid(f"unknown columns {unknown}: known are {BATCH_SCHEMA.names}")
    if len(set(schema.names)) != len(schema.names):
        raise invalid("a column stands there twice")
    for name in _NEEDED:
        if name not in schema.names:
            raise invalid(f"column {name} is missing")
    for column in schema:
        wanted = BATCH_SCHEMA.field(column.name).type
        if not _fits(column.type, column.name):
            raise invalid(f"column {column.name} has the wrong type; expected {wanted}")


def _fits(kind: pa.DataType, name: str) -> bool:
    """Whether a column's type is a plain one that can become what is stored: nothing nested."""
    number = kind.id
    if number == _NULL:
        return True
    if name == "client_ts":
        return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind))
    if number == _DICTIONARY_TYPE:
        number = kind.value_type.id
        if number in _VIEWS:
            return False  # a cast cannot read them, and one text may stand in it many times
    if number == _FIXED:
        return name in ("client_msg_id", "body")
    return number in _TEXTS or number in _VIEWS


def _check_lengths(table: pa.Table, settings: Settings) -> None:
    """What the values of the rows would take where rows share them, each and together, before any is copied. Where they
    share none, the request's size is their bound, and `check_columns` looks at each."""
    total = 0
    for name in table.schema.names:
        number = table.schema.field(name).type.id
        if number != _DICTIONARY_TYPE and number not in _VIEWS:
            continue
        for chunk in table.column(name).chunks:
            bytes_max = settings.body_bytes_max if name == "body" else _TEXT_BYTES_MAX[name]
            if name != "body" and number == _DICTIONARY_TYPE and _largest(_lengths(chunk.dictionary)) <= bytes_max:
                continue  # whatever rows take of it
            lengths = _lengths(chunk)
            largest = _largest(lengths)
            if name == "body":
                check_size(largest, settings, "the largest body")
            elif largest > bytes_max:
                raise invalid(f"{name} has {largest} bytes of UTF-8: at most {bytes_max} are allowed")
            total += int(lengths.sum(dtype=np.int64))
    if total > settings.request_bytes_max:
        detail = f"the messages have {total} bytes: at most {settings.request_bytes_max} at once, send several batches"
        raise ProblemError(413, "too-large", detail)


def _largest(lengths: npt.NDArray[np.integer]) -> int:
    return int(lengths.max(initial=0))


def _lengths(values: pa.Array) -> npt.NDArray[np.integer]:
    """Bytes of each value; of nulls whatever, or nothing."""
    kind = values.type
    if kind.id == _DICTIONARY_TYPE:
        chosen: npt.NDArray[np.integer] = _lengths(values.dictionary)[values.indices.drop_null().to_numpy()]
        return chosen
    if kind.id == _FIXED:
        return np.broadcast_to(np.int64(kind.byte_width), len(values))  # takes no memory
    if kind.id in _VIEWS:
        # a view is 16 bytes and begins with its length
        if not len(values):
            return np.zeros(0, np.int32)
        lengths = np.frombuffer(values.buffers()[1], np.int32, 4 * len(values), 16 * values.offset)[::4]
        return np.maximum(lengths, 0)  # negative ones are refused later: they must not make the sum smaller
    lengths = pc.binary_length(values)
    counted = pc.fill_null(lengths, 0) if lengths.null_count else lengths
    plain: npt.NDArray[np.integer] = counted.to_numpy(zero_copy_only=False)
    return plain


def _column(table: pa.Table, field: pa.Field, caller: Caller) -> pa.Array:
    rows = table.num_rows
    if field.name == "sender":
        if "sender" not in table.schema.names:
            return constant_text(caller.sender, rows)
        if not caller.service:
            raise not_service()
    if field.name not in table.schema.names:
        return constant_text(None, rows) if field.type == TEXT else pa.nulls(rows, field.type)
    column = table.column(field.name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    if field.type == TEXT:
        # decoded and encoded anew: a dictionary may hold what no row uses, or a value twice
        return column.cast(pa.string()).dictionary_encode()
    if field.name == "client_msg_id" and not pa.types.is_fixed_size_binary(column.type):
        texts = column.cast(pa.string()).to_pylist()
        try:
            return ids_array(b"".join([parse_client_msg_id(t or "") for t in texts]), rows)
        except InvalidError as e:
            raise invalid(str(e)) from e
    if field.type == MS and pa.types.is_integer(column.type):
        return column.cast(pa.int64()).view(MS)
    return column.cast(field.type)
