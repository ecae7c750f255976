"""Rows of segments that are not merged yet, and where sealed intervals say that they are: decoded once, kept a while.

Owns two bounded caches. No byte is decoded before it is verified, and none is used after its file was changed.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analytics.cache import Cache
from analytics.checks import check_chain, check_chain_after, check_postings
from analytics.page_rows import I64, ROWS_SCHEMA
from analytics.spans import Span
from analytics.verified import Identity, identity_of
from imray.core.errors import CorruptError, DerivedError
from imray.core.intervals import Interval
from imray.log import digest as digests
from imray.log.marks import LogEnd
from imray.log.segment import META_KEY, SegmentMeta, segment_name

_ARRAYS_BYTES = 13
"""Of each row, beside its columns."""
_NO_NAMES = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))


@dataclass(frozen=True)
class SegmentRows:
    """A verified segment, decoded."""

    meta: SegmentMeta
    digest: bytes
    names: dict[str, int]
    conv: npt.NDArray[np.int32]
    seq: I64
    void: npt.NDArray[np.bool_]
    table: pa.Table
    """ROWS_SCHEMA, messages and voids only; the arrays above are of the same rows."""

    def of(self, conv_id: str, low: int, high: int) -> pa.Table | None:
        """The rows of a conversation from `low` to `high`, and voids that may reach into that from below."""
        code = self.names.get(conv_id)
        if code is None:
            return None
        asked = (self.conv == code) & (self.seq <= high) & ((self.seq >= low) | self.void)
        at = np.flatnonzero(asked)
        if not len(at):
            return None
        first = int(at[0])
        last = int(at[-1])
        if last - first + 1 == len(at):
            return self.table if len(at) == len(self.seq) else self.table.slice(first, len(at))
        return self.table.take(pa.array(at))


class TailReader:
    """Reads rows of single segments. Not thread-safe."""

    def __init__(self, data: Path | str, cache_bytes: int) -> None:
        self._data = Path(data)
        self._segments: Cache[str, tuple[Identity, SegmentRows]] = Cache(cache_bytes)
        self.bytes_read = 0

    def rows(
        self, log: int, numbers: Sequence[int], merged: LogEnd | None, conv_id: str, low: int, high: int
    ) -> list[pa.Table]:
        """The rows of a conversation in some segments of a log, ascending; `merged`: where the log stands before them.
        CorruptError where a segment is missing, changed, or not in its place in the chain."""
        found = []
        before: SegmentRows | None = None
        for number in numbers:
            segment = self._segment(log, number)
            if merged is not None and number == (merged.following or merged.segment + 1):
                fault = check_chain_after(merged, segment.meta)
            else:
                fault = check_chain(before.meta if before else None, before.digest if before else b"", segment.meta)
            if fault is not None:
                raise fault
            before = segment
            rows = segment.of(conv_id, low, high)
            if rows is not None:
                found.append(rows)
        return found

    def _segment(self, log: int, number: int) -> SegmentRows:
        name = segment_name(log, number)
        path = f"{self._data}/{name}"
        known = self._segments.get(name)
        if known is not None and known[0] == _identity(path):
            return known[1]
        identity, data = read_file(name, path)
        self.bytes_read += len(data)
        decoded = _decode(log, number, data, name)
        self._segments.put(name, (identity, decoded), decoded.table.nbytes + _ARRAYS_BYTES * len(decoded.seq))
        return decoded


class PostingsReader:
    """Reads where sealed intervals say that a conversation's numbers are. Not thread-safe."""

    def __init__(self, data: Path | str, cache_bytes: int) -> None:
        self._data = Path(data)
        self._known: Cache[str, tuple[Identity, _Postings]] = Cache(cache_bytes)
        self.bytes_read = 0

    def spans(self, interval: Interval, conv_id: str, low: int, high: int) -> list[Span]:
        """The spans of a conversation that reach into low..high. DerivedError: the file is missing or changed."""
        name = interval.name("postings")
        path = f"{self._data}/{name}"
        entry = self._known.get(name)
        known = entry[1] if entry is not None and entry[0] == _identity(path) else None
        if known is None:
            try:
                identity, data = read_file(name, path)
                self.bytes_read += len(data)
                check_postings(interval, memoryview(data), name)
                known = _Postings.of(pq.read_table(pa.BufferReader(data), use_threads=False))
            except (CorruptError, pa.ArrowException) as e:
                raise DerivedError(name, e.check if isinstance(e, CorruptError) else str(e)) from e
            self._known.put(name, (identity, known), known.bytes)
        return known.spans(conv_id, low, high)


@dataclass(frozen=True)
class _Postings:
    """Sorted by the conversation's name."""

    names: pa.Array
    log_position: I64
    first: I64
    last: I64

    @classmethod
    def of(cls, table: pa.Table) -> _Postings:
        names = table["conv_id"].combine_chunks()
        return cls(names, *(table[name].to_numpy() for name in ("place", "first", "last")))

    @property
    def bytes(self) -> int:
        return int(self.names.nbytes) + 24 * len(self.first)

    def spans(self, conv_id: str, low: int, high: int) -> list[Span]:
        rows = range(len(self.names))
        begin = bisect.bisect_left(rows, conv_id, key=self._name)
        end = bisect.bisect_right(rows, conv_id, lo=begin, key=self._name)
        of = slice(begin, end)
        asked = np.flatnonzero((self.first[of] <= high) & (self.last[of] >= low)) + begin
        columns = (self.log_position[asked], self.first[asked], self.last[asked])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _name(self, row: int) -> str:
        name: str = self.names[row].as_py()
        return name


def read_file(name: str, path: str) -> tuple[Identity, bytes]:
    """A file's identity and its bytes. CorruptError: it is not there, or cannot be read."""
    try:
        with open(path, "rb") as file:
            # first, so that a change during or after the read is seen as one
            identity = identity_of(os.fstat(file.fileno()))
            return identity, file.read()
    except FileNotFoundError as e:
        raise CorruptError(name, "the whole file", "it must be there, but is not") from e
    except OSError as e:
        raise CorruptError(name, "the whole file", f"it cannot be read: {e.strerror or e}") from e


def _identity(path: str) -> Identity | None:
    try:
        return identity_of(os.stat(path))
    except OSError:
        return None


def _decode(log: int, number: int, data: bytes, name: str) -> SegmentRows:
    digest = digests.verify(data, name)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["conv_id"])
        meta = msgspec.json.decode((file.metadata.metadata or {}).get(META_KEY, b""), type=SegmentMeta)
        table = file.read(["conv_id", *ROWS_SCHEMA.names], use_threads=False).combine_chunks()
    except (msgspec.DecodeError, pa.ArrowException) as e:
        raise CorruptError(name, "metadata", f"not what this version of imray writes: {e}") from e
    if (meta.shard, meta.segment) != (log, number):
        raise CorruptError(name, "metadata", f"it is segment {meta.segment} of shard {meta.shard}")
    kind = table["kind"].to_numpy()
    if (kind > 1).any():
        table = table.take(pa.array(np.flatnonzero(kind <= 1)))
        kind = table["kind"].to_numpy()
    table = table.combine_chunks()
    conv = table["conv_id"].chunk(0) if table.num_rows else _NO_NAMES
    names = {text: code for code, text in enumerate(conv.dictionary.to_pylist())}
    rows = table.select(ROWS_SCHEMA.names).cast(ROWS_SCHEMA)
    return SegmentRows(meta, digest, names, conv.indices.to_numpy(), table["conv_seq"].to_numpy(), kind == 1, rows)
