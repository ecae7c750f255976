"""Rows of the history stand for the epoch of their segment: where one does not, every audit says so."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest

from analytics import audit, screen
from imray.history.layout import HISTORY_SCHEMA
from imray.history.run_file import write_run
from imray.history.run_reader import RunReader
from imray.history.table import Table
from imray.log.store import LocalStore
from tests.support.analytics_logs import FastStore, good_log
from tests.support.analytics_merges import SMALL, found_by, merge


@pytest.mark.parametrize("by", [-1, 7])
@pytest.mark.parametrize("reports", [True, False])
def test_a_row_of_another_epoch_than_its_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: int, reports: bool
) -> None:
    monkeypatch.setattr(LocalStore, "_sync_file", lambda *_: None)
    monkeypatch.setattr(LocalStore, "_sync_folder", lambda *_: None)
    monkeypatch.setattr(screen, "RANGE_ROWS", 3)
    root = good_log(tmp_path)
    merge(root)
    assert found_by(audit.run(root, reports=reports)) == {}
    store = FastStore(root)
    table = Table(store)
    before = table.snapshot()
    (run,) = before.runs[0]
    reader = RunReader(store, 0)
    rows = pa.concat_tables([part for file in run.files for part in reader.tables(file)]).cast(HISTORY_SCHEMA)
    planted = rows.to_pylist()
    at = next(i for i, row in enumerate(planted) if row["kind"] == 0)
    planted[at]["epoch"] += by
    files = write_run(store, 0, run.tier, [pa.Table.from_pylist(planted, HISTORY_SCHEMA)], run.covers, run.ends, SMALL)
    table.commit(before, files, [file.name for file in run.files], {}, "OPTIMIZE", int(time.time() * 1000))
    found = found_by(audit.run(root, reports=reports))
    assert list(found) == ["segment_rows"]
    assert [row["segment"] for row in found["segment_rows"]] == [planted[at]["segment"]]
