"""A part of a data folder (some shards), asked every question; and the answers of several parts as one.

A conversation belongs to one shard, and what a shard writes to no other's: so parts are asked one by one, and small
enough for the memory. Parts and answers are values, for other processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa

from analytics.findings import ROWS_SHOWN_MAX, Finding, Question, questions
from analytics.gaps import GAPS
from analytics.screen import ScreenSums, ShardRows, screen_shard
from analytics.verified import VerifiedSegment
from analytics.verified_runs import VerifiedRuns
from analytics.views import (
    RECORDS_BODIES,
    ROWS_VIEWS,
    TAIL_ROWS,
    Sources,
    all_rows,
    connect,
    lock,
    open_files,
)
from imray.core.errors import UnavailableError
from imray.core.routing import shard_of
from imray.history.snapshot import RunFile
from imray.settings import Settings


@dataclass(frozen=True)
class AuditPart:
    """Some shards of a data folder, with their partitions: verified files."""

    data: str
    shards: int
    """Of the whole folder."""
    homes: tuple[int, ...]
    segments: list[VerifiedSegment]
    files: list[RunFile]
    unsure: list[tuple[int, int]] = field(default_factory=list)
    """(log, segment) of what may rest on others that are not here."""
    newest_us: int | None = None
    """The newest record of the whole folder, microseconds since 1970; None: there is no other part."""

    @property
    def is_whole(self) -> bool:
        """Whether there is no other part."""
        return self.newest_us is None

    @property
    def sources(self) -> Sources:
        """What the views are made of."""
        root = Path(self.data)
        notes = [root / file.name for file in self.files if file.first == ""]
        return Sources(self.segments, [root / file.name for file in self.files], notes)


@dataclass(frozen=True)
class PartAnswer:
    """What a part answered to one question."""

    name: str
    total: int
    rows: pa.Table
    """The first ones."""


@dataclass(frozen=True)
class PartAnswers:
    """What a part answered to all questions."""

    segments: int
    answers: list[PartAnswer]


def ask_part(part: AuditPart, settings: Settings, reports: bool) -> PartAnswers:
    """Ask every question; without `reports` only for violations, and in SQL only of what is not plainly in order.

    UnavailableError where a file cannot be read."""
    try:
        with connect(settings) as connection:
            return _ask_all(connection, part, reports)
    except (duckdb.Error, OSError) as e:
        raise UnavailableError(f"audit: {' '.join(str(e).split())}") from e


def _ask_all(connection: duckdb.DuckDBPyConnection, part: AuditPart, reports: bool) -> PartAnswers:
    open_files(connection, part.sources, "TABLE")
    if reports:
        connection.execute(f"CREATE TABLE log_rows AS {all_rows(RECORDS_BODIES)}")
        connection.execute(_SUMS)
    else:
        _screen(connection, part)
    _prepare(connection, part)
    count = connection.sql("SELECT count(*) FROM segments").fetchall()[0][0]
    asked = [q for q in questions() if reports or q.kind == "violation"]
    return PartAnswers(count, [_ask(connection, q, part.is_whole) for q in asked])


_SUMS = """
CREATE TABLE segment_sums AS
SELECT shard, segment, count(*) AS rows_there, min(server_ts) AS first_ts, max(server_ts) AS last_ts,
       min(epoch) AS first_epoch, max(epoch) AS last_epoch
FROM log_rows GROUP BY shard, segment
"""
_OWNERS = pa.schema([("conv_id", pa.string()), ("shard", pa.int64())])
_PLACES = pa.schema([("shard", pa.int64()), ("segment", pa.int64())])
_NEWEST = pa.schema([("ts", pa.timestamp("us", tz="UTC"))])


def _screen(connection: duckdb.DuckDBPyConnection, part: AuditPart) -> None:
    """Fill `log_rows` with the rows of conversations that are not plainly in order, and `segment_sums` with all."""
    connection.execute(f"CREATE TABLE log_rows AS FROM ({all_rows(RECORDS_BODIES)}) LIMIT 0")
    lacking = VerifiedRuns(part.data).lacking(part.files)
    sums = ScreenSums()
    for home in part.homes:
        tail = connection.sql(
            f"FROM ({TAIL_ROWS.format(body='r.body')}) WHERE home_of(shard) = {home} ORDER BY conv_id, conv_seq"
        ).to_arrow_table()
        files = [file for file in part.files if file.shard == home]
        for rows in screen_shard(ShardRows(part.data, part.shards, home, files, lacking, tail), sums):
            connection.register("suspects", rows)
            connection.execute("INSERT INTO log_rows BY NAME FROM suspects")
            connection.unregister("suspects")
    connection.register("segment_sums", sums.table())


def _prepare(connection: duckdb.DuckDBPyConnection, part: AuditPart) -> None:
    connection.execute(ROWS_VIEWS)
    names = connection.sql("SELECT DISTINCT conv_id FROM records").to_arrow_table()["conv_id"].to_pylist()
    owners = {"conv_id": pa.array(names, pa.string()), "shard": pa.array([shard_of(n, part.shards) for n in names])}
    connection.register("conversation_shards", pa.table(owners).cast(_OWNERS))
    places = [{"shard": log, "segment": segment} for log, segment in part.unsure]
    connection.register("unsure_segments", pa.Table.from_pylist(places, schema=_PLACES))
    if part.is_whole:
        # of records, not of fences: after a pause of the whole system fences come before the voids
        connection.execute("CREATE VIEW newest_record AS SELECT max(server_ts) AS ts FROM segments WHERE rows > 0")
    else:
        connection.register("newest_record", pa.Table.from_pylist([{"ts": part.newest_us}], schema=_NEWEST))
    connection.execute(GAPS)
    lock(connection)


def _ask(connection: duckdb.DuckDBPyConnection, question: Question, is_whole: bool) -> PartAnswer:
    if question.combine:
        sql = f"WITH parts AS ({question.sql}) {question.combine}" if is_whole else question.sql
        found = connection.sql(sql).to_arrow_table()
        return PartAnswer(question.name, found.num_rows, found)
    found = connection.sql(f"FROM ({question.sql}) LIMIT {ROWS_SHOWN_MAX}").to_arrow_table()
    total = found.num_rows
    if total == ROWS_SHOWN_MAX:
        total = connection.sql(f"SELECT count(*) AS n FROM ({question.sql})").to_arrow_table()["n"][0].as_py()
    return PartAnswer(question.name, total, found)


def combined(parts: Sequence[PartAnswers], settings: Settings) -> list[Finding]:
    """What the whole folder's answers are."""
    by_name: dict[str, list[PartAnswer]] = {}
    for part in parts:
        for answer in part.answers:
            by_name.setdefault(answer.name, []).append(answer)
    if len(parts) == 1:
        return [_finding(q, by_name[q.name][0]) for q in questions() if q.name in by_name]
    with connect(settings) as connection:
        return [_combine(connection, q, by_name[q.name]) for q in questions() if q.name in by_name]


def _combine(connection: duckdb.DuckDBPyConnection, question: Question, answers: Sequence[PartAnswer]) -> Finding:
    connection.register("parts", pa.concat_tables([a.rows for a in answers]))
    sql = question.combine or f"FROM parts ORDER BY {question.order or 'ALL'}"
    rows = connection.sql(sql).to_arrow_table()
    connection.unregister("parts")
    # a question that ends itself after so many rows has no more
    ended = question.combine or "LIMIT" in question.order
    total = rows.num_rows if ended else sum(a.total for a in answers)
    return _finding(question, PartAnswer(question.name, total, rows))


def _finding(question: Question, answer: PartAnswer) -> Finding:
    rows = answer.rows.slice(0, ROWS_SHOWN_MAX)
    values = [list(row.values()) for row in rows.to_pylist()]
    return Finding(question.name, question.title, question.kind, answer.total, rows.column_names, values)
