"""Any question in SQL over the views of a data folder. Questions only: nothing that writes."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from analytics.snapshots import Opened, on_snapshot, sources_of
from analytics.views import views_over
from imray.core.errors import InvalidError
from imray.settings import Settings


def query(data: Path | str, sql: str, settings: Settings | None = None) -> pa.Table:
    """The result of one SELECT (or DESCRIBE, SUMMARIZE, SHOW) over the views of `analytics.views`.

    InvalidError (one line) where DuckDB refuses it; CorruptError where the log or the history does not verify."""
    settings = settings or Settings.from_env()
    return on_snapshot(data, settings, lambda opened: _answer(opened, sql, settings))


def _answer(opened: Opened, sql: str, settings: Settings) -> pa.Table:
    opened.runs.check(opened.files)
    found = opened.verifier.log()
    with views_over(sources_of(opened, found), settings) as connection:
        try:
            _check_question(connection, sql)
            result = connection.sql(sql).to_arrow_table()
        except duckdb.Error as e:
            # where a file is gone DuckDB says so in words of its own
            opened.verifier.unchanged(found)
            opened.runs.unchanged(opened.files)
            raise InvalidError(f"SQL: {_one_line(e)}") from e
    opened.verifier.unchanged(found)
    opened.runs.unchanged(opened.files)
    return result


def _check_question(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Refuse all but one SELECT: a COPY may overwrite each file that DuckDB is allowed to read, segments included."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise InvalidError(f"SQL: one statement at a time, these are {len(statements)}")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise InvalidError(f"SQL: {statements[0].type.name} is refused: only SELECT, DESCRIBE, SUMMARIZE and SHOW run")
    # since 2.0 a SELECT may carry a COPY in its WITH clause, but only at the top level: so bind it below one
    quoted = sql.replace("'", "''")
    connection.execute(f"EXPLAIN FROM query('{quoted}')")


def _one_line(error: duckdb.Error) -> str:
    return " ".join(str(error).split("\n\nLINE ")[0].split())
