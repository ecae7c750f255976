"""Runs: what is written is what is read, in order, in groups that are found and read one by one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imray.core.errors import CorruptError
from imray.history.layout import HISTORY_SCHEMA
from imray.history.run_file import write_run
from imray.history.run_groups import GroupReader
from imray.history.run_reader import RunReader
from imray.history.segment_rows import CODED_SCHEMA
from imray.history.snapshot import Run
from imray.log.schema import RecordKind
from imray.log.store import LocalStore
from imray.settings import Settings
from tests.support.history_rows import (
    SMALL,
    HistoryRow,
    UnsyncedStore,
    history_table,
    keys_of,
    put_rows,
    void_row,
    wanted,
)

CACHE = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return UnsyncedStore(tmp_path)


def _many(conversations: int = 20, each: int = 60) -> list[HistoryRow]:
    return [
        HistoryRow(f"room-{c:03d}", n, segment=n, row=c, body=b"%d in %d " % (n, c) * 9)
        for c in range(conversations)
        for n in range(1, each + 1)
    ]


def _read(reader: RunReader, run: Run) -> pa.Table:
    return pa.concat_tables(t for file in run.files for t in reader.tables(file))


def _rows(reader: RunReader, run: Run, *query: object) -> list[tuple[bytes, int, int, int, int]]:
    return [key for file in run.files for key in keys_of(reader.rows(file, *query))]  # type: ignore[arg-type]


def test_a_run_is_read_as_it_was_written(store: LocalStore) -> None:
    rows = [*_many(), void_row("room-003", 61, 70), HistoryRow("äöü-☃", 1), HistoryRow("zebra", 2**62, log=10_001)]
    run = put_rows(store, rows)
    assert len(run.files) > 2, "the test is of several files"
    read = _read(RunReader(store, CACHE), run)
    assert read.schema == HISTORY_SCHEMA
    assert read.equals(history_table(sorted(rows, key=lambda r: r.key)))
    assert [f.rows for f in run.files] == [pq.read_metadata(store.root / f.name).num_rows for f in run.files]
    assert [f.bytes for f in run.files] == [(store.root / f.name).stat().st_size for f in run.files]
    for file, table in zip(run.files, (pq.read_table(store.root / f.name) for f in run.files), strict=True):
        names = table.column("conv_id").to_pylist()
        assert (file.first, file.last) == (names[0], names[-1])
    assert len({f.run for f in run.files}) == 1
    assert put_rows(store, rows).files[0].run != run.files[0].run, "no two runs have one name"


@pytest.mark.parametrize("plain", [True, False])
def test_texts_may_be_plain_or_dictionaries_and_come_in_any_pieces(store: LocalStore, plain: bool) -> None:
    table = history_table(sorted(_many(), key=lambda r: r.key))
    coded = table
    if not plain:
        for name in ("conv_id", "sender", "topic", "content_type"):
            at = coded.schema.get_field_index(name)
            coded = coded.set_column(at, name, coded.column(name).dictionary_encode())
    pieces = [coded.slice(at, size) for at, size in ((0, 1), (1, 0), (1, 700), (701, 9999))]
    run = Run(tuple(write_run(store, 0, 0, pieces, [], [], SMALL)))
    assert _read(RunReader(store, CACHE), run).equals(table)


def test_other_libraries_read_a_file(store: LocalStore) -> None:
    rows = [*_many(9), void_row("room-003", 61, 70)]
    run = put_rows(store, rows, Settings())
    (file,) = run.files
    path = str(store.root / file.name)
    expected = history_table(sorted(rows, key=lambda r: r.key))
    assert polars.read_parquet(path)["body"].to_list() == expected.column("body").to_pylist()
    found = duckdb.sql(f"select conv_id, conv_seq, client_msg_id, row from '{path}'").fetchall()
    assert [row[:3] for row in found] == list(
        zip(*(expected.column(n).to_pylist() for n in ("conv_id", "conv_seq", "client_msg_id")), strict=True)
    )


def test_small_tables_make_no_small_groups(store: LocalStore) -> None:
    rows = sorted(_many(), key=lambda r: r.key)
    tables = [history_table([row]) for row in rows]
    tables[7] = tables[7].cast(CODED_SCHEMA)
    run = Run(tuple(write_run(store, 0, 0, tables, [], [], SMALL)))
    groups = sum(pq.read_metadata(store.root / f.name).num_row_groups for f in run.files)
    assert groups < len(rows) / 8
    assert _read(RunReader(store, CACHE), run).equals(history_table(rows))


def test_nothing_written_makes_no_run(store: LocalStore) -> None:
    assert write_run(store, 0, 0, [HISTORY_SCHEMA.empty_table()], [], [], SMALL) == []


def test_a_large_row_is_a_group_by_itself(store: LocalStore) -> None:
    """Whoever reads its neighbours does not read it."""
    rows = [HistoryRow("a", n, segment=n) for n in range(1, 200)]
    rows[100] = replace(rows[100], body=bytes(range(256)) * 8000)
    run = put_rows(store, rows, Settings(run_file_bytes=64 * 1024))
    reader = RunReader(store, 0)
    for file in run.files:
        reader.rows(file, "b", 1, 1, None, False)
    assert len(_rows(reader, run, "a", 1, 100, None, False)) == 100
    assert len(_rows(reader, run, "a", 102, 199, None, False)) == 98
    assert reader.bytes_read < 100_000
    assert len(_rows(reader, run, "a", 101, 101, None, False)) == 1


QUERIES = [(1, 60), (7, 9), (60, 200), (61, 61), (30, 30), (5, 4), (0, 0)]


@pytest.mark.parametrize("limit", [None, 1, 3, 9, 40, 500])
@pytest.mark.parametrize("descending", [False, True])
def test_rows_of_a_conversation(store: LocalStore, limit: int | None, descending: bool) -> None:
    rows = [r for r in _many(12) if not 20 <= r.conv_seq <= 29]
    rows += [void_row(f"room-{c:03d}", 20, 29, segment=30) for c in range(12)]
    rows += [HistoryRow("room-004", 60, segment=s, kind=RecordKind.CURSORS) for s in range(100, 400)]
    run = put_rows(store, rows, replace(SMALL, run_file_bytes=1 << 20))
    reader = RunReader(store, CACHE)
    for conv in ("room-000", "room-004", "room-011", "room-0", "zebra", ""):
        for low, high in QUERIES:
            expected = [r.key for r in wanted(rows, conv, low, high, limit, descending)]
            assert _rows(reader, run, conv, low, high, limit, descending) == expected


def test_a_void_reaches_in_from_another_group(store: LocalStore) -> None:
    """Its row sorts below what is asked for, with hundreds of records of other logs between."""
    rows = [HistoryRow("a", n, segment=n) for n in range(1, 50)]
    rows.append(void_row("a", 50, 5000, segment=50))
    rows += [HistoryRow("a", n, log=10_001, segment=n, kind=RecordKind.CURSORS) for n in range(51, 900)]
    rows += [void_row("a", 600, 700, segment=60), HistoryRow("a", 5001, segment=70), HistoryRow("b", 5000)]
    run = put_rows(store, rows, replace(SMALL, run_file_bytes=4096))
    assert len(run.files) > 1
    reader = RunReader(store, CACHE)
    for limit in (None, 1):
        expected = [r.key for r in wanted(rows, "a", 4999, 5001, limit, False)]
        assert len(expected) == 2
        assert _rows(reader, run, "a", 4999, 5001, limit, False) == expected
    for low in (50, 51, 599, 600, 650, 701, 899, 900, 1000, 5000, 5001, 5002):
        expected = [r.key for r in wanted(rows, "a", low, 5001, None, False)]
        assert _rows(reader, run, "a", low, 5001, None, False) == expected


def test_groups_that_hold_nothing_to_show_are_not_read(store: LocalStore) -> None:
    rows = [HistoryRow("a", 1, segment=n, kind=RecordKind.CURSORS, body=b"%d" % n * 50) for n in range(2, 2500)]
    rows += [HistoryRow("a", 1), HistoryRow("a", 2, segment=5000)]
    run = put_rows(store, rows, SMALL)
    assert len(run.files) > 1
    reader = RunReader(store, 0)
    assert len(_rows(reader, run, "a", 1, 9, None, False)) == 2
    footers = GroupReader(store)
    for file in run.files:
        footers.index(file)
    assert reader.bytes_read <= footers.bytes_read + 3 * SMALL.run_group_bytes


def _chat(rows: int) -> Sequence[HistoryRow]:
    return [HistoryRow(f"c{n % 997:03d}", n // 997 + 1, segment=n // 100 + 1, row=n % 100) for n in range(rows)]


def test_a_page_reads_at_most_a_mebibyte_beyond_its_rows(store: LocalStore) -> None:
    """Also the first one, with the footer of a file of the usual size."""
    settings = Settings()
    table = history_table(sorted(_chat(1000), key=lambda r: r.key))
    noise = pa.array([i.to_bytes(4, "big") * 25 for i in range(table.num_rows)], pa.binary())
    table = table.set_column(table.schema.get_field_index("body"), HISTORY_SCHEMA.field("body"), noise)
    run = Run(tuple(write_run(store, 0, 0, [table], [], [], settings)))
    groups = settings.run_file_bytes // settings.run_group_bytes
    (file,) = run.files
    per_group = GroupReader(store).index(file).tail_bytes
    assert per_group * groups <= 700_000, "the footer of a whole file"
    reader = RunReader(store, CACHE)
    for descending in (False, True):
        before = reader.bytes_read
        assert reader.rows(file, "c500", 1, 99, 50, descending).num_rows
        assert reader.bytes_read - before <= 3 * settings.run_group_bytes


def test_what_was_read_is_remembered_within_bounds(store: LocalStore) -> None:
    rows = _many()
    run = put_rows(store, rows, replace(SMALL, run_file_bytes=1 << 20))
    (file,) = run.files
    reader = RunReader(store, 1 << 20)
    reader.rows(file, "room-007", 1, 20, 10, False)
    before = reader.bytes_read
    reader.rows(file, "room-007", 1, 20, 10, False)
    assert reader.bytes_read == before
    small = RunReader(store, 40_000)
    for _ in range(2):
        assert len(_rows(small, run, "room-007", 1, 60, None, False)) == 60
    assert small.bytes_remembered <= 40_000


def test_threads_share_a_reader(store: LocalStore) -> None:
    rows = _many()
    run = put_rows(store, rows)
    reader = RunReader(store, 400_000)
    failed: list[str] = []

    def read(number: int) -> None:
        for c in range(10):
            conv = f"room-{(c * 7 + number) % 20:03d}"
            if len(_rows(reader, run, conv, 1, 60, None, False)) != 60:
                failed.append(conv)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_void_that_is_none_is_corrupt(store: LocalStore) -> None:
    rows = [HistoryRow("a", 1), HistoryRow("a", 2, log=3, segment=44, row=5, kind=RecordKind.VOID)]
    table = history_table(rows)
    broken = table.set_column(9, HISTORY_SCHEMA.field("body"), pa.array([b"x", b"no JSON"], pa.binary()))
    with pytest.raises(CorruptError, match=r"segment 44 of log 3.*row 5"):
        write_run(store, 0, 0, [broken], [], [], SMALL)


@pytest.mark.parametrize("descending", [False, True])
def test_a_number_is_answered_whole_also_over_groups(store: LocalStore, descending: bool) -> None:
    """Two rows of one number are a fault that an audit must see; a limit may not hide one of them."""
    rows = [HistoryRow("a", n // 2, segment=n) for n in range(2, 40)]
    run = put_rows(store, rows, Settings(run_group_bytes=1))
    for limit in (1, 2, 3):
        expected = [r.key for r in wanted(rows, "a", 1, 99, limit, descending)]
        assert _rows(RunReader(store, CACHE), run, "a", 1, 99, limit, descending) == expected
