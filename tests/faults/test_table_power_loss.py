"""Fault 23 on the log of the history's table: no commit that was made is lost, none that is torn is believed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from imray.history import table_reading
from imray.history.snapshot import TableSnapshot
from imray.history.table import Table
from imray.log.marks import MergeMark, put_mark, read_mark
from tests.support.power_loss import WAYS, Death, Journal, JournalStore, files_after_power_loss
from tests.support.table_files import NOW_MS, run_file


def _commits_and_marks(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> list[TableSnapshot]:
    """What a merger does to the table's folder and the marks, as two processes in turn; one dies before a sync."""
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 2)
    states: list[TableSnapshot] = []
    while len(states) < 7:
        try:
            store = JournalStore(journal)
            table = Table(store)
            state = table.snapshot()
            if state.version >= 0:
                table.make_durable()
                _mark(store, state)
            for _ in range(4):
                before = state.merged.get(0, 0)
                add = run_file(store, 0, f"{len(journal.steps)}", ["a"], [(0, before + 1, before + 1)])
                state = table.commit(state, [add], [], {0: (before, before + 1)}, "merge", NOW_MS)
                states.append(state)
                journal.steps.append(("committed", state))
                if len(states) % 3 == 0:
                    table.checkpoint(state)
                    table.clean()
                _mark(store, state)
        except Death:
            continue
    return states


def _mark(store: JournalStore, state: TableSnapshot) -> None:
    end = state.end(0)
    assert end is not None
    put_mark(store, MergeMark(end, state.version))


@pytest.mark.parametrize("dies_at_sync", [-1, 5, 6, 10])
def test_no_commit_is_lost_or_torn_whenever_the_power_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at_sync: int
) -> None:
    journal = Journal(tmp_path / "data", syncs_until_death=dies_at_sync)
    journal.root.mkdir()
    _commits_and_marks(journal, monkeypatch)
    dice = random.Random(dies_at_sync)
    committed: TableSnapshot | None = None
    for cut, step in enumerate(journal.steps, 1):
        if step[0] == "committed":
            committed = step[1]
        elif dice.random() < 0.8:
            continue
        for how in WAYS:
            store = _Left(files_after_power_loss(journal, journal.steps[:cut], how, cut))
            table = Table(store)  # type: ignore[arg-type]
            state = table.snapshot()
            if committed is not None:
                assert state.version >= committed.version
                assert state.merged[0] >= committed.merged[0]
            for file in state.files:
                assert store.exists(file), "a run that the table names"
            for name in store.list("merged/log=00000/"):
                table.check_mark(state, read_mark(store.get(name) or b"", name))


class _Left:
    """The files that are left, to be read."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.get: Callable[[str], bytes | None] = files.get
        self._files = files

    def exists(self, name: str) -> bool:
        return name in self._files

    def list(self, prefix: str, after: str = "") -> list[str]:
        return sorted(name for name in self._files if name.startswith(prefix) and name > after)
