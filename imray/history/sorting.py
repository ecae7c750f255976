"""Sorting rows of the history as its table has them: by conversation, number, log, segment and row.

Owns the order. A conversation's rows are nearly sorted wherever they come from, so they are put together by the rank of
its name in one pass, and only stretches that overlap are merged. Bodies are copied once, from where they were decoded:
memory that is touched for the first time costs more than sorting (3 ms a megabyte on a virtual machine).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imray.history.segment_rows import CODED_SCHEMA
from imray.kernels.arrays import I32, I64
from imray.kernels.gather import gather_bytes, gather_sizes
from imray.kernels.row_order import order_by_rank, sort_within
from imray.log.schema import dictionary_rows

_TAKE_ROWS = 32 * 1024
"""Rows that are put in order at once: little memory beside what is sorted."""
_TAKE_BYTES = 16 * 1024 * 1024
"""Of bodies, likewise; far below what 32-bit offsets hold."""
_BYTES = ("client_msg_id", "body")
_PLACE = ("conv_seq", "log", "segment", "row")


def sorted_tables(table: pa.Table) -> Iterator[pa.Table]:
    """The rows of a table (CODED_SCHEMA) in the history's order, in pieces of one chunk each.

    The code of a conversation is its name's rank in all of them."""
    if not table.num_rows:
        return
    strings = {name: _ByteStrings(table.column(name)) for name in _BYTES}
    columns = _ranked(table.drop_columns(list(_BYTES)))
    order = _order(columns)
    for which in _pieces(order, strings["body"].sizes):
        taken = pa.array(which)
        arrays = [
            strings[name].take(which) if name in strings else _take(columns[name], taken) for name in CODED_SCHEMA.names
        ]
        yield pa.Table.from_arrays(arrays, schema=CODED_SCHEMA)


def _ranked(table: pa.Table) -> dict[str, pa.Array]:
    """The columns in one chunk each, with the names of conversations sorted: the code of a name is its rank."""
    table = table.unify_dictionaries().combine_chunks()
    columns: dict[str, pa.Array] = {name: table.column(name).chunk(0) for name in table.schema.names}
    conv = columns["conv_id"]
    names = conv.dictionary
    by_rank = pc.sort_indices(names)
    rank_of = np.empty(len(names), np.int32)
    rank_of[by_rank.to_numpy()] = np.arange(len(names), dtype=np.int32)
    ranks = pa.array(rank_of[dictionary_rows(conv)])
    columns["conv_id"] = pa.DictionaryArray.from_arrays(ranks, names.take(by_rank))
    return columns


def _order(columns: dict[str, pa.Array]) -> I64:
    conv = columns["conv_id"]
    order, starts = order_by_rank(dictionary_rows(conv), len(conv.dictionary))
    sort_within(order, starts, *(columns[name].to_numpy() for name in _PLACE))
    return order


def _pieces(order: I64, sizes: I32) -> Iterator[I64]:
    first = 0
    while first < len(order):
        which = order[first : first + _TAKE_ROWS]
        fits = int(np.searchsorted(np.cumsum(sizes[which], dtype=np.int64), _TAKE_BYTES))
        which = which[: max(1, fits)]
        yield which
        first += len(which)


def _take(column: pa.Array, taken: pa.Array) -> pa.Array:
    if not isinstance(column, pa.DictionaryArray):
        return column.take(taken)
    if column.null_count == len(column):
        return column.slice(0, len(taken))
    return pa.DictionaryArray.from_arrays(column.indices.take(taken), column.dictionary)


class _ByteStrings:
    """A binary column, where it is: its chunks are not joined."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._kept = column
        self.sizes = np.empty(len(column), np.int32)
        """Of each in bytes."""
        self._addresses = np.empty(len(column), np.int64)
        self._null = column.is_null().to_numpy() if column.null_count else None
        at = 0
        for chunk in column.chunks:
            if len(chunk):
                _, offsets, data = chunk.buffers()
                ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
                np.subtract(ends[1:], ends[:-1], out=self.sizes[at : at + len(chunk)])
                address = data.address if data is not None else 0
                np.add(ends[:-1], address, out=self._addresses[at : at + len(chunk)], dtype=np.int64)
                at += len(chunk)

    def take(self, which: I64) -> pa.Array:
        """Those of some rows."""
        offsets = np.empty(len(which) + 1, np.int32)
        gather_sizes(which, self.sizes, offsets)
        data = pa.allocate_buffer(int(offsets[-1]))
        gather_bytes(which, self._addresses, offsets, data.address)
        valid = None
        if self._null is not None:
            valid = pa.array(~self._null[which]).buffers()[1]
        return pa.Array.from_buffers(pa.binary(), len(which), [valid, pa.py_buffer(offsets), data])
