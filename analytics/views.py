"""The views `messages`, `voids` and `segments` over a verified snapshot of a log.

Owns the DuckDB connection and its limits: it may read the verified files and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from analytics.verified import VerifiedSegment, Verifier
from imray.core.routing import shard_of
from imray.log.schema import SEGMENT_SCHEMA
from imray.settings import Settings

_ID_TEXT = "CAST(concat_ws('-', hex(id)[1:8], hex(id)[9:12], hex(id)[13:16], hex(id)[17:20], hex(id)[21:32]) AS UUID)"

_VIEWS = f"""
CREATE MACRO id_text(id) AS {_ID_TEXT};
CREATE VIEW segments AS SELECT * FROM segment_files;
CREATE {{kind}} records AS
    SELECT s.shard, s.segment, r.file_row_number AS "row", s.epoch, r.conv_id, r.conv_seq, r.kind, r.client_msg_id,
           r.sender, r.topic, r.content_type, r.client_ts, r.server_ts, octet_length(r.body) AS bytes, {{body}} AS body
    FROM all_rows r JOIN segment_files s ON s.path = r.filename;
CREATE VIEW messages AS
    SELECT shard, segment, "row", epoch, conv_id, conv_seq, id_text(client_msg_id) AS client_msg_id, sender, topic,
           content_type, client_ts, server_ts, bytes, TRY(decode(body)) AS body, body AS body_bytes
    FROM records WHERE kind = 0;
CREATE VIEW voids AS
    SELECT conv_id, conv_seq AS first_seq, CAST(decode(body)::JSON ->> 'last' AS BIGINT) AS last_seq,
           decode(body)::JSON ->> 'reason' AS reason, shard, segment, "row"
    FROM records WHERE kind = 1;
"""


def connect(settings: Settings) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the limits of the settings."""
    limits = {"memory_limit": settings.duckdb_memory_limit, "threads": str(settings.duckdb_threads)}
    return duckdb.connect(config=limits)


def open_views(verifier: Verifier, settings: Settings) -> duckdb.DuckDBPyConnection:
    """A connection with the views over the log as it is now. It can read no other file and change no setting.

    CorruptError where a file does not verify."""
    return views_over(verifier.log(), verifier.manifest().shards, settings)


def views_over(
    found: Sequence[VerifiedSegment], shards: int, settings: Settings, bodies: bool = True
) -> duckdb.DuckDBPyConnection:
    """As `open_views`, over given segments. Without `bodies` the files are read once, into memory: for many
    questions about numbers and ids."""
    connection = connect(settings)
    connection.execute("SET TimeZone = 'UTC'; SET autoinstall_known_extensions = false")
    connection.register("segment_files", _segment_table(found))
    filled = [str(s.path) for s in found if s.meta.rows]
    if filled:
        connection.execute("SET allowed_paths = $paths", {"paths": filled})
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in filled)
        connection.execute(
            f"CREATE VIEW all_rows AS SELECT * FROM read_parquet([{quoted}], filename = true, file_row_number = true)"
        )
    else:
        connection.register("no_rows", _plain(SEGMENT_SCHEMA).empty_table())
        connection.execute(
            "CREATE VIEW all_rows AS SELECT *, '' AS filename, CAST(0 AS BIGINT) AS file_row_number FROM no_rows"
        )
    body = "r.body" if bodies else "CASE WHEN r.kind = 0 THEN NULL ELSE r.body END"
    connection.execute(_VIEWS.format(kind="VIEW" if bodies else "TABLE", body=body))
    connection.execute("SET enable_external_access = false")
    names = [row[0] for row in connection.execute("SELECT DISTINCT conv_id FROM records").fetchall()]
    places = pa.table(
        {"conv_id": pa.array(names, pa.string()), "shard": pa.array([shard_of(n, shards) for n in names], pa.int64())}
    )
    connection.register("conversation_shards", places)
    connection.execute("SET lock_configuration = true")
    return connection


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


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in schema])
