"""Reading runs: only what is needed of a file, and nothing that was not verified.

Owns caches of footers and decoded groups, both bounded. Safe for threads: locks are held for look-ups, never for reads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imray.history.layout import HISTORY_SCHEMA
from imray.history.run_file import void_at
from imray.history.run_groups import GroupReader, decode, stretches
from imray.history.run_index import RunIndex
from imray.history.snapshot import RunFile
from imray.log.schema import RecordKind
from imray.log.store import Store

V = TypeVar("V")

_INDEX_SHARE = 4
"""A fourth of the cache may be footers."""
_INDEX_COST = 2
"""Memory of a footer that was read, in its bytes."""


class _Cache(Generic[V]):
    """The values used last, up to so many bytes. Not safe for threads."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._values: OrderedDict[object, tuple[V, int]] = OrderedDict()

    def get(self, key: object) -> V | None:
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: object, value: V, size: int) -> None:
        if size > self._bytes_max or key in self._values:
            return
        self._values[key] = (value, size)
        self._bytes += size
        while self._bytes > self._bytes_max:
            _, (_, gone) = self._values.popitem(last=False)
            self._bytes -= gone


class RunReader:
    """Reads verified rows of runs' files."""

    def __init__(self, store: Store, cache_bytes: int) -> None:
        """`cache_bytes` bounds what is remembered: footers and decoded row groups."""
        self._reader = GroupReader(store)
        self._lock = threading.Lock()
        self._indexes: _Cache[RunIndex] = _Cache(cache_bytes // _INDEX_SHARE)
        self._groups: _Cache[pa.Table] = _Cache(cache_bytes - cache_bytes // _INDEX_SHARE)

    @property
    def bytes_read(self) -> int:
        """Bytes that the store gave so far."""
        return self._reader.bytes_read

    def _index(self, file: RunFile) -> RunIndex:
        """The verified index of a file. CorruptError; InvalidError where a newer imray wrote it."""
        with self._lock:
            found = self._indexes.get(file.name)
        if found is None:
            found = self._reader.index(file)
            with self._lock:
                self._indexes.put(file.name, found, found.tail_bytes * _INDEX_COST)
        return found

    def rows(self, file: RunFile, conv_id: str, low: int, high: int, limit: int | None, descending: bool) -> pa.Table:
        """The messages and voids of a conversation with numbers low..high, in the order of the table (HISTORY_SCHEMA),
        and the voids from below that reach into them.

        With `limit` the first so many messages (with `descending` the last), and all voids up to there: what it
        returns is complete up to the number of the last (first) message in it. CorruptError as `verify`."""
        if low > high or not file.first <= conv_id <= file.last:
            return HISTORY_SCHEMA.empty_table()
        index = self._index(file)
        groups = index.groups_of(conv_id, low, high)
        found: list[pa.Table] = []
        messages = 0
        for group in reversed(groups) if descending else groups:
            if limit is not None and messages >= limit:
                break
            if index.note.groups[group].shown:
                part = _shown(self._group(index, group), conv_id, low, high)
                messages += int(np.count_nonzero(part.column("kind").to_numpy() == RecordKind.MESSAGE))
                found.append(part)
        else:
            for group in index.open_at(groups.start):
                found.append(_shown(self._group(index, group), conv_id, low, high))
        if not found:
            return HISTORY_SCHEMA.empty_table()
        return _first(pa.concat_tables(found), limit, descending)

    def _group(self, index: RunIndex, group: int) -> pa.Table:
        """All rows of a row group, verified."""
        with self._lock:
            table = self._groups.get((index.name, group))
        if table is None:
            alone = range(group, group + 1)
            table = decode(index, alone, self._reader.groups(index, alone))
            with self._lock:
                self._groups.put((index.name, group), table, table.nbytes)
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
    """Messages and voids of a conversation that are or reach into low..high."""
    own = pc.equal(table.column("conv_id"), conv_id).to_numpy()
    seq = table.column("conv_seq").to_numpy()
    kind = table.column("kind").to_numpy()
    is_void = kind == RecordKind.VOID
    wanted = own & (seq >= low) & (seq <= high) & (is_void | (kind == RecordKind.MESSAGE))
    for at in np.flatnonzero(own & is_void & (seq < low)).tolist():
        wanted[at] = void_at(table, at).last >= low
    return table.filter(pa.array(wanted))


def _first(table: pa.Table, limit: int | None, descending: bool) -> pa.Table:
    table = table.sort_by([(name, "ascending") for name in ("conv_seq", "log", "segment", "row")])
    if limit is None:
        return table
    seq = table.column("conv_seq").to_numpy()
    messages = seq[table.column("kind").to_numpy() == RecordKind.MESSAGE]
    if len(messages) <= limit:
        return table
    if descending:
        return table.slice(int(np.searchsorted(seq, messages[-limit]))) if limit else table.slice(0, 0)
    return table.slice(0, int(np.searchsorted(seq, messages[limit - 1], "right"))) if limit else table.slice(0, 0)
