"""From a segment of the log to rows of the history, and the row that stands for the segment itself.

Owns the translation. Owns no order of rows (`imray.history.sorting`) and no files.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.errors import CorruptError
from imray.history.layout import HISTORY_SCHEMA, SEGMENT_KIND, US
from imray.log.schema import FEW_ROWS_MAX, SEGMENT_SCHEMA, TEXT, constant_text
from imray.log.segment import GrantNote, Segment

TEXT_COLUMNS = ("conv_id", "sender", "topic", "content_type")
CODED_SCHEMA = pa.schema([f.with_type(TEXT) if f.name in TEXT_COLUMNS else f for f in HISTORY_SCHEMA])
"""HISTORY_SCHEMA with texts as dictionaries: what merges work on."""

_SEGMENT_COLUMNS = SEGMENT_SCHEMA.names
_US_PER_MS = 1000


class SegmentNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body (JSON) of the row that stands for a segment; its number, log, epoch and time are the row's columns."""

    rows: int
    """0: a fence."""
    bytes: int
    """Of the segment's file."""
    sequencer: int = 0
    """As `imray.log.segment.SegmentMeta`, and the same for what follows."""
    by_home: bool = False
    window: int = 1
    following: int = 0
    grants: list[GrantNote] = []


def note_of(segment: Segment) -> SegmentNote:
    """What the history says of a segment."""
    meta = segment.meta
    return SegmentNote(
        rows=meta.rows,
        bytes=len(segment.data),
        sequencer=meta.sequencer,
        by_home=meta.by_home,
        window=meta.window,
        following=meta.following,
        grants=meta.grants,
    )


def note_table(segments: Sequence[Segment]) -> pa.Table:
    """The rows that stand for segments, one each, as CODED_SCHEMA."""
    count = len(segments)
    metas = [s.meta for s in segments]
    encoder = msgspec.json.Encoder()
    columns = {
        "conv_id": constant_text("", count),
        "conv_seq": pa.array(np.zeros(count, np.int64)),
        "kind": pa.array(np.full(count, SEGMENT_KIND, np.int8)),
        "client_msg_id": pa.nulls(count, pa.binary()),
        "sender": constant_text(None, count),
        "topic": constant_text(None, count),
        "content_type": constant_text(None, count),
        "client_ts": pa.nulls(count, US),
        "server_ts": _micros(pa.array([m.server_ts for m in metas], pa.int64())),
        "body": pa.array([encoder.encode(note_of(s)) for s in segments], pa.binary()),
        "log": pa.array([m.shard for m in metas], pa.int32()),
        "segment": pa.array([m.segment for m in metas], pa.int64()),
        "row": pa.array(np.full(count, -1, np.int32)),
        "epoch": pa.array([m.epoch for m in metas], pa.int64()),
    }
    return pa.table(columns, schema=CODED_SCHEMA)


def _micros(millis: pa.Array) -> pa.Array:
    return pa.array(millis.to_numpy() * _US_PER_MS).view(US)


def rows_of_segments(segments: Sequence[Segment]) -> pa.Table:
    """The rows of segments, one segment after the other, as CODED_SCHEMA (many chunks, each with dictionaries of its
    own). CorruptError where a segment has not the rows that it says."""
    parts: list[pa.Table] = []
    few: list[pa.Table] = []
    filled = [s for s in segments if s.meta.rows]
    for segment in filled:
        is_few = segment.meta.rows <= FEW_ROWS_MAX
        table = _decoded(segment, plain=is_few)
        if is_few:
            few.append(table)
            continue
        parts += _coded(few)
        few = []
        parts.append(table)
    parts += _coded(few)
    if not parts:
        return CODED_SCHEMA.empty_table()
    table = pa.concat_tables(parts)
    return _with_places(table, filled)


def _decoded(segment: Segment, plain: bool) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(segment.data), read_dictionary=None if plain else list(TEXT_COLUMNS))
    table = file.read(use_threads=False)
    if table.num_rows != segment.meta.rows or table.schema.names != _SEGMENT_COLUMNS:
        what = f"it says {segment.meta.rows} rows, there are {table.num_rows} with columns {table.schema.names}"
        raise CorruptError(segment.name, "metadata", what)
    return table


def _coded(few: list[pa.Table]) -> list[pa.Table]:
    """Small tables with plain texts as one with dictionaries: of a single row a dictionary costs more than the row."""
    if not few:
        return []
    table = pa.concat_tables(few).combine_chunks()
    for name in TEXT_COLUMNS:
        at = table.schema.get_field_index(name)
        column = table.column(at).dictionary_encode()
        table = table.set_column(at, table.schema.field(at).with_type(TEXT), column)
    return [table]


def _with_places(table: pa.Table, segments: Sequence[Segment]) -> pa.Table:
    """Times in microseconds, and where each row stood."""
    metas = [s.meta for s in segments]
    rows = np.array([m.rows for m in metas], np.int64)
    starts = np.repeat(np.cumsum(rows) - rows, rows)
    columns = {name: table.column(name) for name in _SEGMENT_COLUMNS}
    columns["client_msg_id"] = columns["client_msg_id"].cast(pa.binary())
    columns["client_ts"] = columns["client_ts"].cast(US)
    columns["server_ts"] = columns["server_ts"].cast(US)
    columns["log"] = pa.array(np.repeat(np.array([m.shard for m in metas], np.int32), rows))
    columns["segment"] = pa.array(np.repeat(np.array([m.segment for m in metas], np.int64), rows))
    columns["row"] = pa.array((np.arange(len(starts)) - starts).astype(np.int32))
    columns["epoch"] = pa.array(np.repeat(np.array([m.epoch for m in metas], np.int64), rows))
    return pa.table([columns[name] for name in CODED_SCHEMA.names], schema=CODED_SCHEMA)
