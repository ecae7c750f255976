"""Any SQL over the views of a data folder."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from analytics.verified import Verifier
from analytics.views import open_views
from imray.core.errors import InvalidError
from imray.settings import Settings


def query(data: Path | str, sql: str, settings: Settings | None = None) -> pa.Table:
    """The result of one SQL statement over `messages`, `voids` and `segments`.

    InvalidError (one line) where DuckDB refuses it; CorruptError where the log does not verify."""
    with open_views(Verifier(data), settings or Settings.from_env()) as connection:
        try:
            result = connection.sql(sql)
            return pa.table({}) if result is None else result.to_arrow_table()
        except duckdb.Error as e:
            raise InvalidError(f"SQL: {' '.join(str(e).split())}") from e
