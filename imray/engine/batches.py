"""Batches of a conversation: made of what was published or read, cut to pieces that a listener can take.

Owns the moves between messages and `Batch`. Does not own who gets which (`imray.engine.live_feed`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from imray.core.feed import Stretch
from imray.core.messages import MessageRow
from imray.engine.listening import Batch
from imray.log.message_rows import message_rows, text_values
from imray.rpc.publications import Publication

PIECE_ROWS_MAX = 500
PIECE_BYTES_MAX = 128 * 1024
"""Of one frame: a tenth of what may wait for a listener, so that one that reads gets along."""
ROW_BYTES = 400
"""Of a message in memory beside its body, about."""

Rows = list[MessageRow]
_seq = attrgetter("conv_seq")


def messages_of(publication: Publication) -> Iterable[tuple[str, Rows]]:
    """What was published, by conversation."""
    table = publication.table
    if table is None:
        return publication.head.messages
    found: dict[str, Rows] = {}
    for name, row in zip(text_values(table.column("conv_id")), message_rows(table), strict=True):
        found.setdefault(name, []).append(row)
    return found.items()


def runs_of(rows: Rows) -> list[Stretch[Rows]]:
    """Ascending messages of one conversation as runs of consecutive numbers."""
    if not rows:
        return []
    first = rows[0].conv_seq
    last = rows[-1].conv_seq
    if last - first + 1 == len(rows):
        return [Stretch(first, last, rows, size_of(rows))]
    runs: list[Stretch[Rows]] = []
    begin = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or rows[at].conv_seq != rows[at - 1].conv_seq + 1:
            part = rows[begin:at]
            runs.append(Stretch(rows[begin].conv_seq, rows[at - 1].conv_seq, part, size_of(part)))
            begin = at
    return runs


def joined(runs: Sequence[Stretch[Rows]]) -> Rows:
    """The messages of some runs, one after the other."""
    return runs[0].rows if len(runs) == 1 else [row for run in runs for row in run.rows]


def cut(batch: Batch, after: int, upto: int) -> Batch:
    """The numbers above `after` up to `upto` of a batch."""
    if after <= batch.after and upto >= batch.upto:
        return batch
    after = max(after, batch.after)
    upto = min(upto, batch.upto)
    rows = batch.messages
    begin = bisect_right(rows, after, key=_seq)
    end = bisect_right(rows, upto, key=_seq)
    holes = [(max(a, after + 1), min(b, upto), why) for a, b, why in batch.holes if b > after and a <= upto]
    return Batch(batch.conv_id, after, upto, batch.stable, rows[begin:end], holes)


def pieces(batch: Batch) -> Iterator[Batch]:
    """A batch in parts of bounded size; together they are the batch."""
    rows = batch.messages
    if len(rows) <= PIECE_ROWS_MAX and size_of(rows) <= PIECE_BYTES_MAX + ROW_BYTES * len(rows):
        yield batch
        return
    after = batch.after
    begin = 0
    size = 0
    for at, row in enumerate(rows):
        size += len(row.body)
        last = at + 1 == len(rows)
        if last or at + 1 - begin == PIECE_ROWS_MAX or size + len(rows[at + 1].body) > PIECE_BYTES_MAX:
            upto = batch.upto if last else row.conv_seq
            yield cut(batch, after, upto)
            after = upto
            begin = at + 1
            size = 0


def size_of(rows: Rows) -> int:
    """Bytes of memory, about."""
    return sum([len(row.body) for row in rows]) + ROW_BYTES * len(rows)
