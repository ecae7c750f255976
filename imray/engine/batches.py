"""Batches of a conversation: made of what was published or read, cut to pieces that a listener can take.

Owns the moves between Arrow tables and `Batch`. Does not own who gets which (`imray.engine.live_feed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imray.core.feed import Run
from imray.engine.listening import Batch
from imray.log.page_schema import MESSAGES_SCHEMA

PIECE_ROWS_MAX = 500
PIECE_BYTES_MAX = 128 * 1024
"""Of one frame: a tenth of what may wait for a listener, so that one that reads gets along."""


def conversations_of(table: pa.Table) -> dict[str, list[Run[pa.Table]]]:
    """What was published, as runs of consecutive numbers for each conversation."""
    conv = table.column("conv_id").combine_chunks()
    if not pa.types.is_dictionary(conv.type):
        conv = conv.dictionary_encode()
    if isinstance(conv, pa.ChunkedArray):
        conv = conv.chunk(0) if conv.num_chunks else pa.array([], conv.type)
    names = conv.dictionary.to_pylist()
    rows = table.select(MESSAGES_SCHEMA.names).cast(MESSAGES_SCHEMA)
    if len(names) == 1:
        return {names[0]: runs_of(rows)}
    indices = conv.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(indices, kind="stable")
    found, begins = np.unique(indices[order], return_index=True)
    rows = rows.take(pa.array(order))
    ends = [*begins[1:].tolist(), len(order)]
    return {
        names[k]: runs_of(rows.slice(begin, end - begin))
        for k, begin, end in zip(found.tolist(), begins.tolist(), ends, strict=True)
    }


def seqs_of(table: pa.Table) -> npt.NDArray[np.int64]:
    """The numbers of some messages."""
    seqs: npt.NDArray[np.int64] = table.column("conv_seq").to_numpy()
    return seqs


def runs_of(rows: pa.Table) -> list[Run[pa.Table]]:
    """Ascending messages of one conversation as runs of consecutive numbers."""
    if not rows.num_rows:
        return []
    seqs = seqs_of(rows)
    first = int(seqs[0])
    last = int(seqs[-1])
    if last - first + 1 == len(seqs):
        return [Run(first, last, rows)]
    edges = [0, *(np.flatnonzero(np.diff(seqs) != 1) + 1).tolist(), len(seqs)]
    return [Run(int(seqs[a]), int(seqs[b - 1]), rows.slice(a, b - a)) for a, b in pairwise(edges)]


def joined(runs: Sequence[Run[pa.Table]]) -> pa.Table:
    """The messages of some runs as one table."""
    if len(runs) == 1:
        return runs[0].rows
    return pa.concat_tables([MESSAGES_SCHEMA.empty_table(), *(run.rows for run in runs)])


def cut(batch: Batch, after: int, upto: int) -> Batch:
    """The numbers above `after` up to `upto` of a batch."""
    if after <= batch.after and upto >= batch.upto:
        return batch
    after = max(after, batch.after)
    upto = min(upto, batch.upto)
    begin, end = np.searchsorted(seqs_of(batch.messages), (after, upto), side="right").tolist()
    holes = [(max(a, after + 1), min(b, upto), why) for a, b, why in batch.holes if b > after and a <= upto]
    return Batch(batch.conv_id, after, upto, batch.stable, batch.messages.slice(begin, end - begin), holes)


def pieces(batch: Batch) -> Iterator[Batch]:
    """A batch in parts of bounded size; together they are the batch."""
    table = batch.messages
    rows = table.num_rows
    if rows <= PIECE_ROWS_MAX and table.nbytes <= PIECE_BYTES_MAX:
        yield batch
        return
    seqs = seqs_of(table)
    per_row = max(1, table.nbytes // max(1, rows))
    step = max(1, min(PIECE_ROWS_MAX, PIECE_BYTES_MAX // per_row))
    after = batch.after
    for begin in range(0, rows, step):
        end = begin + step
        upto = batch.upto if end >= rows else int(seqs[end - 1])
        yield cut(batch, after, upto)
        after = upto
