"""One segment: a Parquet file of rows in commit order, with its place in the chain.

Owns encoding, verification and decoding. Owns no storage (`imray.log.store`) and no order of segments
(`imray.log.reader`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.errors import CorruptError
from imray.core.log_progress import Fence
from imray.log import digest as digests
from imray.log.digest import Parts
from imray.log.posix import aligned_memory
from imray.log.schema import FEW_ROWS_MAX, SCHEMA_VERSION, SEGMENT_SCHEMA

T = TypeVar("T")
META_KEY = b"imray"
FIRST_PREVIOUS = "0" * 32
"""What the first segment of a shard names as its predecessor's digest."""

# Measured on 100-byte lines of real chat: dictionaries only where texts repeat. No compression: lz4 saves a third of
# the bytes and costs twice the CPU of all the rest (385 against 130 ns a message); a log is written once and merged
# into compressed files later.
_DICTIONARY = ["conv_id", "sender", "topic", "content_type"]
_ENCODING = {
    "conv_seq": "DELTA_BINARY_PACKED",
    "kind": "DELTA_BINARY_PACKED",
    "client_ts": "DELTA_BINARY_PACKED",
    "server_ts": "DELTA_BINARY_PACKED",
    "client_msg_id": "PLAIN",
    "body": "PLAIN",
}
_STATISTICS = ["conv_id", "conv_seq", "server_ts"]


def _options(names: list[str]) -> dict[str, object]:
    """How columns of these names are written."""
    return {
        "use_dictionary": [name for name in _DICTIONARY if name in names],
        "column_encoding": {name: way for name, way in _ENCODING.items() if name in names} or None,
        "write_statistics": [name for name in _STATISTICS if name in names],
    }


_MANY_ROWS = _options(SEGMENT_SCHEMA.names)
# Of one row all else costs a third of the CPU more (182 against 125 us), and saves no bytes. Statistics would spare a
# reader a page that it has read with the footer.
_FEW_ROWS: dict[str, object] = {"use_dictionary": False, "write_statistics": False}
# A third of the CPU of encoding less than with pyarrow's 1,024.
_WRITE_BATCH_ROWS = 64 * 1024
_MORE_BYTES_A_ROW = 8
"""In a file than in memory: `kind` is 4 bytes there, and 1 here."""
_METADATA_BYTES = 64 * 1024


class GrantNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One block of numbers that a partition's segment uses."""

    grant: int
    conv_id: str
    first: int
    count: int


class SegmentMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a segment says of itself in its file metadata (JSON under the key `imray`)."""

    shard: int
    segment: int
    epoch: int
    nonce: str
    previous: str
    """Hex digest of the whole previous segment: the chain."""
    server_ts: int
    """When it was committed, ms since 1970 UTC."""
    rows: int
    version: int = SCHEMA_VERSION
    sequencer: int = 0
    """A partition's log: the epoch of the home shard that granted the numbers (or that its fence knows of)."""
    grants: list[GrantNote] = []
    """A partition's log: where its numbers come from."""
    by_home: bool = False
    """A fence that the home shard put into a partition's log."""
    window: int = 1
    """A fence: as `Fence.window`."""
    following: int = 0
    """A fence: as `Fence.following`; 0: the next number."""

    @property
    def fence(self) -> Fence | None:
        """What it says of how the log goes on, where it is a fence: the only segment without rows."""
        return None if self.rows else Fence(self.window, self.following or self.segment + 1)


@dataclass(frozen=True)
class Segment:
    """A verified segment, its rows not yet decoded."""

    name: str
    meta: SegmentMeta
    digest: bytes
    data: memoryview

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Its rows; dictionary columns come back as dictionaries."""
        # `read_table` makes a dataset of it, which takes four times as long for a few rows (600 against 150 us)
        file = pq.ParquetFile(pa.BufferReader(self.data), read_dictionary=_DICTIONARY)
        return file.read(columns=columns, use_threads=False)


def segment_name(shard: int, segment: int) -> str:
    """The name in the store. The epoch is no part of it, or put-if-absent would fence nobody."""
    return f"{segment_prefix(shard)}{segment:020d}.parquet"


def segment_prefix(shard: int) -> str:
    """The folder of a shard's segments."""
    return f"wal/shard={shard:04d}/"


def segment_number(name: str) -> int:
    """The number in a segment's name; CorruptError for a name that no writer of ours makes."""
    stem = name.rsplit("/", 1)[-1].removesuffix(".parquet")
    if len(stem) != 20 or not stem.isdecimal():
        raise CorruptError(name, "name", "not a segment's name: remove the foreign file")
    return int(stem)


def encode(table: pa.Table, meta: SegmentMeta) -> tuple[Parts, bytes]:
    """The file of a segment, in parts, and its digest."""
    options = _FEW_ROWS if table.num_rows <= FEW_ROWS_MAX else _MANY_ROWS
    return digests.seal(_write(table, META_KEY, msgspec.json.encode(meta), compression="none", **options))


def encode_parquet(table: pa.Table, key: bytes, value: bytes, compression: str = "none") -> memoryview:
    """A Parquet file with `value` under `key` and a blank digest in its metadata."""
    return _write(table, key, value, compression=compression, **_options(table.schema.names))


def _write(table: pa.Table, key: bytes, value: bytes, **options: object) -> memoryview:
    if table.num_rows > FEW_ROWS_MAX:
        # memory that does not grow, which costs a tenth of all encoding, and that is written to disk from where it is
        size = table.nbytes + table.num_rows * _MORE_BYTES_A_ROW + len(value) + _METADATA_BYTES
        memory = aligned_memory(size)
        fixed = pa.FixedSizeBufferWriter(pa.py_buffer(memory))
        with contextlib.suppress(OSError):  # too small for chunks with dictionaries of their own
            _write_to(fixed, table, key, value, options)
            return memory[: fixed.tell()]
    growing = pa.BufferOutputStream()
    _write_to(growing, table, key, value, options)
    return memoryview(growing.getvalue())


def _write_to(sink: pa.NativeFile, table: pa.Table, key: bytes, value: bytes, options: dict[str, object]) -> None:
    with pq.ParquetWriter(
        sink, table.schema, write_batch_size=_WRITE_BATCH_ROWS, store_schema=False, **options
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key: value, digests.KEY: digests.BLANK})


def open_segment(data: bytes | memoryview, name: str) -> Segment:
    """Verify every byte and read the metadata. CorruptError with file, place and check otherwise."""
    view = memoryview(data)
    digest = digests.verify(view, name)
    meta = read_meta(view, name, META_KEY, SegmentMeta)
    return Segment(name, meta, digest, view)


def read_meta(view: memoryview, name: str, key: bytes, kind: type[T]) -> T:
    """The JSON under `key` in the file metadata of verified bytes."""
    try:
        value = (pq.read_metadata(pa.BufferReader(view)).metadata or {}).get(key)
        return msgspec.json.decode(value or b"", type=kind)
    except (msgspec.DecodeError, pa.ArrowException) as e:
        raise CorruptError(name, "metadata", f"not what this version of imray writes: {e}") from e
