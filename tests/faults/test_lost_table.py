"""A table that lost its newest commits, or all: nothing is merged on top of it, and nothing deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from imray.core.errors import CorruptError
from imray.history.layout import DELTA_LOG, commit_name, run_prefix
from imray.history.table import Table
from imray.log.marks import newest_mark
from tests.support.merging import READ_S_MAX, HookedStore, ManualClock, merger_of, work, work_all, written


@pytest.fixture
def store(tmp_path: Path) -> HookedStore:
    return HookedStore(tmp_path / "data")


def _delete(store: HookedStore, clock: ManualClock) -> None:
    """Merge a log, and delete most of what the history has of it."""
    log = written(store)
    merger = merger_of(store, clock)
    work(merger)
    for _ in range(2):
        log.write(1)
        log.checkpoint()
        work_all(merger, clock)
        work_all(merger, clock)


def _lose(store: HookedStore, lost: str) -> None:
    """All commits, or those from the one on that has what was deleted last."""
    mark = newest_mark(store, 0)
    assert mark is not None
    assert mark.version > 0
    for version in range(0 if lost == "all" else mark.version, Table(store).snapshot().version + 1):
        store.delete(commit_name(version))


@pytest.mark.parametrize("only_vacuum", [False, True])
@pytest.mark.parametrize("lost", ["all", "newest"])
def test_what_a_lost_commit_named_stays(store: HookedStore, lost: str, only_vacuum: bool) -> None:
    clock = ManualClock()
    _delete(store, clock)
    runs = store.list(run_prefix(0))
    _lose(store, lost)
    commits = store.list(DELTA_LOG)
    merger = merger_of(store, clock, only_vacuum=only_vacuum)
    merger.sweep_soon(0)
    for _ in range(5):
        work(merger)
        clock.pass_s(READ_S_MAX + 1)
    assert store.list(run_prefix(0)) == runs, "the only copy of what was deleted from the log"
    assert store.list(DELTA_LOG) == commits, "a person can put back what was lost"
    assert any("merged/log=00000" in detail for detail in merger.status(0).detail)


@pytest.mark.parametrize("lost", ["all", "newest"])
def test_no_commit_takes_the_name_of_a_lost_one(store: HookedStore, lost: str) -> None:
    _delete(store, ManualClock())
    _lose(store, lost)
    table = Table(store)
    with pytest.raises(CorruptError, match="history's table"):
        table.fence_runs(table.snapshot(), 0, 1)
