"""Reading runs: only what is needed of a file, and nothing that was not verified.

Owns caches of footers and decoded groups, both bounded. Safe for threads: locks are held for look-ups, never for reads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imray.core.errors import CorruptError
from imray.history.layout import HISTORY_SCHEMA
from imray.history.run_file import void_at
from imray.history.run_index import TAIL_BYTES, RunIndex, footer_start, read_index
from imray.history.snapshot import RunFile
from imray.log.schema import RecordKind
from imray.log.store import Store

V = TypeVar("V")

_INDEX_SHARE = 4
"""A fourth of the cache may be footers."""
_INDEX_COST = 8
"""Memory of a footer that was read, in its bytes."""
_READ_BYTES = 4 * 1024 * 1024


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
        self._store = store
        self._lock = threading.Lock()
        self._indexes: _Cache[RunIndex] = _Cache(cache_bytes // _INDEX_SHARE)
        self._groups: _Cache[pa.Table] = _Cache(cache_bytes - cache_bytes // _INDEX_SHARE)
        self._bytes_read = 0

    @property
    def bytes_read(self) -> int:
        """Bytes that were asked of the store so far."""
        return self._bytes_read

    def index(self, file: RunFile) -> RunIndex:
        """The verified index of a file. CorruptError; InvalidError where a newer imray wrote it."""
        with self._lock:
            found = self._indexes.get(file.name)
        if found is None:
            found = self._read_index(file)
            with self._lock:
                self._indexes.put(file.name, found, found.tail_bytes * _INDEX_COST)
        return found

    def rows(
        self, file: RunFile, conv_id: str, low: int, high: int, limit: int | None, descending: bool
    ) -> pa.Table:
        """The messages and voids of a conversation with numbers low..high, in the order of the table (HISTORY_SCHEMA),
        and the voids from below that reach into them.

        With `limit` the first so many messages (with `descending` the last), and all voids up to there: what it
        returns is complete up to the number of the last (first) message in it. CorruptError as `verify`."""
        if low > high or not file.first <= conv_id <= file.last:
            return HISTORY_SCHEMA.empty_table()
        index = self.index(file)
        groups = index.groups_of(conv_id, low, high)
        found: list[pa.Table] = []
        messages = 0
        for group in reversed(groups) if descending else groups:
            if limit is not None and messages >= limit:
                break
            if index.note.groups[group].shown:
                part = _shown(self.group(file, index, group), conv_id, low, high)
                messages += int(np.count_nonzero(part.column("kind").to_numpy() == RecordKind.MESSAGE))
                found.append(part)
        else:
            for group in index.open_at(groups.start):
                found.append(_shown(self.group(file, index, group), conv_id, low, high))
        if not found:
            return HISTORY_SCHEMA.empty_table()
        return _first(pa.concat_tables(found), limit, descending)

    def group(self, file: RunFile, index: RunIndex, group: int) -> pa.Table:
        """All rows of a row group, verified."""
        with self._lock:
            table = self._groups.get((file.name, group))
        if table is None:
            table = self._decoded(index, group, None)
            with self._lock:
                self._groups.put((file.name, group), table, table.nbytes)
        return table

    def tables(self, file: RunFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows of a file, group after group, each verified before it is decoded. Nothing is remembered."""
        index = self.index(file)
        for group in range(len(index.note.groups)):
            yield self._decoded(index, group, columns)

    def verify(self, file: RunFile) -> None:
        """Read every byte. CorruptError with file and place where one is not as it was written."""
        index = self._read_index(file)
        for group in range(len(index.note.groups)):
            self._read_group(index, group)

    def _decoded(self, index: RunIndex, group: int, columns: Sequence[str] | None) -> pa.Table:
        data = self._read_group(index, group)
        start, _ = index.span(group)
        source = pa.PythonFile(_Window(data, start), mode="r")
        file = pq.ParquetFile(source, metadata=index.metadata, pre_buffer=False)
        table = file.read_row_group(group, columns=list(columns) if columns is not None else None, use_threads=False)
        if table.num_rows != index.note.groups[group].rows:
            raise CorruptError(index.name, f"row group {group}", f"{table.num_rows} rows")
        return table

    def _read_group(self, index: RunIndex, group: int) -> bytes:
        start, end = index.span(group)
        data = self._read(index.name, start, end - start)
        index.check(group, data)
        return data

    def _read_index(self, file: RunFile) -> RunIndex:
        guess = min(file.bytes, file.bytes // 64 + 16 * 1024)
        tail = self._read(file.name, -guess, guess)
        start = footer_start(tail, file.bytes)
        if not 0 <= start <= file.bytes - TAIL_BYTES:
            where = f"bytes {max(0, file.bytes - TAIL_BYTES)} to {file.bytes}"
            raise CorruptError(file.name, where, "no end of a Parquet file: it is cut off, or changed")
        size = file.bytes - start
        if size > len(tail):
            tail = self._read(file.name, -size, size)
        return read_index(tail[len(tail) - size :], start, file)

    def _read(self, name: str, start: int, size: int) -> bytes:
        data = self._store.get_range(name, start, size)
        if data is None:
            raise CorruptError(name, "the whole file", "the history's table names it, but it is not there")
        with self._lock:
            self._bytes_read += len(data)
        return data


class _Window:
    """The bytes of one row group, as a file that has them at their place."""

    closed = False

    def __init__(self, data: bytes, start: int) -> None:
        self._file = BytesIO(data)
        self._start = start
        self._size = start + len(data)

    def size(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._file.tell() + self._start

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2:
            offset += self._size
        self._file.seek(offset - self._start)
        return offset

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        return None

    def flush(self) -> None:
        return None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


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
