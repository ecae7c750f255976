"""Ids made anew where log and history overlap: what one of them has lost is taken from the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from imray.core.errors import CorruptError
from imray.history.remake import remake
from imray.history.table import Table
from imray.log.checkpoint import write_twin
from imray.log.marks import mark_prefix, marked
from imray.log.segment import segment_name
from tests.support.batches import SEED
from tests.support.merging import ManualClock, UnsyncedStore, WrittenLog, files_of, merger_of, work, work_all


def _overlapping(root: Path) -> tuple[WrittenLog, int, int]:
    """A log that is merged further than it is marked: where both end."""
    log = WrittenLog(UnsyncedStore(root))
    clock = ManualClock()
    merger = merger_of(log.store, clock)
    log.write(5)
    log.checkpoint()
    write_twin(log.store, 0)
    work_all(merger, clock)
    log.write(5)
    log.checkpoint()
    work(merger)
    log.write(2)
    log.checkpoint()
    return log, marked(log.store, 0), Table(log.store).snapshot().merged[0]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "lost"])
def test_a_segment_that_the_history_has_is_not_needed(tmp_path: Path, how: str) -> None:
    log, mark, merged = _overlapping(tmp_path)
    assert mark < merged - 1
    for number in (mark + 1, merged):
        path = tmp_path / segment_name(0, number)
        if how == "lost":
            path.unlink()
        else:
            _flip(path)
    for made in log.committer.intervals:
        assert (made.ids == remake(log.store, SEED, made.interval, {}).ids).all()


def test_marks_that_are_lost_are_not_needed(tmp_path: Path) -> None:
    log, mark, _ = _overlapping(tmp_path)
    assert mark
    for name in log.store.list(mark_prefix(0)):
        log.store.delete(name)
    for made in log.committer.intervals:
        assert (made.ids == remake(log.store, SEED, made.interval, {}).ids).all()


def test_a_run_of_what_the_log_still_has_is_not_needed(tmp_path: Path) -> None:
    log, _, _ = _overlapping(tmp_path)
    first, second, third = log.committer.intervals
    _, run = Table(log.store).snapshot().runs[0]
    _flip(tmp_path / run.files[0].name)
    before = files_of(tmp_path, "sealed")
    for made in (second, third):
        assert (made.ids == remake(log.store, SEED, made.interval, {}).ids).all()
    _flip(tmp_path / segment_name(0, second.interval.last))
    between = files_of(tmp_path, "sealed")
    with pytest.raises(CorruptError, match="history/"):
        remake(log.store, SEED, second.interval, {})
    assert len(between) > len(before)
    assert files_of(tmp_path, "sealed") == between
    assert (first.ids == remake(log.store, SEED, first.interval, {}).ids).all(), "that is elsewhere"


def test_a_table_that_is_damaged_is_not_needed_where_nothing_was_deleted(tmp_path: Path) -> None:
    log = WrittenLog(UnsyncedStore(tmp_path))
    log.write(5)
    log.checkpoint()
    work(merger_of(log.store, ManualClock()))
    for path in (tmp_path / "history" / "_delta_log").iterdir():
        _flip(path)
    (made,) = log.committer.intervals
    assert (made.ids == remake(log.store, SEED, made.interval, {}).ids).all()
