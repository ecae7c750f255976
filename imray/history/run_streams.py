"""Several sorted runs as one stream of sorted rows, in little memory however large they are.

Owns the order in which groups are read. The indexes say with which row each group begins: whatever sorts below the
first row of every group that was not read yet can go on, whichever run it is from and however large a conversation is.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imray.history.run_groups import GroupReader, decode_all
from imray.history.run_index import Key
from imray.history.snapshot import Run
from imray.history.sorting import sorted_tables
from imray.log.schema import dictionary_rows
from imray.log.store import Store


def merged_tables(store: Store, runs: Sequence[Run], step_bytes: int) -> Iterator[pa.Table]:
    """All rows of sorted runs, sorted, as CODED_SCHEMA; about `step_bytes` of them and one group of each run are in
    memory at once. CorruptError where a file does not verify."""
    reader = GroupReader(store)
    streams = [_Stream(reader, run) for run in runs]
    waiting = [(s.next_first, number) for number, s in enumerate(streams) if s.next_first is not None]
    heapq.heapify(waiting)
    while waiting:
        read = sum(s.bytes for s in streams)
        end = read + step_bytes
        while waiting and read < end:
            _, number = heapq.heappop(waiting)
            stream = streams[number]
            read += stream.read()
            if stream.next_first is not None:
                heapq.heappush(waiting, (stream.next_first, number))
        bound = waiting[0][0] if waiting else None
        below = [table for s in streams for table in s.take(bound)]
        if below:
            yield from sorted_tables(pa.concat_tables(below))


class _Stream:
    """The groups of one run, read one after the other."""

    def __init__(self, reader: GroupReader, run: Run) -> None:
        self._reader = reader
        self._groups = self._read_all(run)
        self._tables: list[pa.Table] = []
        self.next_first: Key | None = None
        """The key of the first row that was not read yet; None: all were."""
        self.bytes = 0
        """In memory, of what was read and not taken."""
        self._advance()

    def _read_all(self, run: Run) -> Iterator[tuple[Key, pa.Table]]:
        """Each group, and before it the key that it begins with."""
        for file in run.files:
            index = self._reader.index(file)
            tables = decode_all(index, self._reader.groups(index), coded=True)
            for note in index.note.groups:
                yield note.first, tables
        return

    def _advance(self) -> None:
        self._following = next(self._groups, None)
        self.next_first = None if self._following is None else self._following[0]

    def read(self) -> int:
        """Read the next group: its bytes in memory."""
        assert self._following is not None
        table = next(self._following[1])
        self._tables.append(table)
        self.bytes += table.nbytes
        self._advance()
        return int(table.nbytes)

    def take(self, bound: Key | None) -> list[pa.Table]:
        """The rows that were read and sort below a key (None: all); the others stay."""
        taken = self._tables
        self._tables = []
        if bound is not None and taken:
            # of the groups that were read only the last one can reach beyond what was not
            last = taken.pop()
            count = _rows_below(last, bound)
            taken.append(last.slice(0, count))
            if count < last.num_rows:
                self._tables = [last.slice(count)]
        self.bytes = sum(t.nbytes for t in self._tables)
        return taken


def _rows_below(table: pa.Table, bound: Key) -> int:
    """How many rows of a sorted table sort below a key."""
    conv = table.column("conv_id").combine_chunks()
    codes = dictionary_rows(conv)
    names = conv.dictionary
    before = pc.less(names, bound[0]).to_numpy(zero_copy_only=False)
    same = pc.equal(names, bound[0]).to_numpy(zero_copy_only=False)
    first = int(np.count_nonzero(before[codes]))
    end = first + int(np.count_nonzero(same[codes]))
    columns = [table.column(name).to_numpy() for name in ("conv_seq", "log", "segment", "row")]
    return bisect_left(range(end), bound[1:], first, end, key=lambda i: tuple(int(c[i]) for c in columns))
