"""The views `messages`, `voids` and `segments` over a verified snapshot of a log.

Owns the DuckDB connection and its limits: it may read the verified files and nothing else. Does not own which SQL may
run: DuckDB lets `COPY ... TO` overwrite a file that it may read, so SQL of others goes through `analytics.sql`.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from analytics.verified import VerifiedSegment, Verifier
from imray.core.routing import shard_of
from imray.log.schema import SEGMENT_SCHEMA
from imray.settings import Settings

_VIEWS = """
CREATE VIEW segments AS SELECT * FROM segment_files;
CREATE {kind} records AS
    SELECT s.shard, s.segment, r.file_row_number AS "row", s.epoch, r.conv_id, r.conv_seq, r.kind, r.client_msg_id,
           r.sender, r.topic, r.content_type, r.client_ts, r.server_ts, octet_length(r.body) AS bytes, {body} AS body
    FROM all_rows r JOIN segment_files s ON s.path = r.filename;
CREATE VIEW messages AS
    SELECT shard, segment, "row", epoch, conv_id, conv_seq, CAST(client_msg_id AS UUID) AS client_msg_id, sender,
           topic, content_type, client_ts, server_ts, bytes, TRY(decode(body)) AS body, body AS body_bytes
    FROM records WHERE kind = 0;
CREATE VIEW voids AS
    SELECT conv_id, conv_seq AS first_seq, TRY(CAST(decode(body)::JSON ->> 'last' AS BIGINT)) AS last_seq,
           TRY(decode(body)::JSON ->> 'reason') AS reason, shard, segment, "row"
    FROM records WHERE kind = 1;
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


def audit_views(found: Sequence[VerifiedSegment], shards: int, settings: Settings) -> duckdb.DuckDBPyConnection:
    """As `views_over` without bodies of messages, the files read once: for many questions about numbers and ids.

    One table more: `conversation_shards` (conv_id, shard that owns it)."""
    connection = connect(settings)
    _create(connection, found, "TABLE", "CASE WHEN r.kind = 0 THEN NULL ELSE r.body END")
    names = connection.sql("SELECT DISTINCT conv_id FROM records").to_arrow_table()["conv_id"].to_pylist()
    owners = {"conv_id": pa.array(names, pa.string()), "shard": pa.array([shard_of(n, shards) for n in names])}
    connection.register("conversation_shards", pa.table(owners).cast(_OWNERS))
    _lock(connection)
    return connection


_OWNERS = pa.schema([("conv_id", pa.string()), ("shard", pa.int64())])


def _create(connection: duckdb.DuckDBPyConnection, found: Sequence[VerifiedSegment], kind: str, body: str) -> None:
    connection.register("segment_files", _segment_table(found))
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


def _segment_table(found: Sequence[VerifiedSegment]) -> pa.Table:
    columns = {
        "shard": pa.array([s.meta.shard for s in found], pa.int64()),
        "segment": pa.array([s.meta.segment for s in found], pa.int64()),
        "epoch": pa.array([s.meta.epoch for s in found], pa.int64()),
        "nonce": pa.array([s.meta.nonce for s in found], pa.string()),
        "rows": pa.array([s.meta.rows for s in found], pa.int64()),
        "bytes": pa.array([s.bytes for s in found], pa.int64()),
        "server_ts": pa.array([s.meta.server_ts for s in found], pa.int64()).cast(pa.timestamp("ms", "UTC")),
        "digest": pa.array([s.digest.hex() for s in found], pa.string()),
        "previous": pa.array([s.meta.previous for s in found], pa.string()),
        "path": pa.array([str(s.path) for s in found], pa.string()),
    }
    return pa.table(columns)
