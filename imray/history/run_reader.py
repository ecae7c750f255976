"""Reading runs: only what is needed of a file, and nothing that was not verified.

Owns a bounded cache of indexes and decoded groups. Safe for threads: locks are held for look-ups, never for reads.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from imray.history.layout import HISTORY_SCHEMA
from imray.history.run_file import void_at
from imray.history.run_groups import GroupReader, decode, stretches
from imray.history.run_index import RunIndex
from imray.history.snapshot import RunFile
from imray.kernels.arrays import I64
from imray.log.schema import RecordKind
from imray.log.store import Store

_INDEX_COST = 2
"""Memory of an index, in bytes of its footer."""


class _Cache:
    """The values used last, up to so many bytes. Not safe for threads."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.bytes = 0
        self._values: OrderedDict[object, tuple[Any, int]] = OrderedDict()

    def get(self, key: object) -> Any:
        """The value of a key; None where it is not known."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: object, value: object, size: int) -> None:
        """Remember a value, and forget those that were not used for longest."""
        if size > self._bytes_max or key in self._values:
            return
        self._values[key] = (value, size)
        self.bytes += size
        while self.bytes > self._bytes_max:
            _, (_, gone) = self._values.popitem(last=False)
            self.bytes -= gone


class RunReader:
    """Reads verified rows of runs' files."""

    def __init__(self, store: Store, cache_bytes: int) -> None:
        """`cache_bytes` bounds what is remembered: footers and decoded row groups."""
        self._reader = GroupReader(store)
        self._lock = threading.Lock()
        self._known = _Cache(cache_bytes)

    @property
    def bytes_read(self) -> int:
        """Bytes that the store gave so far."""
        return self._reader.bytes_read

    @property
    def bytes_remembered(self) -> int:
        """Memory of what is remembered, about."""
        with self._lock:
            return self._known.bytes

    def _index(self, file: RunFile) -> RunIndex:
        """The verified index of a file. CorruptError; InvalidError where a newer imray wrote it."""
        with self._lock:
            found: RunIndex | None = self._known.get(file.name)
        if found is None:
            found = self._reader.index(file)
            with self._lock:
                self._known.put(file.name, found, found.tail_bytes * _INDEX_COST)
        return found

    def rows(self, file: RunFile, conv_id: str, low: int, high: int, limit: int | None, descending: bool) -> pa.Table:
        """The messages and voids of a conversation with numbers low..high, in the order of the table (HISTORY_SCHEMA),
        and the voids from below that reach into them.

        With `limit` (at least 1) no more than the first so many messages, or with `descending` the last, and the
        voids on the way there: what it returns is complete up (down) to the number of its last (first) message.
        CorruptError as `verify`."""
        if low > high or not file.first <= conv_id <= file.last:
            return HISTORY_SCHEMA.empty_table()
        index = self._index(file)
        groups = index.groups_of(conv_id, low, high)
        found: list[pa.Table] = []
        messages = 0
        reached = 0  # the number of the message that was found last
        for group in reversed(groups) if descending else groups:
            note = index.note.groups[group]
            # what has the number of the last message belongs to the answer, also where it is in the next group
            is_beyond = note.last[1] < reached if descending else note.first[1] > reached
            if limit is not None and messages >= limit and is_beyond:
                break
            if note.shown:
                part = _shown(self._group(index, group), conv_id, low, high)
                numbers = _message_numbers(part)
                if len(numbers):
                    messages += len(numbers)
                    reached = int(numbers[0 if descending else -1])
                found.append(part)
        if descending:
            found.reverse()
        if limit is None or not descending or messages < limit:
            below = index.open_at(groups.start)
            found[:0] = [_shown(self._group(index, group), conv_id, low, high) for group in below]
        return _cut(pa.concat_tables(found), limit, descending) if found else HISTORY_SCHEMA.empty_table()

    def _group(self, index: RunIndex, group: int) -> pa.Table:
        """All rows of a row group, verified."""
        with self._lock:
            table = self._known.get((index.name, group))
        if table is None:
            alone = range(group, group + 1)
            table = decode(index, alone, self._reader.groups(index, alone)).combine_chunks()
            with self._lock:
                self._known.put((index.name, group), table, table.nbytes)
        return table

    def tables(self, file: RunFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows of a file, some row groups at a time, each verified before it is decoded. Nothing is remembered."""
        index = self._index(file)
        for groups in stretches(index):
            yield decode(index, groups, self._reader.groups(index, groups), columns)

    def verify(self, file: RunFile) -> None:
        """Read every byte. CorruptError with file and place where one is not as it was written."""
        index = self._reader.index(file)
        for groups in stretches(index):
            self._reader.groups(index, groups)


def _shown(table: pa.Table, conv_id: str, low: int, high: int) -> pa.Table:
    """Messages and voids of a conversation that are or reach into low..high, of a sorted table."""
    names = table.column("conv_id")
    rows = range(table.num_rows)
    start = bisect_left(rows, conv_id, key=lambda i: str(names[i]))
    own = table.slice(start, bisect_right(rows, conv_id, lo=start, key=lambda i: str(names[i])) - start)
    seq = own.column("conv_seq").to_numpy()
    kind = own.column("kind").to_numpy()
    first = int(np.searchsorted(seq, low))
    end = int(np.searchsorted(seq, high, "right"))
    is_void = kind == RecordKind.VOID
    wanted = is_void | (kind == RecordKind.MESSAGE)
    reaching = [at for at in np.flatnonzero(is_void[:first]).tolist() if void_at(own, at).last >= low]
    if not reaching and wanted[first:end].all():
        return own.slice(first, end - first)
    return own.take(pa.array([*reaching, *(first + np.flatnonzero(wanted[first:end]))], pa.int64()))


def _cut(table: pa.Table, limit: int | None, descending: bool) -> pa.Table:
    """The rows up to the message at which the limit is reached, whatever else has its number."""
    messages = _message_numbers(table)
    if limit is None or len(messages) < limit:
        return table
    seq = table.column("conv_seq").to_numpy()
    if descending:
        return table.slice(int(np.searchsorted(seq, messages[-limit])))
    return table.slice(0, int(np.searchsorted(seq, messages[limit - 1], "right")))


def _message_numbers(table: pa.Table) -> I64:
    seq: I64 = table.column("conv_seq").to_numpy()
    messages: I64 = seq[table.column("kind").to_numpy() == RecordKind.MESSAGE]
    return messages
