"""Faults 2, 5, 6, 10 and 29 on the log of the history's table: never a wrong version, and damage has a place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import deltalake
import pytest

from imray.core.errors import CorruptError, StorageError
from imray.history import table_reading
from imray.history.layout import DELTA_LOG, TABLE, commit_name
from imray.history.snapshot import TableSnapshot
from imray.history.table import Table
from imray.history.table_checkpoint import checkpoint_name, encode_checkpoint
from tests.support.analytics_logs import FastStore
from tests.support.table_files import NOW_MS, compact, merge, run_file

_SAMPLE = 11
"""Of all bytes every so many are flipped; the place of the first one moves with the file."""


@pytest.fixture
def store(tmp_path: Path) -> FastStore:
    return FastStore(tmp_path)


def _three_versions(store: FastStore) -> list[TableSnapshot]:
    table = Table(store)
    states = [merge(table, table.snapshot(), store, 0)]
    states.append(merge(table, states[-1], store, 0, names=["zoë", "xxh3_128:" + "0" * 32]))
    states.append(compact(table, states[-1], store, 0))
    return states


def _long(store: FastStore, monkeypatch: pytest.MonkeyPatch) -> list[TableSnapshot]:
    """A table whose first commits were removed: versions 8 and 10 have checkpoints, 0 and 4 to 11 are there."""
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 4)
    table = Table(store)
    states = [merge(table, table.snapshot(), store, 0)]
    for version in range(1, 12):
        states.append(merge(table, states[-1], store, version % 2))
        if version in (3, 8, 10):
            table.checkpoint(states[-1])
    assert table.clean() == 7
    return states


def _overwrite(store: FastStore, name: str, data: bytes) -> None:
    (store.root / name).write_bytes(data)


def _damaged(store: FastStore, known: TableSnapshot | None = None) -> CorruptError:
    with pytest.raises(CorruptError) as e:
        Table(store).snapshot(known)
    assert e.value.where
    return e.value


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_flip_in_a_commit_is_found(store: FastStore, version: int) -> None:
    states = _three_versions(store)
    name = commit_name(version)
    data = store.get(name) or b""
    dice = random.Random(version)
    for at in range(version, len(data), _SAMPLE):
        flipped = bytearray(data)
        flipped[at] ^= 1 << dice.randrange(8)
        _overwrite(store, name, flipped)
        assert _damaged(store).file == name
        if version:
            assert _damaged(store, states[version - 1]).file == name
    _overwrite(store, name, data)
    assert Table(store).verify() == states[-1]


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_commit_that_was_cut_is_found(store: FastStore, version: int) -> None:
    """deltalake opens a table whose last commit has no bytes, without a word."""
    _three_versions(store)
    name = commit_name(version)
    data = store.get(name) or b""
    ends_of_lines = [at + 1 for at, byte in enumerate(data) if byte == 10][:-1]
    for size in (0, 1, 50, len(data) // 2, *ends_of_lines, len(data) - 1):
        _overwrite(store, name, data[:size])
        assert _damaged(store).file == name
    _overwrite(store, name, data + b"\n")
    assert _damaged(store).file == name


def test_a_changed_digit_of_a_transaction_is_found(store: FastStore) -> None:
    """It would have a reader begin in another segment: rows twice, or not at all. deltalake believes it."""
    _three_versions(store)
    name = commit_name(1)
    data = store.get(name) or b""
    changed = data.replace(b'"imray/log=0","version":20', b'"imray/log=0","version":21')
    assert changed != data
    _overwrite(store, name, changed)
    assert deltalake.DeltaTable(str(store.root / TABLE)).transaction_version("imray/log=0") == 21
    assert _damaged(store).file == name


def test_commits_that_changed_places_are_found(store: FastStore, tmp_path_factory: pytest.TempPathFactory) -> None:
    _three_versions(store)
    one, two = (store.get(commit_name(v)) or b"" for v in (1, 2))
    _overwrite(store, commit_name(1), two)
    assert _damaged(store).file == commit_name(1), "one copied over another"
    _overwrite(store, commit_name(2), one)
    assert _damaged(store).file == commit_name(1), "swapped"
    _overwrite(store, commit_name(1), one)
    assert _damaged(store).file == commit_name(2)
    other = FastStore(tmp_path_factory.mktemp("other"))
    other_table = Table(other)
    merge(other_table, merge(other_table, other_table.snapshot(), other, 1), other, 1)
    _overwrite(store, commit_name(1), other.get(commit_name(1)) or b"")
    error = _damaged(store)
    assert error.file == commit_name(1), "another table's"
    assert "predecessor" in error.check


@pytest.mark.parametrize("version", [0, 1])
def test_a_missing_commit_is_found(store: FastStore, version: int) -> None:
    _three_versions(store)
    store.delete(commit_name(version))
    error = _damaged(store)
    assert error.file == commit_name(version)
    assert "missing" in error.check


def test_a_missing_commit_above_a_checkpoint_is_found(store: FastStore, monkeypatch: pytest.MonkeyPatch) -> None:
    states = _long(store, monkeypatch)
    store.delete(commit_name(9))
    assert Table(store).snapshot() == states[-1], "the newest checkpoint has it"
    with pytest.raises(CorruptError) as e:
        Table(store).verify()
    assert e.value.file == commit_name(9)
    store.delete(checkpoint_name(10))
    assert _damaged(store).file == commit_name(9)


def test_a_commit_after_a_lost_one_is_not_made(store: FastStore) -> None:
    """Who knew the version before would take the lost one's name."""
    states = _three_versions(store)
    store.delete(commit_name(1))
    with pytest.raises(CorruptError) as e:
        merge(Table(store), states[0], store, 1)
    assert e.value.file == commit_name(1)


def test_what_others_commit_is_corruption(store: FastStore) -> None:
    state = _three_versions(store)[-1]
    root = str(store.root / TABLE)
    deltalake.write_deltalake(root, deltalake.DeltaTable(root).to_pyarrow_table(), mode="append")
    error = _damaged(store, state)
    assert error.file == commit_name(3)


@pytest.mark.parametrize("which", [8, 10])
def test_a_flip_in_a_checkpoint_changes_nothing(store: FastStore, monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    states = _long(store, monkeypatch)
    name = checkpoint_name(which)
    data = store.get(name) or b""
    dice = random.Random(which)
    for at in range(which, len(data), 9 * _SAMPLE):
        flipped = bytearray(data)
        flipped[at] ^= 1 << dice.randrange(8)
        _overwrite(store, name, flipped)
        table = Table(store)
        assert table.snapshot() == states[-1]
        assert list(table.damaged) == ([name] if which == 10 else []), "the newest is all that is read"
    table = Table(store)
    assert table.verify() == states[-1]
    assert list(table.damaged) == [name]
    for size in (0, 1, len(data) // 2, len(data) - 1):
        _overwrite(store, name, data[:size])
        assert Table(store).snapshot() == states[-1]


def test_without_both_checkpoints_nothing_is_served(store: FastStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _long(store, monkeypatch)
    for version in (8, 10):
        _overwrite(store, checkpoint_name(version), b"")
    error = _damaged(store)
    assert error.file == commit_name(1)
    assert checkpoint_name(10) in error.check
    assert Table(store).clean() == 0


def test_a_checkpoint_in_anothers_place_is_passed_over(store: FastStore, monkeypatch: pytest.MonkeyPatch) -> None:
    states = _long(store, monkeypatch)
    older, newer = (store.get(checkpoint_name(v)) or b"" for v in (8, 10))
    _overwrite(store, checkpoint_name(10), older)
    table = Table(store)
    assert table.snapshot() == states[-1]
    assert "of version 8" in table.damaged[checkpoint_name(10)]
    _overwrite(store, checkpoint_name(8), newer)
    assert "missing" in _damaged(store).check


def test_a_checkpoint_that_says_something_else_is_passed_over(store: FastStore) -> None:
    """Whole, and of another table: the commit after it does not follow what it stands for."""
    states = _three_versions(store)
    other = TableSnapshot(1, "0" * 32, states[0].runs, {0: 99}, {}, states[0].committed_ms, "x", 1)
    assert store.put_if_absent(checkpoint_name(1), encode_checkpoint(other))
    table = Table(store)
    assert table.snapshot() == states[-1]
    assert list(table.damaged) == [checkpoint_name(1)]
    writer = Table(store)
    assert not writer.checkpoint(states[1])
    assert "something else" in writer.damaged[checkpoint_name(1)]
    _overwrite(store, checkpoint_name(1), b"")
    assert not writer.checkpoint(states[1])


def test_only_checkpoints_that_verify_let_commits_go(store: FastStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 2)
    table = Table(store)
    state = merge(table, table.snapshot(), store, 0)
    for _ in range(7):
        state = merge(table, state, store, 0)
        table.checkpoint(state)
    for version in (7, 5, 4):
        _overwrite(store, checkpoint_name(version), b"rot")
    assert table.clean() == 1 + 2, "commit 1; the checkpoints below 3, the second newest that verifies"
    names = store.list(DELTA_LOG)
    assert checkpoint_name(3) in names
    assert commit_name(3) in names
    assert Table(store).snapshot() == state
    _overwrite(store, checkpoint_name(3), b"rot")
    assert table.clean() == 0, "one alone is not enough"


class _Full(FastStore):
    """A disk without room for the table's log."""

    full = False

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        if self.full and name.startswith(DELTA_LOG):
            raise StorageError("the disk is full")
        return super().put_if_absent(name, parts)


def test_a_full_disk_refuses_and_then_goes_on(tmp_path: Path) -> None:
    store = _Full(tmp_path)
    table = Table(store)
    state = merge(table, table.snapshot(), store, 0)
    add = run_file(store, 0, "late", ["a"], [(0, 11, 20)])
    store.full = True
    for act in (
        lambda: table.commit(state, [add], [], {0: (10, 20)}, "merge", NOW_MS),
        lambda: table.checkpoint(state),
    ):
        with pytest.raises(StorageError, match="full"):
            act()
    assert table.snapshot(state) == Table(store).snapshot() == state
    store.full = False
    assert table.commit(state, [add], [], {0: (10, 20)}, "merge", NOW_MS).merged == {0: 20}
