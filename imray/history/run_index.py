"""The index of a run's file: which rows each of its row groups holds, where its bytes are, and their digests.

It stands in the file's footer (JSON under the key `imray`); the footer's own digest stands in the file's name. So every
byte of a file is covered: up to the end of the last group by the groups' digests, from there on by the name's.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import msgspec
import pyarrow as pa
import xxhash

from imray.core.errors import CorruptError, InvalidError
from imray.history.layout import FORMAT_VERSION
from imray.history.parquet_footer import ParquetFooter, read_footer
from imray.history.snapshot import RunFile

META_KEY = b"imray"
TAIL_BYTES = 8
"""Of a Parquet file, behind the footer: its length and the magic."""
_MAGIC = b"PAR1"

_KEY_COLUMNS = ("conv_id", "conv_seq", "log", "segment", "row")
Key: TypeAlias = tuple[str, int, int, int, int]
"""conv_id, conv_seq, log, segment, row: the order of rows. No two rows have the same."""


class GroupNote(msgspec.Struct, frozen=True, array_like=True):
    """What the index says of one row group."""

    end: int
    """Where its bytes end in the file; they begin where those of the group before end, the first one's at 0."""
    digest: str
    """XXH3-128 of these bytes, hex."""
    rows: int
    memory: int
    """Bytes of its rows in memory, about."""
    first: Key
    last: Key
    shown: int
    """How many of its rows are messages or voids."""
    open: list[int]
    """Earlier groups of the file with voids of the conversation of the row just before this group, that reach beyond
    that row's number: who begins to read here needs them."""


class RunNote(msgspec.Struct, frozen=True):
    """The whole index, as it stands in the footer."""

    version: int
    shard: int
    run: str
    part: int
    groups: list[GroupNote]
    open: list[int]
    """As `GroupNote.open`, of who begins to read behind the last group."""


class _Version(msgspec.Struct, frozen=True):
    version: int


@dataclass(frozen=True)
class RunIndex:
    """The verified index of a file."""

    name: str
    note: RunNote
    parquet: ParquetFooter
    tail_bytes: int
    """Of the footer and what is behind it."""

    def span(self, group: int) -> tuple[int, int]:
        """Where the bytes of a group begin and end."""
        groups = self.note.groups
        return (groups[group - 1].end if group else 0), groups[group].end

    @cached_property
    def _firsts(self) -> list[Key]:
        return [g.first for g in self.note.groups]

    @cached_property
    def _lasts(self) -> list[Key]:
        return [g.last for g in self.note.groups]

    def groups_of(self, conv_id: str, low: int, high: int) -> range:
        """The groups that can hold rows of a conversation with numbers low..high."""
        start = bisect_left(self._lasts, (conv_id, low))
        end = bisect_right(self._firsts, (conv_id, high + 1))
        return range(start, max(start, end))

    def open_at(self, group: int) -> list[int]:
        """As `GroupNote.open`; of the number of groups: behind the last one."""
        groups = self.note.groups
        return groups[group].open if group < len(groups) else self.note.open

    def check(self, group: int, data: bytes | memoryview) -> None:
        """CorruptError where these are not the bytes of a group."""
        start, end = self.span(group)
        if len(data) != end - start:
            raise CorruptError(self.name, f"bytes {start} to {end}", f"only {len(data)} of them are there")
        digest = xxhash.xxh3_128_hexdigest(data)
        said = self.note.groups[group].digest
        if digest != said:
            where = f"row group {group}, bytes {start} to {end}"
            raise CorruptError(self.name, where, f"digest is {digest}, the footer says {said}")


def digest_in(name: str) -> str:
    """The digest of the footer that a file's name carries; "" where it has none."""
    return name.rpartition("-")[2].removesuffix(".parquet")


def footer_start(tail: bytes | memoryview, size: int) -> int:
    """Where the footer of a file of `size` bytes begins, as its last bytes say; below 0 where they say nonsense."""
    if len(tail) < TAIL_BYTES or bytes(tail[-4:]) != _MAGIC:
        return -1
    return size - TAIL_BYTES - int.from_bytes(tail[-8:-4], "little")


def read_index(footer: bytes, start: int, file: RunFile) -> RunIndex:
    """The index from a file's footer (all bytes from `start` on). CorruptError where it does not verify, InvalidError
    where a newer imray wrote it."""
    where = f"footer, bytes {start} to {file.bytes}"
    digest = xxhash.xxh3_128_hexdigest(footer)
    if digest != digest_in(file.name):
        raise CorruptError(file.name, where, f"digest is {digest}, the name says {digest_in(file.name)}")
    try:
        parquet = read_footer(memoryview(footer)[:-TAIL_BYTES])
        text = parquet.pairs.get(META_KEY, b"")
        version = msgspec.json.decode(text, type=_Version).version
        note = msgspec.json.decode(text, type=RunNote) if version <= FORMAT_VERSION else None
    except (msgspec.DecodeError, InvalidError) as e:
        raise CorruptError(file.name, where, f"not what this version of imray writes: {e}") from e
    if note is None:
        what = f"has format version {version}; this imray knows up to {FORMAT_VERSION}: upgrade"
        raise InvalidError(f"{file.name} {what}")
    said = (note.shard, note.run, parquet.rows, len(note.groups), sum(g.rows for g in note.groups))
    known = (file.shard, file.run, file.rows, parquet.groups, file.rows)
    if said != known or not note.groups or note.groups[-1].end != start:
        raise CorruptError(file.name, where, f"shard, run, rows, groups: it says {said}, the table {known}")
    return RunIndex(file.name, note, parquet, len(footer))


def key_at(table: pa.Table, row: int) -> Key:
    """The key of a table's row."""
    conv_id, seq, log, segment, at = (table.column(name)[row].as_py() for name in _KEY_COLUMNS)
    return conv_id, seq, log, segment, at
