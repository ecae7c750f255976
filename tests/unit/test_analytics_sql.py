"""SQL over the views: what they show, and what a question may not do."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest

from analytics.sql import query
from analytics.verified import Verifier
from analytics.views import open_views
from imray.core.errors import CorruptError, InvalidError
from imray.log.manifest import create_or_open
from imray.log.segment import segment_name
from imray.settings import Settings
from tests.support.analytics_logs import NOT_UTF8, SHARDS, FastStore, good_log, name_in
from tests.support.batches import msg_id

MESSAGES = (
    "shard home segment row epoch conv_id conv_seq client_msg_id sender topic content_type client_ts server_ts "
    "bytes body body_bytes"
)
SEGMENTS = "shard home slot segment epoch nonce rows bytes server_ts sequencer by_home digest previous path"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_log(tmp_path_factory.mktemp("sql") / "it's a chat")


def test_messages(root: Path) -> None:
    table = query(root, f"FROM messages WHERE conv_id = '{name_in(0)}' AND conv_seq <= 4 ORDER BY conv_seq")
    assert table.column_names == MESSAGES.split()
    rows = table.to_pylist()
    assert [(r["shard"], r["segment"], r["row"], r["epoch"]) for r in rows] == [
        (0, 2, 0, 1), (0, 2, 2, 1), (0, 3, 0, 1), (0, 3, 2, 1),
    ]  # fmt: skip
    assert [str(r["client_msg_id"]) for r in rows] == [str(UUID(bytes=msg_id(n))) for n in (1, 3, 5, 7)]
    assert [r["body"] for r in rows] == ["text 1", "text 3", None, "text 7"]
    assert [r["body_bytes"] for r in rows] == [b"text 1", b"text 3", NOT_UTF8, b"text 7"]
    assert [r["bytes"] for r in rows] == [6, 6, 4, 6]
    stamps = query(
        root, "SELECT epoch_ms(client_ts) c, epoch_ms(server_ts) s FROM messages WHERE conv_seq = 2"
    ).to_pylist()
    assert {"c": 3, "s": 60_000} in stamps


def test_voids_and_segments(root: Path) -> None:
    assert query(root, "FROM voids ORDER BY shard").to_pylist() == [
        {"conv_id": name_in(s), "first_seq": 19, "last_seq": 25, "reason": "the sequencer died",
         "shard": s, "segment": 14, "row": 0}
        for s in range(SHARDS)
    ]  # fmt: skip
    table = query(root, "FROM segments ORDER BY shard, segment")
    assert table.column_names == SEGMENTS.split()
    rows = table.to_pylist()
    assert [r["segment"] for r in rows] == [*range(1, 17), *range(1, 17)]
    assert [r["previous"] for r in rows[1:16]] == [r["digest"] for r in rows[:15]]
    assert [r["bytes"] for r in rows] == [os.path.getsize(r["path"]) for r in rows]


def test_an_empty_log_has_the_same_columns(tmp_path: Path, root: Path) -> None:
    create_or_open(FastStore(tmp_path), 2)
    for view in ("messages", "records", "voids", "segments", "blocks", "hot_groups"):
        empty, full = query(tmp_path, f"FROM {view}"), query(root, f"FROM {view}")
        assert empty.num_rows == 0
        assert empty.schema == full.schema


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT nonsense FROM messages", "nonsense"),
        ("SELEC 1", "syntax error"),
        ("", "one statement"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled"),
        ("SELECT * FROM '/etc/passwd.csv'", "disabled"),
        ("SELECT * FROM read_text('/etc/hostname')", "disabled"),
        ("SELECT * FROM glob('/*')", "disabled"),
        ("SELECT * FROM table_of_the_test", "does not exist"),
        ("COPY (SELECT 1) TO '/tmp/imray-test.csv'", "COPY is refused"),
        ("ATTACH '/tmp/imray-test.db'", "ATTACH is refused"),
        ("SET enable_external_access = true", "SET is refused"),
        ("RESET lock_configuration", "refused"),
        ("PRAGMA database_list", "PRAGMA is refused"),
        ("INSTALL httpfs", "refused"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO '/tmp/imray-test.csv'", "refused"),
        ("CREATE TABLE t AS SELECT 1", "CREATE is refused"),
    ],
)
def test_what_is_refused_is_said_in_one_line(root: Path, sql: str, says: str) -> None:
    table_of_the_test = query(root, "SELECT 1 AS x")
    assert table_of_the_test.num_rows == 1
    with pytest.raises(InvalidError, match=says) as e:
        query(root, sql)
    assert "\n" not in str(e.value)
    assert not list(Path("/tmp").glob("imray-test.*"))


def test_files_of_the_folder_that_are_no_segments_stay_closed(root: Path) -> None:
    for name in ("imray.json", f"wal/shard=0000/../../{next((root / 'checkpoint/shard=0000').iterdir()).name}"):
        path = str(root / name).replace("'", "''")
        with pytest.raises(InvalidError, match=r"disabled|Permission"):
            query(root, f"SELECT * FROM read_blob('{path}')")


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1 AS x) TO '{path}' (FORMAT parquet, USE_TMP_FILE false)",
        "EXPLAIN ANALYZE COPY (SELECT 1 AS x) TO '{path}' (FORMAT parquet, USE_TMP_FILE false)",
        "WITH x AS (COPY (SELECT 1) TO '{path}' (USE_TMP_FILE false)) SELECT 1",
        "SELECT * FROM query('COPY (SELECT 1 AS x) TO ''{path}'' (USE_TMP_FILE false)')",
        "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''{path}'' (USE_TMP_FILE false)) SELECT 1')",
        "SELECT (WITH x AS (COPY (SELECT 1) TO '{path}' (USE_TMP_FILE false)) SELECT 1)",
        "ATTACH '{path}' AS x",
    ],
)
def test_no_question_can_write_to_a_segment(tmp_path: Path, sql: str) -> None:
    """DuckDB itself would: what it may read it may overwrite."""
    root = good_log(tmp_path / "it's")
    path = root / segment_name(0, 2)
    before = path.read_bytes()
    with pytest.raises(InvalidError):
        query(root, sql.format(path=str(path).replace("'", "''")))
    assert path.read_bytes() == before


def test_questions_about_the_views(root: Path) -> None:
    assert query(root, "DESCRIBE messages")["column_name"].to_pylist() == MESSAGES.split()
    assert query(root, "SUMMARIZE voids").num_rows == 7
    assert query(root, "SHOW TABLES").num_rows > 2
    assert query(root, "SELECT 'it''s' AS a, $$b$$ AS b; -- and that's all").to_pylist() == [{"a": "it's", "b": "b"}]
    descending = query(root, "WITH x AS (FROM segments) SELECT segment FROM x ORDER BY segment DESC, shard;")
    assert descending["segment"].to_pylist()[:3] == [16, 16, 15]


def test_spilling_leaves_nothing_behind(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small = Settings(duckdb_memory_limit="40MB")
    sql = "SELECT count(*) AS n FROM (SELECT DISTINCT i, md5(i::VARCHAR) FROM range(700_000) t(i))"
    assert query(root, sql, small).to_pylist() == [{"n": 700_000}]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_log_is_not_queried(tmp_path: Path) -> None:
    good_log(tmp_path)
    path = tmp_path / segment_name(1, 3)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError) as e:
        query(tmp_path, "SELECT 1")
    assert e.value.file == segment_name(1, 3)


def test_the_connection_cannot_be_unlocked(root: Path) -> None:
    with open_views(Verifier(root), Settings()) as connection, pytest.raises(Exception, match="locked"):
        connection.execute("SET memory_limit = '9GB'")
