"""A Parquet footer, cut into what describes each row group: a reader decodes the description of those it reads only.

Read whole by pyarrow, the footer of a file of 32 MB takes 3.6 ms and 3 MB of memory, and a page needs those of eight
files; cut it takes a tenth of both. Owns the cutting. The bytes themselves are verified before
(`imray.history.run_index`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.errors import InvalidError
from imray.kernels.arrays import I64, U8
from imray.kernels.thrift import STRUCT, skip, structs

_MAGIC = b"PAR1"
_ROWS_FIELD = 3
_GROUPS_FIELD = 4
_PAIRS_FIELD = 5
_FIELD = 1 << 4
_LONG_LIST = 15
_KIND = 15


@dataclass(frozen=True)
class ParquetFooter:
    """The footer of a file, in its parts."""

    rows: int
    """Of the file."""
    pairs: dict[bytes, bytes]
    """The key-value metadata."""
    _data: memoryview
    _head: bytes
    """The fields before the row groups."""
    _starts: I64
    """Where the description of each row group begins, and where the last one ends."""
    _rest: bytes
    """The fields behind the key-value metadata."""

    @property
    def groups(self) -> int:
        """How many row groups there are."""
        return len(self._starts) - 1

    def metadata(self, groups: range) -> pq.FileMetaData:
        """What pyarrow needs to read some row groups that follow one another; it counts them from 0."""
        size = len(groups)
        list_head = bytes([_LONG_LIST << 4 | STRUCT]) + _unsigned_bytes(size)
        described = self._data[self._starts[groups[0]] : self._starts[groups[-1] + 1]]
        footer = b"".join([self._head, list_head, described, self._rest])
        file = b"".join([_MAGIC, footer, len(footer).to_bytes(4, "little"), _MAGIC])
        return pq.read_metadata(pa.BufferReader(file))


def read_footer(data: bytes | memoryview) -> ParquetFooter:
    """Cut a footer (without its length and the magic behind it). InvalidError where it is none that pyarrow writes."""
    reader = _FieldReader(data)
    rows = 0
    head = b""
    starts = np.zeros(1, np.int64)
    pairs: dict[bytes, bytes] = {}
    rest = b""
    while (field := reader.next_field()) is not None:
        number, kind = field
        if number == _ROWS_FIELD:
            rows = reader.integer()
        elif number == _GROUPS_FIELD:
            head = bytes(reader.view[: reader.at])
            starts = reader.structs()
        elif number == _PAIRS_FIELD:
            pairs = reader.pairs()
            rest = _moved(bytes(reader.view[reader.at :]))
            break
        else:
            reader.pass_over(kind)
    if not head or not rest:
        raise InvalidError("the footer has no row groups, or nothing behind them")
    return ParquetFooter(rows, pairs, reader.view, head, starts, rest)


def _moved(fields: bytes) -> bytes:
    """The fields behind the key-value metadata, as they follow the row groups: the head of a field counts from the one
    before."""
    step = fields[0] >> 4 if fields else 0
    if not 1 <= step < _KIND:
        raise InvalidError("the footer ends with its key-value metadata")
    return bytes([fields[0] + _FIELD]) + fields[1:]


def _unsigned_bytes(value: int) -> bytes:
    """An integer as Thrift writes sizes: seven bits a byte, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _FieldReader:
    """Reads the fields of one struct in Thrift's compact protocol."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.view = memoryview(data).cast("B")
        self._array: U8 = np.frombuffer(self.view, np.uint8)
        self.at = 0
        self._number = 0

    def next_field(self) -> tuple[int, int] | None:
        """Number and kind of the next field; None: there is none."""
        head = self._byte()
        if not head:
            return None
        if not head >> 4:
            raise InvalidError("the footer has fields out of order")
        self._number += head >> 4
        return self._number, head & _KIND

    def integer(self) -> int:
        """An integer as Thrift writes it: zigzag."""
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)

    def _unsigned(self) -> int:
        value = 0
        shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def _byte(self) -> int:
        if self.at >= len(self.view):
            raise InvalidError("the footer is cut off")
        self.at += 1
        return self.view[self.at - 1]

    def structs(self) -> I64:
        """Where each struct of a list begins, and the last one ends."""
        count = self._list_size()
        starts = structs(self._array, self.at, count)
        return self._passed(starts)

    def pairs(self) -> dict[bytes, bytes]:
        """A list of structs of two texts each."""
        found: dict[bytes, bytes] = {}
        for _ in range(self._list_size()):
            texts: list[bytes] = []
            inner = _FieldReader(self.view[self.at :])
            while inner.next_field() is not None:
                texts.append(inner.text())
            if len(texts) == 2:
                found[texts[0]] = texts[1]
            self.at += inner.at
        return found

    def text(self) -> bytes:
        """A text, or bytes."""
        size = self._unsigned()
        start = self.at
        self.at += size
        if self.at > len(self.view):
            raise InvalidError("the footer is cut off")
        return bytes(self.view[start : self.at])

    def pass_over(self, kind: int) -> None:
        """Leave out a value."""
        self.at = int(skip(self._array, self.at, kind))
        if self.at < 0:
            raise InvalidError("the footer is malformed")

    def _list_size(self) -> int:
        head = self._byte()
        if head & _KIND != STRUCT:
            raise InvalidError("the footer has a list of something else")
        size = self._unsigned() if head >> 4 == _LONG_LIST else head >> 4
        if size > len(self.view):
            raise InvalidError("the footer has a list that is longer than itself")
        return size

    def _passed(self, starts: I64) -> I64:
        if starts[-1] < 0:
            raise InvalidError("the footer's row groups are malformed")
        self.at = int(starts[-1])
        return starts
