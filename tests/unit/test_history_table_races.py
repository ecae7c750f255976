"""Several who commit to the history's table at once, and those who slept while its log was cleaned."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from imray.core.errors import StorageError
from imray.history import actions, table_reading
from imray.history.layout import DELTA_LOG, commit_name
from imray.history.table import Table, TableConflictError
from tests.support.analytics_logs import FastStore
from tests.support.table_files import (
    NOW_MS,
    merge,
    rows_for_others,
    rows_of,
    run_file,
)


@pytest.fixture
def store(tmp_path: Path) -> FastStore:
    return FastStore(tmp_path)


class _Interrupted(FastStore):
    """Somebody else acts just before a commit is put; or its answer is lost."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before_put: list[object] = []
        self.loses_answer = False
        self.synced: list[str] = []

    def sync(self, prefix: str) -> None:
        self.synced.append(prefix)
        super().sync(prefix)

    def delete(self, name: str) -> None:
        assert self.synced, "whoever put the checkpoint may have died before its name was durable"
        super().delete(name)

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        if name.startswith(DELTA_LOG) and self.before_put:
            act = self.before_put.pop(0)
            assert callable(act)
            act()
        done = super().put_if_absent(name, parts)
        if self.loses_answer and name.startswith(DELTA_LOG):
            self.loses_answer = False
            raise StorageError("no answer")
        return done


def test_committers_that_race_all_land_once(tmp_path: Path) -> None:
    start = threading.Barrier(4)
    refused: list[str] = []

    def work(me: int) -> None:
        """Two shards, each with two mergers that know nothing of one another."""
        store = FastStore(tmp_path)
        table = Table(store)
        start.wait(60)
        state = table.snapshot()
        while state.merged.get(me % 2, 0) < 100:
            before = state.merged.get(me % 2, 0)
            add = run_file(
                store, me % 2, f"by{me}from{before}v{state.version}", ["a"], [(me % 2, before + 1, before + 10)]
            )
            try:
                state = table.commit(state, [add], [], {me % 2: (before, before + 10)}, "merge", NOW_MS)
            except TableConflictError as e:
                refused.append(str(e))
                state = table.snapshot(state)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    store = FastStore(tmp_path)
    state = Table(store).verify()
    assert (state.version, state.merged) == (19, {0: 100, 1: 100})
    covered = [(run.covers[0].first, run.covers[0].last) for run in state.runs[0]]
    assert covered == [(n + 1, n + 10) for n in range(0, 100, 10)]
    assert len(rows_of(store, state)) == 20


def test_a_name_that_is_lost_is_read_and_the_next_is_taken(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    other = Table(store)
    base = merge(other, other.snapshot(), store, 0)
    slow = _Interrupted(tmp_path)
    slow.before_put = [
        lambda: merge(other, base, store, 1),
        lambda: merge(other, other.snapshot(), store, 2),
    ]
    mine = merge(Table(slow), base, slow, 0)
    assert (mine.version, mine.merged) == (3, {0: 20, 1: 10, 2: 10})
    assert other.snapshot() == mine
    slow.before_put = [lambda: merge(other, mine, store, 0, 5)]
    with pytest.raises(TableConflictError, match="merged up to segment 25"):
        merge(Table(slow), mine, slow, 0)


@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_commit_whose_answer_was_lost_is_our_own(tmp_path: Path, others: int) -> None:
    store = _Interrupted(tmp_path)
    table = Table(store)
    base = merge(table, table.snapshot(), store, 0)
    add = run_file(store, 0, "mine", ["a"], [(0, 11, 20)])
    store.loses_answer = True
    with pytest.raises(StorageError):
        table.commit(base, [add], [], {0: (10, 20)}, "merge", NOW_MS)
    state = Table(store).snapshot(base)
    for shard in range(1, others + 1):
        state = merge(Table(store), state, store, shard)
    again = table.commit(base, [add], [], {0: (10, 20)}, "merge", NOW_MS + 5)
    assert store.synced == [DELTA_LOG], "who put it may have died before its name was durable"
    assert again == state
    assert again.version == 1 + others


def test_nothing_is_removed_before_what_replaces_it_is_durable(tmp_path: Path) -> None:
    store = _Interrupted(tmp_path)
    table = Table(store)
    state = merge(table, table.snapshot(), store, 0)
    for _ in range(3):
        state = merge(table, state, store, 0)
        table.checkpoint(state)
    assert table.clean() == 1


def test_a_commit_that_lands_in_a_name_that_was_removed_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merger sleeps just before it puts its commit, while others commit, make checkpoints and clean."""
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 4)
    store = FastStore(tmp_path)
    table = Table(store)
    base = merge(table, table.snapshot(), store, 0)

    def meanwhile() -> None:
        state = base
        for _ in range(8):
            state = merge(table, state, store, 1)
            table.checkpoint(state)
        assert table.clean() == 3 + 6

    slow = _Interrupted(tmp_path)
    slow.before_put = [meanwhile]
    with pytest.raises(TableConflictError, match="whether this commit counts is unknown") as e:
        merge(Table(slow), base, slow, 0)
    assert not e.value.is_void
    assert store.exists(commit_name(1)), "its commit is there"
    newest = Table(store).snapshot()
    assert newest.merged == {0: 10, 1: 80}, "and counts for nobody"
    assert Table(store).snapshot(base) == newest, "not even for who slept as long"
    assert merge(Table(store), base, store, 2).merged == {0: 10, 1: 80, 2: 10}
    rows_for_others(tmp_path)
    table.clean()
    assert not store.exists(commit_name(1))


def test_who_slept_finds_the_newest_version(store: FastStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 4)
    table = Table(store)
    states = [merge(table, table.snapshot(), store, 0)]
    for _ in range(12):
        states.append(merge(table, states[-1], store, 0))
        table.checkpoint(states[-1])
    table.clean()
    for state in states:
        assert table.snapshot(state) == states[-1]
    with pytest.raises(TableConflictError) as e:
        merge(table, states[1], store, 0, 5)
    assert not e.value.is_void, "its own commit may have been one of those that were removed"


def test_the_table_moves_on_between_a_listing_and_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was listed is removed before it is read: the newest checkpoint is another one then."""
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 2)
    store = FastStore(tmp_path)
    table = Table(store)
    state = merge(table, table.snapshot(), store, 0)

    class Moving(FastStore):
        def list(self, prefix: str, after: str = "") -> list[str]:
            nonlocal state
            names = super().list(prefix, after)
            if state.version < 9:
                for _ in range(3):
                    state = merge(table, state, store, 0)
                    table.checkpoint(state)
                table.clean()
            return names

    assert Table(Moving(tmp_path)).snapshot() == state


def test_a_listing_may_miss_what_is_made_and_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is no snapshot: it showed the commits that were left, and no checkpoint yet."""
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 2)
    store = FastStore(tmp_path)
    table = Table(store)
    state = merge(table, table.snapshot(), store, 0)
    for _ in range(9):
        state = merge(table, state, store, 0)
        table.checkpoint(state)
    table.clean()

    class Half(FastStore):
        listings = 0

        def list(self, prefix: str, after: str = "") -> list[str]:
            self.listings += 1
            names = super().list(prefix, after)
            return [n for n in names if n.endswith(".json")] if self.listings == 1 else names

    assert Table(Half(tmp_path)).snapshot() == state


def test_a_checkpoint_that_was_removed_meanwhile_is_not_damaged(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    table = Table(store)
    states = [merge(table, table.snapshot(), store, 0)]
    for _ in range(3):
        states.append(merge(table, states[-1], store, 0))
    table.checkpoint(states[1])

    class Cleaned(FastStore):
        def list(self, prefix: str, after: str = "") -> list[str]:
            names = super().list(prefix, after)
            for state in states[2:]:
                table.checkpoint(state)
            table.clean()
            return names

    reader = Table(Cleaned(tmp_path))
    assert reader.snapshot() == states[-1]
    assert reader.damaged == {}


def test_our_own_commit_in_a_name_that_was_removed_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept, it landed below the newest version, and then it is tried again as one whose answer was lost."""
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 4)
    store = _Interrupted(tmp_path)
    table = Table(store)
    base = merge(table, table.snapshot(), store, 0)
    state = base
    for _ in range(8):
        state = merge(table, state, store, 1)
        table.checkpoint(state)
    add = run_file(store, 0, "mine", ["a"], [(0, 11, 20)])
    change = actions.TableChange((add,), (), {0: (10, 20)}, "merge", NOW_MS)
    table.clean()
    store.put_if_absent(commit_name(1), [actions.encode_commit(change, base)[0]])
    landed = table.commit(base, [add], [], {0: (10, 20)}, "merge", NOW_MS)
    assert (landed.version, landed.merged) == (9, {0: 20, 1: 80})


def test_two_who_slept_mislead_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their commits stand side by side in names that were removed, and do not chain."""
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 4)
    store = FastStore(tmp_path)
    table = Table(store)
    first = merge(table, table.snapshot(), store, 0)
    second = merge(table, first, store, 0)
    state = second
    for _ in range(8):
        state = merge(table, state, store, 1)
        table.checkpoint(state)
    table.clean()
    for base, run in ((first, "x"), (second, "y")):
        add = run_file(store, 2, run, ["a"], [(2, 1, 1)])
        change = actions.TableChange((add,), (), {2: (0, 1)}, "merge", NOW_MS)
        assert store.put_if_absent(commit_name(base.version + 1), [actions.encode_commit(change, base)[0]])
    assert table.snapshot(first) == table.snapshot(second) == table.snapshot() == state
    assert merge(table, first, store, 2).merged == {0: 20, 1: 80, 2: 10}


def test_what_is_unfinished_can_be_shut_out(store: FastStore) -> None:
    table = Table(store)
    base = merge(table, table.snapshot(), store, 0)
    begun = run_file(store, 0, "begun", ["a"], [(0, 11, 20)])
    after = table.fence_runs(base, 0, NOW_MS)
    with pytest.raises(TableConflictError, match="shut out"):
        table.commit(base, [begun], [], {0: (10, 20)}, "merge", NOW_MS)
    assert merge(table, base, store, 1).merged == {0: 10, 1: 10}, "of other shards nothing is"
    assert merge(table, after, store, 0).merged == {0: 20, 1: 10}, "nor what is begun now"
