"""The views `messages`, `voids`, `hot_groups`, `blocks` and `segments` over a verified snapshot of history and log.

Owns the DuckDB connection and its limits: it may read the verified files and nothing else. Does not own which SQL may
run: DuckDB lets `COPY ... TO` overwrite a file that it may read, so SQL of others goes through `analytics.sql`.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from analytics.verified import VerifiedSegment, Verifier
from imray.core.routing import PARTITION_LOGS_FROM, PARTITIONS_MAX, home_of
from imray.history.layout import HISTORY_SCHEMA, SEGMENT_KIND
from imray.log.schema import MS, SEGMENT_SCHEMA, RecordKind
from imray.settings import Settings


@dataclass(frozen=True)
class Sources:
    """Verified files: segments that are not merged, and files of runs."""

    segments: Sequence[VerifiedSegment]
    runs: Sequence[Path] = ()
    notes: Sequence[Path] = ()
    """Those of `runs` that have rows which stand for segments."""


MACROS = f"""
CREATE MACRO home_of(log) AS
    CASE WHEN log < {PARTITION_LOGS_FROM} THEN log ELSE (log - {PARTITION_LOGS_FROM}) // {PARTITIONS_MAX + 1} END;
CREATE MACRO slot_of(log) AS
    CASE WHEN log < {PARTITION_LOGS_FROM} THEN 0 ELSE (log - {PARTITION_LOGS_FROM}) % {PARTITIONS_MAX + 1} END;
"""
_SEGMENTS_VIEWS = f"""
CREATE {{kind}} merged_segments AS
    SELECT CAST(log AS BIGINT) AS shard, segment, epoch, server_ts, TRY(decode(body)::JSON) AS note
    FROM note_rows WHERE conv_id = '' AND kind = {SEGMENT_KIND};
CREATE {{kind}} segments AS
    FROM segment_files
    UNION ALL
    SELECT shard, home_of(shard), slot_of(shard), segment, epoch, NULL, CAST(note ->> 'rows' AS BIGINT),
           CAST(note ->> 'bytes' AS BIGINT), server_ts, coalesce(CAST(note ->> 'sequencer' AS BIGINT), 0),
           coalesce(CAST(note ->> 'by_home' AS BOOLEAN), false), NULL, NULL, NULL
    FROM merged_segments;
CREATE {{kind}} blocks AS
    FROM segment_blocks
    UNION ALL
    SELECT used ->> 1, coalesce(CAST(note ->> 'sequencer' AS BIGINT), 0), CAST(used ->> 0 AS BIGINT),
           CAST(used ->> 2 AS BIGINT), CAST(used ->> 2 AS BIGINT) + CAST(used ->> 3 AS BIGINT) - 1,
           home_of(shard), slot_of(shard), shard, segment, epoch, server_ts
    FROM (SELECT *, unnest(CAST(note -> 'grants' AS JSON[])) AS used FROM merged_segments);
"""
TAIL_ROWS = """
SELECT s.shard, s.segment, r.file_row_number AS "row", s.epoch, r.conv_id, r.conv_seq, r.kind, r.client_msg_id,
       r.sender, r.topic, r.content_type, r.client_ts, r.server_ts, octet_length(r.body) AS bytes, {body} AS body
FROM tail_files r JOIN segment_files s ON s.path = r.filename
"""
"""Rows of what is not merged. `body` is an expression over r."""
_RUN_ROWS = f"""
SELECT CAST(r.log AS BIGINT) AS shard, r.segment, CAST(r."row" AS BIGINT) AS "row", r.epoch, r.conv_id, r.conv_seq,
       r.kind, r.client_msg_id, r.sender, r.topic, r.content_type, r.client_ts, r.server_ts,
       octet_length(r.body) AS bytes, {{body}} AS body
FROM run_files r WHERE r.kind <> {SEGMENT_KIND}
"""
_ALL_BODIES = "r.body"
RECORDS_BODIES = f"CASE WHEN r.kind = {RecordKind.MESSAGE} THEN NULL ELSE r.body END"
"""The bodies of all but messages."""
ROWS_VIEWS = f"""
CREATE VIEW records AS SELECT shard, home_of(shard) AS home, * EXCLUDE (shard) FROM log_rows;
CREATE VIEW messages AS
    SELECT shard, home, segment, "row", epoch, conv_id, conv_seq, CAST(client_msg_id AS UUID) AS client_msg_id, sender,
           topic, content_type, client_ts, server_ts, bytes, TRY(decode(body)) AS body, body AS body_bytes
    FROM records WHERE kind = {RecordKind.MESSAGE};
CREATE VIEW voids AS
    SELECT conv_id, conv_seq AS first_seq, TRY(CAST(decode(body)::JSON ->> 'last' AS BIGINT)) AS last_seq,
           TRY(decode(body)::JSON ->> 'reason') AS reason, shard, segment, "row"
    FROM records WHERE kind = {RecordKind.VOID};
CREATE VIEW hot_groups AS
    SELECT conv_id, conv_seq AS at_seq,
           CASE WHEN kind = {RecordKind.COLD} THEN 0
                ELSE TRY(CAST(decode(body)::JSON ->> 'topics' AS BIGINT)) END AS topics,
           TRY(CAST(decode(body)::JSON ->> 'ceiling' AS BIGINT)) AS ceiling,
           TRY(CAST(decode(body)::JSON ->> 'by_rate' AS BOOLEAN)) AS by_rate,
           shard, segment, "row", epoch, server_ts
    FROM records WHERE kind IN ({RecordKind.HOT}, {RecordKind.COLD});
"""


def connect(settings: Settings) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the limits of the settings; it never fetches an extension and sees no Python names."""
    config = {
        "memory_limit": settings.duckdb_memory_limit,
        "threads": str(settings.duckdb_threads),
        # made when something spills; DuckDB's default is a folder in the current one
        "temp_directory": str(Path(tempfile.gettempdir()) / f"imray-duckdb-{secrets.token_hex(8)}"),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
    }
    connection = duckdb.connect(config=config)
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def open_views(verifier: Verifier, settings: Settings) -> duckdb.DuckDBPyConnection:
    """A connection with the views over the log as it is now. It can read no other file and change no setting.

    CorruptError where a file does not verify."""
    return views_over(Sources(verifier.log()), settings)


def views_over(sources: Sources, settings: Settings) -> duckdb.DuckDBPyConnection:
    """A connection with the views over given files; each query reads of them what it needs. It can read no other file
    and change no setting."""
    connection = connect(settings)
    open_files(connection, sources, "VIEW")
    connection.execute(f"CREATE VIEW log_rows AS {all_rows(_ALL_BODIES)}")
    connection.execute(ROWS_VIEWS)
    lock(connection)
    return connection


def all_rows(body: str) -> str:
    """SQL: the rows of runs and of what is not merged."""
    return f"{TAIL_ROWS.format(body=body)} UNION ALL {_RUN_ROWS.format(body=body)}"


def open_files(connection: duckdb.DuckDBPyConnection, sources: Sources, kind: str) -> None:
    """Let a connection read these files, and make `segments` and `blocks` of them (`kind`: VIEW or TABLE)."""
    found = sources.segments
    connection.register("segment_files", _segment_table(found))
    connection.register("segment_blocks", _block_table(found))
    tail = [s.path for s in found if s.meta.rows]
    paths = [str(path) for path in [*tail, *sources.runs]]
    if paths:
        connection.execute("SET allowed_paths = $paths", {"paths": paths})
    plain = [f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in SEGMENT_SCHEMA]
    more = [pa.field("filename", pa.string()), pa.field("file_row_number", pa.int64())]
    _create_files(connection, "tail_files", tail, ", filename = true, file_row_number = true", pa.schema(plain + more))
    _create_files(connection, "run_files", sources.runs, "", HISTORY_SCHEMA)
    _create_files(connection, "note_rows", sources.notes, "", HISTORY_SCHEMA)
    connection.execute(MACROS)
    connection.execute(_SEGMENTS_VIEWS.format(kind=kind))


def lock(connection: duckdb.DuckDBPyConnection) -> None:
    """From here on it reads nothing but what it was allowed to, and its settings stay."""
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")


def _create_files(
    connection: duckdb.DuckDBPyConnection, view: str, paths: Sequence[Path], options: str, schema: pa.Schema
) -> None:
    if not paths:
        connection.register(f"no_{view}", schema.empty_table())
        connection.execute(f"CREATE VIEW {view} AS FROM no_{view}")
        return
    quoted = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    # the folders look like Hive partitions: DuckDB would make a second column `shard` of them
    connection.execute(f"CREATE VIEW {view} AS FROM read_parquet([{quoted}], hive_partitioning = false{options})")


_SEGMENTS = pa.schema(
    [
        *((name, pa.int64()) for name in ("shard", "home", "slot", "segment", "epoch")),
        *(("nonce", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64()), ("server_ts", MS)),
        *(("sequencer", pa.int64()), ("by_home", pa.bool_())),
        *((name, pa.string()) for name in ("digest", "previous", "path")),
    ]
)
_BLOCKS = pa.schema(
    [
        *(("conv_id", pa.string()), ("sequencer", pa.int64()), ("grant", pa.int64())),
        *((name, pa.int64()) for name in ("first_seq", "last_seq", "home", "slot", "shard", "segment", "epoch")),
        ("server_ts", MS),
    ]
)


def _segment_table(found: Sequence[VerifiedSegment]) -> pa.Table:
    rows = [
        (s.meta.shard, *home_of(s.meta.shard), s.meta.segment, s.meta.epoch, s.meta.nonce, s.meta.rows, s.bytes,
         s.meta.server_ts, s.meta.sequencer, s.meta.by_home, s.digest.hex(), s.meta.previous, str(s.path))
        for s in found
    ]  # fmt: skip
    return table_of(rows, _SEGMENTS)


def _block_table(found: Sequence[VerifiedSegment]) -> pa.Table:
    rows = [
        (g.conv_id, s.meta.sequencer, g.grant, g.first, g.first + g.count - 1, *home_of(s.meta.shard), s.meta.shard,
         s.meta.segment, s.meta.epoch, s.meta.server_ts)
        for s in found
        for g in s.meta.grants
    ]  # fmt: skip
    return table_of(rows, _BLOCKS)


def table_of(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    """Rows as a table, also of none."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
