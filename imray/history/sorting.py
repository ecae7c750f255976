"""Sorting rows of the history as its table has them: by conversation, number, log, segment and row.

Owns the order. A conversation's rows are nearly sorted wherever they come from, so they are put together by the rank of
its name in one pass, and only stretches that overlap are merged.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imray.history.segment_rows import CODED_SCHEMA, TEXT_COLUMNS
from imray.kernels.arrays import I32, I64
from imray.kernels.row_order import order_by_rank, sort_within
from imray.log.schema import dictionary_rows

_TAKE_ROWS = 32 * 1024
"""Rows that are put in order at once: little memory beside what is sorted."""


def sorted_tables(table: pa.Table) -> Iterator[pa.Table]:
    """The rows of a table (CODED_SCHEMA) in the table's order, in pieces of one chunk each."""
    if not table.num_rows:
        return
    table = coded_by_rank(table)
    columns: dict[str, pa.Array] = {name: table.column(name).chunk(0) for name in CODED_SCHEMA.names}
    order = _order(columns)
    for first in range(0, len(order), _TAKE_ROWS):
        which = order[first : first + _TAKE_ROWS]
        taken = pa.array(which)
        arrays = [_take(columns[name], which, taken) for name in CODED_SCHEMA.names]
        yield pa.Table.from_arrays(arrays, schema=CODED_SCHEMA)


def coded_by_rank(table: pa.Table) -> pa.Table:
    """The same rows in one chunk, with the names of conversations sorted: the code of a name is its rank."""
    table = table.unify_dictionaries().combine_chunks()
    at = table.schema.get_field_index("conv_id")
    column: pa.DictionaryArray = table.column(at).chunk(0)
    names = column.dictionary
    by_rank = pc.sort_indices(names)
    rank_of = np.empty(len(names), np.int32)
    rank_of[by_rank.to_numpy()] = np.arange(len(names), dtype=np.int32)
    ranks = rank_of[dictionary_rows(column)]
    coded = pa.DictionaryArray.from_arrays(pa.array(ranks), names.take(by_rank))
    return table.set_column(at, CODED_SCHEMA.field(at), coded)


def _order(columns: dict[str, pa.Array]) -> I64:
    conv = columns["conv_id"]
    order, starts = order_by_rank(dictionary_rows(conv), len(conv.dictionary))
    numbers = [columns[name].to_numpy() for name in ("conv_seq", "log", "segment", "row")]
    sort_within(order, starts, *numbers)
    return order


def _take(column: pa.Array, which: I64, taken: pa.Array) -> pa.Array:
    if isinstance(column, pa.DictionaryArray):
        if column.null_count == len(column):
            return column.slice(0, len(which))
        return pa.DictionaryArray.from_arrays(column.indices.take(taken), column.dictionary)
    return column.take(taken)


def text_codes(column: pa.DictionaryArray) -> I32:
    """Codes of a dictionary column, -1 for null."""
    return dictionary_rows(column)


__all__ = ["TEXT_COLUMNS", "coded_by_rank", "sorted_tables", "text_codes"]
