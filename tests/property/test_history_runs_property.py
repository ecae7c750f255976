"""Whatever the rows, groups and files are: each row once and in order, and a page has what it must have."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from imray.history.merging import merge_runs
from imray.history.run_reader import RunReader
from imray.history.snapshot import Run
from imray.log.schema import RecordKind
from imray.settings import Settings
from tests.support.history_rows import HistoryRow, UnsyncedStore, keys_of, put_rows, wanted

_CONVERSATIONS = ["a", "ab", "b", "é", "\U0001f600", "～"]
_KINDS = [RecordKind.MESSAGE] * 6 + [RecordKind.VOID] * 2 + [RecordKind.CURSORS, RecordKind.HOT]


@st.composite
def _rows(draw: st.DrawFn) -> list[HistoryRow]:
    """Rows of all kinds: numbers repeat, voids overlap and reach over anything, logs interleave."""
    found: dict[object, HistoryRow] = {}
    for _ in range(draw(st.integers(1, 40))):
        conv = draw(st.sampled_from(_CONVERSATIONS))
        seq = draw(st.integers(0, 25))
        kind = draw(st.sampled_from(_KINDS))
        last = seq + draw(st.integers(0, 20)) if kind == RecordKind.VOID else 0
        place = draw(st.sampled_from([0, 10_001])), draw(st.integers(1, 9)), draw(st.integers(0, 3))
        body = bytes(draw(st.sampled_from([0, 5, 400])))
        row = HistoryRow(conv, seq, *place, kind=kind, last=last, body=body)
        found[row.key] = row
    return list(found.values())


_QUERIES = st.lists(
    st.tuples(
        st.sampled_from([*_CONVERSATIONS, "", "zz"]),
        st.integers(0, 30),
        st.integers(0, 30),
        st.one_of(st.none(), st.integers(1, 5)),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(
    rows=_rows(),
    group_bytes=st.sampled_from([1, 200, 100_000]),
    file_bytes=st.sampled_from([1500, 1 << 20]),
    queries=_QUERIES,
)
def test_pages_have_what_they_must(
    rows: list[HistoryRow], group_bytes: int, file_bytes: int, queries: list[tuple[str, int, int, int | None, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = UnsyncedStore(Path(folder))
        run = put_rows(store, rows, Settings(run_group_bytes=group_bytes, run_file_bytes=file_bytes))
        reader = RunReader(store, 1 << 16)
        ordered = sorted(rows, key=lambda r: r.key)
        for file in run.files:
            own = ordered[: file.rows]
            ordered = ordered[file.rows :]
            for query in queries:
                assert keys_of(reader.rows(file, *query)) == [r.key for r in wanted(own, *query)], query
        assert ordered == []


@settings(max_examples=20, deadline=None)
@given(
    parts=st.lists(_rows(), min_size=1, max_size=4),
    group_bytes=st.sampled_from([1, 500]),
    step=st.sampled_from([1, 4000, 1 << 20]),
)
def test_a_merge_keeps_each_row_and_their_order(parts: list[list[HistoryRow]], group_bytes: int, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = UnsyncedStore(Path(folder))
        made = Settings(run_group_bytes=group_bytes, run_file_bytes=3000, merge_step_bytes_max=step)
        seen: set[object] = set()
        rows: list[HistoryRow] = []
        runs: list[Run] = []
        for part in parts:
            fresh = [r for r in part if r.key not in seen]
            seen |= {r.key for r in fresh}
            rows += fresh
            if fresh:
                runs.append(put_rows(store, fresh, made))
        reader = RunReader(store, 0)
        merged = merge_runs(store, 0, runs, made)
        found = [key for file in merged for t in reader.tables(file) for key in keys_of(t)]
        assert found == sorted(r.key for r in rows)
        for file in merged:
            reader.verify(file)
