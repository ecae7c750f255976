"""Faults 5 and 6 on runs of the history: bytes flipped, cut off, another file in the place: found, with file and place;
never a wrong row, never a silently missing one."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from imray.core.errors import CorruptError, InvalidError, StorageError
from imray.history import run_file
from imray.history.merging import merge_runs
from imray.history.run_groups import GroupReader
from imray.history.run_reader import RunReader
from imray.history.snapshot import Run, RunFile
from imray.log.store import LocalStore
from imray.settings import Settings
from tests.support.batches import flips
from tests.support.history_rows import HistoryRow, UnsyncedStore, keys_of, put_rows, void_row

_SETTINGS = Settings(run_group_bytes=4096)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return UnsyncedStore(tmp_path)


def _rows(kind: str = "a") -> list[HistoryRow]:
    rows = [HistoryRow(f"{kind}-{c}", n, segment=n, body=b"%d" % n * 9) for c in range(9) for n in range(1, 40)]
    return [*rows, void_row(f"{kind}-4", 40, 90, segment=41)]


def _file(store: LocalStore, kind: str = "a") -> RunFile:
    (file,) = put_rows(store, _rows(kind), _SETTINGS).files
    return file


def _read_all(store: LocalStore, file: RunFile) -> list[object]:
    """Every row by way of `tables`, and every conversation by way of `rows`."""
    reader = RunReader(store, 0)
    found: list[object] = [pa.concat_tables(reader.tables(file)).to_pylist()]
    found += [keys_of(reader.rows(file, f"a-{c}", 1, 99, None, False)) for c in range(9)]
    return found


def _damages(data: bytes, footer: int) -> list[tuple[str, bytes]]:
    size = len(data)
    regions = [(0, 64), (footer - 16, footer + 40), (size - 120, size)]
    out = [
        (f"byte {at}", data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]) for at in flips(size, regions, 61)
    ]
    out += [(f"cut to {n}", data[:n]) for n in flips(size, [(0, 16), (size - 16, size)], 997)]
    return [*out, ("a byte more", data + b"\0"), ("doubled", data + data), ("zeros", bytes(size)), ("empty", b"")]


def _found_by_verify(store: LocalStore, file: RunFile) -> CorruptError | None:
    try:
        RunReader(store, 0).verify(file)
    except CorruptError as e:
        return e
    return None


def test_every_flip_and_every_cut_is_found(store: LocalStore) -> None:
    file = _file(store)
    path = store.root / file.name
    data = path.read_bytes()
    index = GroupReader(store).index(file)
    assert len(index.note.groups) > 3
    whole = _read_all(store, file)
    for what, damaged in _damages(data, index.note.groups[-1].end):
        path.write_bytes(damaged)
        found = _found_by_verify(store, file)
        assert found is not None, what
        assert (found.file, bool(found.where)) == (file.name, True), what
        with pytest.raises(CorruptError, match=file.name):
            list(RunReader(store, 0).tables(file))
    path.write_bytes(data)
    assert _read_all(store, file) == whole


def test_a_page_is_right_or_refused(store: LocalStore) -> None:
    """Damage elsewhere in the file does not take out a conversation; damage to what a page needs is found."""
    file = _file(store)
    path = store.root / file.name
    data = path.read_bytes()
    right = [keys_of(RunReader(store, 0).rows(file, f"a-{c}", 1, 99, None, False)) for c in range(9)]
    refused = 0
    answered = 0
    for at in range(0, len(data), 397):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        reader = RunReader(store, 1 << 20)
        for c in range(9):
            try:
                found = keys_of(reader.rows(file, f"a-{c}", 1, 99, None, c % 2 == 0))
            except CorruptError:
                refused += 1
            else:
                assert found == right[c]
                answered += 1
    assert refused
    assert answered


def test_a_file_in_anothers_place_is_found(store: LocalStore) -> None:
    one = _file(store)
    other = _file(store, "b")
    shutil.copyfile(store.root / other.name, store.root / one.name)
    for read in (RunReader(store, 0).verify, lambda f: RunReader(store, 0).rows(f, "a-1", 1, 9, None, False)):
        with pytest.raises(CorruptError, match=one.name):
            read(one)


def test_a_file_that_is_another_run_is_found_by_its_own_words(store: LocalStore) -> None:
    """Also where whoever put it gave it a name that fits its footer."""
    one = _file(store)
    other = _file(store, "b")
    for wrong in (
        msgspec.structs.replace(other, run=one.run),
        msgspec.structs.replace(other, shard=7),
        msgspec.structs.replace(other, rows=other.rows + 1),
    ):
        with pytest.raises(CorruptError, match="the table"):
            RunReader(store, 0).verify(wrong)


def test_a_missing_file_is_found(store: LocalStore) -> None:
    file = _file(store)
    reader = RunReader(store, 0)
    (store.root / file.name).unlink()
    for read in (reader.verify, lambda f: list(reader.tables(f)), lambda f: reader.rows(f, "a-1", 1, 9, 5, True)):
        with pytest.raises(CorruptError, match="not there"):
            read(file)


def test_a_merge_of_a_damaged_run_is_refused(store: LocalStore) -> None:
    good = _file(store)
    bad = _file(store, "b")
    path = store.root / bad.name
    data = path.read_bytes()
    path.write_bytes(data[:5000] + b"?" + data[5001:])
    with pytest.raises(CorruptError, match=bad.name):
        merge_runs(store, 0, [Run((good,)), Run((bad,))], _SETTINGS)


def test_a_newer_format_is_refused_with_what_to_do(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "FORMAT_VERSION", 2)
    file = _file(store)
    for read in (RunReader(store, 0).verify, lambda f: list(RunReader(store, 0).tables(f))):
        with pytest.raises(InvalidError, match=r"format version 2.*up to 1: upgrade"):
            read(file)


class _FullStore(LocalStore):
    """A disk with room for some files."""

    room = 1

    def put_if_absent(self, name: str, parts: object) -> bool:
        self.room -= 1
        if self.room < 0:
            raise StorageError("put: the disk is full")
        return super().put_if_absent(name, parts)  # type: ignore[arg-type]


def test_a_full_disk_is_an_error_of_storage(tmp_path: Path) -> None:
    store = _FullStore(tmp_path)
    with pytest.raises(StorageError, match="disk is full"):
        put_rows(store, _rows(), Settings(run_group_bytes=1024, run_file_bytes=4096))
    assert len(store.list("history/shard=0000/")) == 1, "an orphan, which no commit names"


def test_a_taken_name_is_never_taken_for_ones_own(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file.secrets, "token_hex", lambda _: "0" * 16)
    _file(store)
    with pytest.raises(StorageError, match="taken"):
        _file(store)
