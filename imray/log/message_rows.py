"""Messages from columns to rows: what a listener is told is made of rows in the end.

Owns the conversion. Reads Arrow's buffers where pyarrow's own way costs ten times as much (timestamps become datetimes,
dictionaries are looked up value by value).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from imray.core.messages import MessageRow


def message_rows(table: pa.Table) -> list[MessageRow]:
    """The rows of a table that has the columns of `imray.log.page_schema.MESSAGES_SCHEMA`, as text or dictionaries."""
    if not table.num_rows:
        return []
    columns = (
        _ints(table.column("conv_seq")),
        table.column("client_msg_id").to_pylist(),
        text_values(table.column("sender")),
        text_values(table.column("topic")),
        text_values(table.column("content_type")),
        _ints(table.column("client_ts")),
        _ints(table.column("server_ts")),
        table.column("body").to_pylist(),
    )
    return list(map(MessageRow, *columns))


def text_values(column: pa.ChunkedArray) -> list[Any]:
    """The texts of a plain or dictionary column."""
    if column.null_count == len(column):
        return [None] * len(column)
    if not pa.types.is_dictionary(column.type):
        values: list[Any] = column.to_pylist()
        return values
    found: list[Any] = []
    for chunk in column.chunks:
        names = [*chunk.dictionary.to_pylist(), None]
        indices = chunk.indices
        if indices.null_count:
            indices = indices.fill_null(len(names) - 1)
        found += [names[i] for i in indices.to_numpy(zero_copy_only=False).tolist()]
    return found


def _ints(column: pa.ChunkedArray) -> list[Any]:
    """Numbers, or timestamps as numbers."""
    found: list[Any] = []
    for chunk in column.chunks:
        count = len(chunk)
        if chunk.null_count == count:
            found += [None] * count
            continue
        values = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + count].tolist()
        if chunk.null_count:
            valid = chunk.is_valid().to_pylist()
            values = [v if ok else None for v, ok in zip(values, valid, strict=True)]
        found += values
    return found
