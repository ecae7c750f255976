"""The history's table: what a version consists of, who may add one, and that others read it as a Delta table."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import deltalake
import msgspec
import polars
import pytest

from imray.core.errors import CorruptError, InvalidError, StorageError
from imray.history import actions, table_reading
from imray.history.layout import DELTA_LOG, commit_name
from imray.history.snapshot import RunFile, TableSnapshot
from imray.history.table import Table, TableConflictError
from imray.log.marks import Mark
from tests.support.analytics_logs import FastStore
from tests.support.table_files import (
    NOW_MS,
    compact,
    conversations_in,
    merge,
    rows_for_others,
    rows_of,
    run_file,
)

P1 = 10_001
"""The log of a partition of shard 0."""


@pytest.fixture
def store(tmp_path: Path) -> FastStore:
    return FastStore(tmp_path)


def _same_for_all(store: FastStore, snapshot: TableSnapshot, rows: int) -> None:
    """Ours, from nothing and from the bytes alone, is what `snapshot` says; delta-rs and Polars read the same rows."""
    assert Table(store).snapshot() == snapshot
    ours = rows_of(store, snapshot)
    assert len(ours) == rows
    assert rows_for_others(store.root) == ours


def test_others_read_it_after_every_kind_of_operation(store: FastStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 4)
    table = Table(store)
    assert table.snapshot() == TableSnapshot()
    first = merge(table, table.snapshot(), store, 0)
    _same_for_all(store, first, 2)
    appended = merge(table, merge(table, first, store, 1, names=["zoë ☃", '"\\{}']), store, 0)
    _same_for_all(store, appended, 6)
    compacted = compact(table, appended, store, 0)
    _same_for_all(store, compacted, 6)
    table.checkpoint(compacted)
    _same_for_all(store, compacted, 6)
    fenced = table.fence_runs(compacted, 1, NOW_MS)
    for _ in range(4):
        fenced = merge(table, fenced, store, 1)
    table.checkpoint(fenced)
    later = merge(table, fenced, store, 1)
    table.checkpoint(later)
    _same_for_all(store, later, 16)
    assert table.clean() == 7, "six commits between fences, and a checkpoint"
    _same_for_all(store, later, 16)
    _same_for_all(store, compact(table, later, store, 1, 6), 16)
    assert table.damaged == {}


def test_others_skip_files_by_partition_and_conversation(store: FastStore) -> None:
    table = Table(store)
    state = merge(table, table.snapshot(), store, 0, names=["a", "é", "\U0001f600"])
    state = merge(table, state, store, 1, names=["a", "b"])
    table.checkpoint(state)
    root = str(store.root / "history")
    delta = deltalake.DeltaTable(root)
    for name, found in (("a", 2), ("b", 1), ("\U0001f600", 1), ("é", 1), ("c", 0)):
        assert delta.to_pyarrow_table(filters=[("conv_id", "=", name)]).num_rows == found
        assert polars.scan_delta(root).filter(polars.col("conv_id") == name).collect().height == found
    assert delta.to_pyarrow_table(filters=[("shard", "=", 1)]).num_rows == 2
    assert delta.transaction_version("imray/log=0") == 10
    assert [c["operation"] for c in delta.history()] == ["merge", "merge"]


def test_a_snapshot_says_all_that_was_committed(store: FastStore) -> None:
    table = Table(store)
    one = run_file(store, 0, "one", ["b", "a"], [(0, 3, 9), (P1, 1, 4)])
    state = table.commit(table.snapshot(), [one], [], {0: (0, 9), P1: (0, 4)}, "merge", NOW_MS)
    assert (state.version, state.merged) == (0, {0: 9, P1: 4})
    assert state.files == {one.name: one}
    assert state.committed_ms == {one.name: NOW_MS}
    assert state.end(P1) == one.ends[1]
    other = run_file(store, 3, "other", ["x"], [(3, 1, 1)])
    state = table.commit(state, [other], [], {3: (0, 1)}, "merge", NOW_MS + 1)
    two = run_file(store, 0, "two", ["c"], [(0, 10, 10)])
    state = table.commit(state, [two], [], {0: (9, 10)}, "merge", NOW_MS + 2)
    both = run_file(store, 0, "both", ["a", "b", "c"], [(0, 3, 10), (P1, 1, 4)])
    three = run_file(store, 0, "three", ["c"], [(0, 11, 11)])
    state = table.commit(state, [three], [], {0: (10, 11)}, "merge", NOW_MS + 3)
    state = table.commit(state, [both], [two.name, one.name], {}, "compact", NOW_MS + 4)
    assert [run.files for run in state.runs[0]] == [(both,), (three,)], "where those stood that it replaces"
    assert table.snapshot() == state
    table.checkpoint(state)
    assert Table(store).snapshot() == state


class _Counting(FastStore):
    """Notes the names that are asked for; fails at one."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def get(self, name: str) -> bytes | None:
        self.asked.append(f"get {int(name[-25:-5])}")
        return super().get(name)

    def list(self, prefix: str, after: str = "") -> list[str]:
        self.asked.append("list")
        return super().list(prefix, after)


def test_only_what_is_new_is_read_and_nothing_is_listed(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    table = Table(store)
    known = merge(table, merge(table, table.snapshot(), store, 0), store, 0)
    newest = merge(table, merge(table, known, store, 1), store, 1)
    counting = _Counting(tmp_path)
    assert Table(counting).snapshot(known) == newest
    assert counting.asked == ["get 2", "get 3", "get 4"]
    counting.asked.clear()
    assert Table(counting).snapshot(newest) is newest
    assert counting.asked == ["get 4"]


def test_other_shards_commits_are_no_conflict(store: FastStore) -> None:
    table = Table(store)
    base = merge(table, table.snapshot(), store, 0)
    merge(Table(store), base, store, 1)
    merge(Table(store), base, store, 2)
    mine = merge(table, base, store, 0)
    assert (mine.version, mine.merged) == (3, {0: 20, 1: 10, 2: 10})


def test_the_second_merge_of_the_same_segments_is_void(store: FastStore) -> None:
    table = Table(store)
    base = merge(table, table.snapshot(), store, 0)
    newer = merge(table, base, store, 0)
    again = run_file(store, 0, "again", ["a"], [(0, 11, 15)])
    with pytest.raises(TableConflictError, match="merged up to segment 20, this merge began after 10") as e:
        table.commit(base, [again], [], {0: (10, 15)}, "merge", NOW_MS)
    assert e.value.is_void
    assert table.snapshot() == newer


def test_the_second_replacement_of_the_same_run_is_void(store: FastStore) -> None:
    table = Table(store)
    base = merge(table, merge(table, table.snapshot(), store, 0), store, 0)
    newer = compact(table, base, store, 0)
    again = run_file(store, 0, "again", ["a", "a", "b", "b"], [(0, 1, 20)])
    with pytest.raises(TableConflictError, match="not in the table any more"):
        table.commit(base, [again], [run.files[0].name for run in base.runs[0]], {}, "compact", NOW_MS)
    assert table.snapshot() == newer


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


class _Interrupted(FastStore):
    """Somebody else acts just before a commit is put; or its answer is lost."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before_put: list[object] = []
        self.loses_answer = False

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
    assert again == state
    assert again.version == 1 + others


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


def test_a_run_that_is_gone_is_not_committed(store: FastStore) -> None:
    table = Table(store)
    add = run_file(store, 0, "gone", ["a"], [(0, 1, 10)])
    store.delete(add.name)
    with pytest.raises(TableConflictError, match="not there"):
        table.commit(table.snapshot(), [add], [], {0: (0, 10)}, "merge", NOW_MS)
    assert table.snapshot().version == -1


def _wrong_changes(base: TableSnapshot) -> dict[str, tuple[list[RunFile], list[str], dict[int, tuple[int, int]]]]:
    one, two = (run.files[0] for run in base.runs[0])
    good = run_file(None, 0, "good", ["a", "b"], [(0, 21, 30)])
    both = run_file(None, 0, "both", ["a", "a", "b", "b"], [(0, 1, 20)])
    moves = {0: (20, 30)}
    return {
        "nothing to merge": ([], [], {}),
        "would be in two runs": ([run_file(None, 0, "x", ["a"], [(0, 20, 30)])], [], moves),
        "would be in no run": ([run_file(None, 0, "x", ["a"], [(0, 21, 30)])], [two.name], moves),
        "merged up to 30, and its runs hold": ([run_file(None, 0, "x", ["a"], [(0, 21, 29)])], [], moves),
        "merged up to 20, and its runs hold": (
            [run_file(None, 0, "x", [*"aabb"], [(0, 1, 30)])],
            [one.name, two.name],
            {},
        ),
        "log 10001 would be merged up to 0": ([run_file(None, 0, "x", ["a"], [(0, 21, 30), (P1, 1, 2)])], [], moves),
        "cannot cover": ([run_file(None, 0, "x", ["a"], [(1, 21, 30)])], [], moves),
        "instead of 4": ([msgspec.structs.replace(both, rows=3)], [one.name, two.name], {}),
        "its ends say otherwise": ([msgspec.structs.replace(good, ends=())], [], moves),
        "cannot be merged from 20 to 20": ([good], [], {0: (20, 20)}),
        "is no name of a run": ([msgspec.structs.replace(good, name="history/shard=0000/a b.parquet")], [], moves),
        "names a file twice": ([both], [one.name, two.name, two.name], {}),
    }


@pytest.mark.parametrize("why", range(12))
def test_what_would_lose_rows_or_double_them_is_refused(store: FastStore, why: int) -> None:
    table = Table(store)
    base = merge(table, merge(table, table.snapshot(), store, 0), store, 0)
    detail, (add, remove, moves) = list(_wrong_changes(base).items())[why]
    for file in add:
        store.put_if_absent(file.name, [b"x"])
    with pytest.raises(InvalidError, match=detail):
        table.commit(base, add, remove, moves, "merge", NOW_MS)
    assert table.snapshot() == base


def test_a_run_goes_whole(store: FastStore) -> None:
    table = Table(store)
    first = run_file(store, 0, "run", ["a"], [(0, 1, 10)])
    second_name = first.name.replace("-0000-", "-0001-")
    second = msgspec.structs.replace(run_file(None, 0, "run", ["b"], [(0, 1, 10)]), name=second_name)
    store.put_if_absent(second.name, [store.get(first.name) or b""])
    with pytest.raises(InvalidError, match="a run is sorted"):
        table.commit(table.snapshot(), [second, first], [], {0: (0, 10)}, "merge", NOW_MS)
    state = table.commit(table.snapshot(), [first, second], [], {0: (0, 10)}, "merge", NOW_MS)
    assert [run.files for run in state.runs[0]] == [(first, second)]
    half = run_file(store, 0, "half", ["a"], [(0, 1, 10)])
    with pytest.raises(InvalidError, match="with all of its files, or not at all"):
        table.commit(state, [half], [first.name], {}, "compact", NOW_MS)


def test_a_newer_format_is_refused(store: FastStore, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(store)
    state = merge(table, table.snapshot(), store, 0)
    with monkeypatch.context() as newer:
        newer.setattr(actions, "FORMAT_VERSION", 2)
        merge(table, state, store, 0)
    with pytest.raises(InvalidError, match=r"format 2.*upgrade imray"):
        table.snapshot(state)
    with pytest.raises(InvalidError, match="upgrade imray"):
        merge(table, state, store, 1)


def test_a_mark_above_the_table_is_corruption(store: FastStore) -> None:
    table = Table(store)
    before = merge(table, table.snapshot(), store, 0)
    state = merge(table, before, store, 0)
    end = state.end(0)
    assert end is not None
    table.check_mark(state, Mark(end, state.version))
    table.check_mark(before, Mark(end, state.version))  # a snapshot that is older than the mark
    table.check_mark(state, Mark(end, 0))
    store.delete(commit_name(1))
    with pytest.raises(CorruptError, match="version 1 of the history's table, which is at version 0") as e:
        table.check_mark(Table(store).snapshot(), Mark(end, 1))
    assert e.value.file == "merged/log=00000/00000000000000000020.json"


def test_a_checkpoint_is_due_now_and_then(store: FastStore) -> None:
    table = Table(store)
    assert [v for v in range(-1, 200) if table.checkpoint_due(replace(TableSnapshot(), version=v))] == [64, 128, 192]


def test_conversations_of_a_test_file(store: FastStore) -> None:
    assert conversations_in(store, [run_file(store, 0, "x", ["b", "a"], [(0, 1, 1)])]) == ["a", "b"]
