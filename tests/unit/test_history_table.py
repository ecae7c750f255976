"""The history's table: what a version consists of, which commits it takes, and that others read it as Delta."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import deltalake
import msgspec
import polars
import pyarrow.compute as pc
import pytest

from imray.core.errors import CorruptError, InvalidError
from imray.history import actions, table_checkpoint, table_reading
from imray.history.changes import apply_commit
from imray.history.layout import commit_name
from imray.history.snapshot import RunFile, TableSnapshot
from imray.history.table import Table, TableConflictError
from imray.log.marks import MergeMark
from tests.support.analytics_logs import FastStore
from tests.support.table_files import (
    NOW_MS,
    compact,
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
    rows = delta.to_pyarrow_dataset()
    assert rows.to_table(filter=pc.field("kind") == 0).num_rows == 5, "of columns without statistics nothing is skipped"
    assert rows.to_table(filter=pc.field("conv_id") == "a").num_rows == 2
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
        newest = merge(table, state, store, 0)
    with pytest.raises(InvalidError, match=r"format 2.*upgrade imray"):
        table.snapshot(state)
    with pytest.raises(InvalidError, match="upgrade imray"):
        merge(table, state, store, 1)
    with monkeypatch.context() as newer:
        newer.setattr(table_checkpoint, "FORMAT_VERSION", 2)
        store.put_if_absent(table_checkpoint.checkpoint_name(1), table_checkpoint.encode_checkpoint(newest))
    store.delete(commit_name(1))
    with pytest.raises(InvalidError, match="upgrade imray"):
        table.snapshot()


def _impossible(base: TableSnapshot) -> dict[str, tuple[TableSnapshot, actions.TableChange]]:
    live = base.runs[0][0].files[0]
    new = run_file(None, 0, "new", ["a"], [(0, 11, 20)])
    merge_of_new = actions.TableChange((new,), (), {0: (10, 20)}, "merge", NOW_MS)
    return {
        "is in the table already": (base, replace(merge_of_new, add=(live,))),
        "is not in the table": (base, replace(merge_of_new, remove=(new.name,))),
        "log 0 was merged up to 10, and now up to 5": (base, replace(merge_of_new, moves={0: (0, 5)})),
        "it is version 8": (replace(base, version=7), merge_of_new),
        "its predecessor is": (replace(base, digest="0" * 32), merge_of_new),
    }


@pytest.mark.parametrize("which", range(5))
def test_a_commit_that_is_whole_and_cannot_be_is_corruption(store: FastStore, which: int) -> None:
    table = Table(store)
    base = merge(table, table.snapshot(), store, 0)
    check, (said, change) = list(_impossible(base).items())[which]
    assert store.put_if_absent(commit_name(1), [actions.encode_commit(change, said)[0]])
    with pytest.raises(CorruptError, match=check) as e:
        table.snapshot(base)
    assert e.value.file == commit_name(1)


def test_the_first_commit_says_what_the_table_is(store: FastStore) -> None:
    table = Table(store)
    merge(table, table.snapshot(), store, 0)
    first = table_reading.read_commit(store, 0)
    assert first is not None
    with pytest.raises(CorruptError, match="the first commit has one"):
        apply_commit(TableSnapshot(), replace(first, meta=None))
    configuration = deltalake.DeltaTable(str(store.root / "history")).metadata().configuration
    assert configuration == {"imray.format": "1", "delta.enableExpiredLogCleanup": "false"}


def test_a_mark_above_the_table_is_corruption(store: FastStore) -> None:
    table = Table(store)
    before = merge(table, table.snapshot(), store, 0)
    state = merge(table, before, store, 0)
    end = state.end(0)
    assert end is not None
    table.check_mark(state, MergeMark(end, state.version))
    table.check_mark(before, MergeMark(end, state.version))  # a snapshot that is older than the mark
    table.check_mark(state, MergeMark(end, 0))
    for mark in (MergeMark(end, 2), MergeMark(msgspec.structs.replace(end, segment=21), 1)):
        with pytest.raises(CorruptError, match="which is at version 1 and has them up to 20"):
            table.check_mark(state, mark)
    store.delete(commit_name(1))
    with pytest.raises(CorruptError, match="version 1 of the history's table, which is at version 0") as e:
        table.check_mark(Table(store).snapshot(), MergeMark(end, 1))
    assert e.value.file == "merged/log=00000/00000000000000000020.json"
