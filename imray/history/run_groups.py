"""Reading a run's file from the store: its index, and row groups that are verified before they are decoded.

Owns the way of bytes from the store to Arrow. Owns no cache (`imray.history.run_reader`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.errors import CorruptError
from imray.history.run_index import TAIL_BYTES, RunIndex, footer_start, read_index
from imray.history.segment_rows import TEXT_COLUMNS
from imray.history.snapshot import RunFile
from imray.log.store import Store

_AHEAD_BYTES = 1024 * 1024
"""Groups that follow one another are read together up to so many bytes, where all of them are wanted."""
_AHEAD_MEMORY_BYTES = 4 * 1024 * 1024
_FOOTER_SHARE = 112
_FOOTER_BYTES = 16 * 1024
"""The footer is looked for in this part of a file, and in so many bytes more: nearly always it needs no second read."""


class GroupReader:
    """Reads files of runs from a store, safe for threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._bytes_read = 0

    @property
    def bytes_read(self) -> int:
        """Bytes that the store gave so far."""
        return self._bytes_read

    def index(self, file: RunFile) -> RunIndex:
        """The verified index of a file. CorruptError; InvalidError where a newer imray wrote it."""
        guess = min(file.bytes, file.bytes // _FOOTER_SHARE + _FOOTER_BYTES)
        # a byte more than there should be: so a file that is longer is found, too
        tail = self._read(file.name, file.bytes - guess, guess + 1)
        start = footer_start(tail, file.bytes)
        if len(tail) != guess or not 0 <= start <= file.bytes - TAIL_BYTES:
            where = f"bytes {max(0, file.bytes - TAIL_BYTES)} to {file.bytes}"
            raise CorruptError(file.name, where, "no end of a Parquet file: it is cut off, longer, or changed")
        size = file.bytes - start
        if size > len(tail):
            tail = self._read(file.name, start, size)
        return read_index(tail[len(tail) - size :], start, file)

    def groups(self, index: RunIndex, groups: range) -> memoryview:
        """The bytes of row groups that follow one another, each verified."""
        start, _ = index.span(groups[0])
        _, end = index.span(groups[-1])
        data = memoryview(self._read(index.name, start, end - start))
        for group in groups:
            first, after = index.span(group)
            index.check(group, data[first - start : after - start])
        return data

    def _read(self, name: str, start: int, size: int) -> bytes:
        data = self._store.get_range(name, start, size)
        if data is None:
            raise CorruptError(name, "the whole file", "the history's table names it, but it is not there")
        with self._lock:
            self._bytes_read += len(data)
        return data


def stretches(index: RunIndex, memory_max: int = _AHEAD_MEMORY_BYTES) -> Iterator[range]:
    """The groups that are read at once, where all of a file are wanted: of about so many bytes in memory."""
    notes = index.note.groups
    first = 0
    memory = 0
    for group, note in enumerate(notes):
        start, _ = index.span(first)
        if group > first and (memory + note.memory > memory_max or note.end - start > _AHEAD_BYTES):
            yield range(first, group)
            first = group
            memory = 0
        memory += note.memory
    yield range(first, len(notes))


def decode(
    index: RunIndex, groups: range, data: memoryview, columns: Sequence[str] | None = None, coded: bool = False
) -> pa.Table:
    """The rows of row groups that follow one another, of which `data` are the verified bytes; `coded`: texts as
    dictionaries. CorruptError where they are not as many as the index says."""
    start, _ = index.span(groups[0])
    file = pq.ParquetFile(
        pa.PythonFile(_Window(data, start), mode="r"),
        metadata=index.parquet.metadata(groups),
        read_dictionary=list(TEXT_COLUMNS) if coded else None,
        pre_buffer=False,
    )
    table = file.read_row_groups(
        range(len(groups)), columns=None if columns is None else list(columns), use_threads=False
    )
    rows = sum(index.note.groups[group].rows for group in groups)
    if table.num_rows != rows:
        what = f"{table.num_rows} rows are there, the footer says {rows}"
        raise CorruptError(index.name, f"row groups {groups[0]} to {groups[-1]}", what)
    return table


class _Window:
    """The bytes of row groups, as a file that has them at their place: what pyarrow asks of a file."""

    closed = False

    def __init__(self, data: memoryview, start: int) -> None:
        self._file = BytesIO(data)
        self._start = start
        self._end = start + len(data)

    def size(self) -> int:
        """Of a file that ends with them."""
        return self._end

    def tell(self) -> int:
        """The place in the whole file."""
        return self._file.tell() + self._start

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in the whole file (`whence` 2: from its end on)."""
        at = offset + self._end if whence else offset
        self._file.seek(at - self._start)
        return at

    def read(self, size: int = -1) -> bytes:
        """Bytes of the groups."""
        return self._file.read(size)

    def close(self) -> None:
        """Nothing is held."""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """False."""
        return False
