"""The views `messages`, `voids`, `hot_groups`, `blocks` and `segments` over a verified snapshot of a log.

Owns the DuckDB connection and its limits: it may read the verified files and nothing else. Does not own which SQL may
run: DuckDB lets `COPY ... TO` overwrite a file that it may read, so SQL of others goes through `analytics.sql`.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from analytics.gaps import GAPS
from analytics.verified import VerifiedSegment, Verifier
from imray.core.routing import PARTITION_LOGS_FROM, PARTITIONS_MAX, home_of, shard_of
from imray.log.schema import MS, SEGMENT_SCHEMA, RecordKind
from imray.settings import Settings

_VIEWS = f"""
CREATE MACRO home_of(log) AS
    CASE WHEN log < {PARTITION_LOGS_FROM} THEN log ELSE (log - {PARTITION_LOGS_FROM}) // {PARTITIONS_MAX + 1} END;
CREATE MACRO slot_of(log) AS
    CASE WHEN log < {PARTITION_LOGS_FROM} THEN 0 ELSE (log - {PARTITION_LOGS_FROM}) % {PARTITIONS_MAX + 1} END;
CREATE VIEW segments AS SELECT * FROM segment_files;
CREATE VIEW blocks AS SELECT * FROM segment_blocks;
CREATE {{kind}} log_rows AS
    SELECT s.shard, s.segment, r.file_row_number AS "row", s.epoch, r.conv_id, r.conv_seq, r.kind, r.client_msg_id,
           r.sender, r.topic, r.content_type, r.client_ts, r.server_ts, octet_length(r.body) AS bytes, {{body}} AS body
    FROM all_rows r JOIN segment_files s ON s.path = r.filename;
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
    return views_over(verifier.log(), settings)


def views_over(found: Sequence[VerifiedSegment], settings: Settings) -> duckdb.DuckDBPyConnection:
    """As `open_views`, over given segments; each query reads of the files what it needs."""
    connection = connect(settings)
    _create(connection, found, "VIEW", "r.body")
    _lock(connection)
    return connection


def audit_views(
    found: Sequence[VerifiedSegment],
    shards: int,
    settings: Settings,
    unsure: Collection[tuple[int, int]] = (),
) -> duckdb.DuckDBPyConnection:
    """As `views_over` without bodies of messages, the files read once: for many questions about numbers and ids.

    Tables more: `conversation_shards` (conv_id, shard that owns it), `gaps` (`analytics.gaps`), and
    `unsure_segments` (shard, segment): `unsure`, those that may rest on others that are not in `found`."""
    connection = connect(settings)
    _create(connection, found, "TABLE", f"CASE WHEN r.kind = {RecordKind.MESSAGE} THEN NULL ELSE r.body END")
    names = connection.sql("SELECT DISTINCT conv_id FROM records").to_arrow_table()["conv_id"].to_pylist()
    owners = {"conv_id": pa.array(names, pa.string()), "shard": pa.array([shard_of(n, shards) for n in names])}
    connection.register("conversation_shards", pa.table(owners).cast(_OWNERS))
    log_positions = [{"shard": log, "segment": segment} for log, segment in unsure]
    connection.register("unsure_segments", pa.Table.from_pylist(log_positions, schema=_PLACES))
    connection.execute(GAPS)
    _lock(connection)
    return connection


_OWNERS = pa.schema([("conv_id", pa.string()), ("shard", pa.int64())])
_PLACES = pa.schema([("shard", pa.int64()), ("segment", pa.int64())])


def _create(connection: duckdb.DuckDBPyConnection, found: Sequence[VerifiedSegment], kind: str, body: str) -> None:
    connection.register("segment_files", _segment_table(found))
    connection.register("segment_blocks", _block_table(found))
    filled = [str(s.path) for s in found if s.meta.rows]
    if filled:
        connection.execute("SET allowed_paths = $paths", {"paths": filled})
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in filled)
        # the folders look like Hive partitions: DuckDB would make a second column `shard` of them
        options = "filename = true, file_row_number = true, hive_partitioning = false"
        connection.execute(f"CREATE VIEW all_rows AS SELECT * FROM read_parquet([{quoted}], {options})")
    else:
        plain = [f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in SEGMENT_SCHEMA]
        connection.register("no_rows", pa.schema(plain).empty_table())
        connection.execute(
            "CREATE VIEW all_rows AS SELECT *, '' AS filename, CAST(0 AS BIGINT) AS file_row_number FROM no_rows"
        )
    connection.execute(_VIEWS.format(kind=kind, body=body))


def _lock(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")


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
    return _table(rows, _SEGMENTS)


def _block_table(found: Sequence[VerifiedSegment]) -> pa.Table:
    rows = [
        (g.conv_id, s.meta.sequencer, g.grant, g.first, g.first + g.count - 1, *home_of(s.meta.shard), s.meta.shard,
         s.meta.segment, s.meta.epoch, s.meta.server_ts)
        for s in found
        for g in s.meta.grants
    ]  # fmt: skip
    return _table(rows, _BLOCKS)


def _table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
