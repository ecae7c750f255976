"""Several sorted runs as one stream of sorted rows, in little memory however large they are.

Owns the order in which groups are read. The indexes say with which row each group begins: whatever sorts below the
first row of every group that was not read yet can go on, whichever run it is from and however large a conversation is.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from imray.history.run_groups import GroupReader, decode, stretches
from imray.history.run_index import Key, RunIndex
from imray.history.snapshot import Run
from imray.history.sorting import sorted_tables
from imray.log.store import Store


def merged_tables(store: Store, runs: Sequence[Run], step_bytes: int) -> Iterator[pa.Table]:
    """All rows of sorted runs, sorted, as CODED_SCHEMA; about `step_bytes` of them are sorted at once, and half as many
    wait in memory for those of other runs. CorruptError where a file does not verify."""
    reader = GroupReader(store)
    ahead_bytes = step_bytes // (2 * len(runs))
    streams = [_Stream(reader, run, ahead_bytes) for run in runs]
    waiting = [(s.next_first, number) for number, s in enumerate(streams) if s.next_first is not None]
    heapq.heapify(waiting)
    while waiting:
        read = sum(s.bytes for s in streams)
        end = read + max(1, step_bytes)
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
    """One run, read from its first row to its last."""

    def __init__(self, reader: GroupReader, run: Run, ahead_bytes: int) -> None:
        self._reader = reader
        self._ahead_bytes = ahead_bytes
        self._rest = self._stretches(run)
        self._following = next(self._rest, None)
        self._tables: list[pa.Table] = []
        self.bytes = 0
        """In memory, of what was read and not taken."""

    def _stretches(self, run: Run) -> Iterator[tuple[RunIndex, range]]:
        # file after file: the indexes of all would take more memory than the rows
        for file in run.files:
            index = self._reader.index(file)
            for groups in stretches(index, self._ahead_bytes):
                yield index, groups

    @property
    def next_first(self) -> Key | None:
        """The key of the first row that was not read yet; None: all were."""
        if self._following is None:
            return None
        index, groups = self._following
        return index.note.groups[groups[0]].first

    def read(self) -> int:
        """Read the next row groups: their bytes in memory."""
        assert self._following is not None
        index, groups = self._following
        table = decode(index, groups, self._reader.groups(index, groups), coded=True)
        self._tables.append(table)
        self._following = next(self._rest, None)
        self.bytes += table.nbytes
        return int(table.nbytes)

    def take(self, bound: Key | None) -> list[pa.Table]:
        """The rows that were read and sort below a key (None: all); the others stay."""
        taken = self._tables
        self._tables = []
        if bound is not None and taken:
            # of what was read only the last part can reach beyond what was not
            last = taken.pop()
            count = _rows_below(last, bound)
            taken.append(last.slice(0, count))
            if count < last.num_rows:
                self._tables = [last.slice(count)]
        self.bytes = sum(t.nbytes for t in self._tables)
        return taken


def _rows_below(table: pa.Table, bound: Key) -> int:
    """How many rows of a sorted table sort below a key."""
    names = table.column("conv_id")
    first: int = pc.sum(pc.less(names, bound[0])).as_py()
    end: int = first + pc.sum(pc.equal(names, bound[0])).as_py()
    columns = [table.column(name).to_numpy() for name in ("conv_seq", "log", "segment", "row")]

    def key(i: int) -> tuple[int, int, int, int]:
        seq, log, segment, row = (int(column[i]) for column in columns)
        return seq, log, segment, row

    return bisect_left(range(end), bound[1:], first, end, key=key)
