"""The columns of the history's table and the names of its files.

Owns names and types. Owns no bytes: `imray.history.run_file` writes them, `imray.history.table` says which files count.
"""

from __future__ import annotations

import pyarrow as pa

TABLE = "history/"
DELTA_LOG = "history/_delta_log/"
FORMAT_VERSION = 1
"""Of the table's files; a folder with a higher one is refused."""

SEGMENT_KIND = 100
"""`kind` of a row that stands for a segment itself (body: `imray.history.segment_rows.SegmentNote`), so that audits
need no log: its conv_id is empty, its conv_seq is 0 and its row is -1. Other kinds: `imray.log.schema.RecordKind`."""

US = pa.timestamp("us", tz="UTC")

HISTORY_SCHEMA = pa.schema(
    [
        pa.field("conv_id", pa.string(), nullable=False),
        pa.field("conv_seq", pa.int64(), nullable=False),
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("client_msg_id", pa.binary()),
        pa.field("sender", pa.string()),
        pa.field("topic", pa.string()),
        pa.field("content_type", pa.string()),
        pa.field("client_ts", US),
        pa.field("server_ts", US, nullable=False),
        pa.field("body", pa.binary()),
        pa.field("log", pa.int32(), nullable=False),
        pa.field("segment", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
    ]
)
"""Sorted by (conv_id as UTF-8 bytes, conv_seq, log, segment, row). Delta knows microseconds only. The table's partition
column `shard` (the home shard) is no column of the files, as Delta has it."""


def run_prefix(shard: int) -> str:
    """The folder of a shard's runs."""
    return f"{TABLE}shard={shard:04d}/"


def run_name(shard: int, run: str, part: int, digest: str) -> str:
    """The name of a run's file: the digest (32 hex digits) is that of its footer, which has digests of all the rest."""
    return f"{run_prefix(shard)}{run}-{part:04d}-{digest}.parquet"


def commit_name(version: int) -> str:
    """The name of a commit of the table."""
    return f"{DELTA_LOG}{version:020d}.json"


def pin_prefix() -> str:
    """The folder of readers' pins."""
    return "pins/"
