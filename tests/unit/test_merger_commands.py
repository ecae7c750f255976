"""`imray compact`, `imray vacuum`, and what `imray status` says of merging."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imray.cli import history, inspect, run
from imray.core.routing import log_of
from imray.core.status import LogLag, MergeStatus, ServingState, ShardStatus
from imray.history.lag import lags_of, logs_of
from imray.history.snapshot import TableSnapshot
from imray.history.table import Table
from imray.log import checkpoint
from imray.log.manifest import create_or_open
from imray.log.segment import segment_name
from imray.settings import BOUNDS
from tests.support.merging import (
    UnsyncedStore,
    WrittenLog,
    all_rows,
    files_of,
    once,
    segment_numbers,
    segments_left,
    written,
)

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are waited for, but not for long."""
    monkeypatch.setenv("IMRAY_READ_S_MAX", "0.05")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command: its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, WrittenLog]:
    """A data folder of one shard."""
    folder = tmp_path / "chat"
    store = UnsyncedStore(folder)
    create_or_open(store, 1)
    log = written(store, 2)
    checkpoint.write_twin(store, 0)
    return folder, log


def test_compact_merges_and_deletes_and_says_so(cli: Cli, data: tuple[Path, WrittenLog]) -> None:
    folder, log = data
    cut = log.segment
    log.write(2)
    code, out, err = cli("compact", "--data", str(folder))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"merged {cut} segments into 1 runs of ")
    assert lines[1] == f"deleted {cut - 1} segments and 0 files of the history"
    assert lines[2] == "2 segments are above the newest checkpoint: a running system makes the next one"
    store = UnsyncedStore(folder)
    assert all_rows(store) == once(log)
    assert segments_left(store) == ([cut + 1, cut + 2], [1])
    again = json.loads(cli("compact", "--data", str(folder), "--json")[1])
    assert (again["segments"], again["segments_deleted"], again["segments_unmerged"]) == (0, 0, 2)
    assert again["segments_above_checkpoint"] == 2


def test_vacuum_merges_nothing(cli: Cli, data: tuple[Path, WrittenLog]) -> None:
    folder, log = data
    cut = log.segment
    log.write(2)
    code, out, err = cli("vacuum", "--data", str(folder))
    assert (code, err) == (0, "")
    assert out.splitlines()[2:] == [
        "2 segments are above the newest checkpoint: a running system makes the next one",
        f"{cut} segments of shard 0 are not merged: `imray compact` merges them",
    ]
    store = UnsyncedStore(folder)
    assert Table(store).snapshot().version == -1
    assert len(segment_numbers(store)) == log.segment
    assert cli("compact", "--data", str(folder))[0] == 0
    left_over = folder / "history/shard=0000/feedbeef00000000-0000-00000000000000000000000000000000.parquet"
    left_over.write_bytes(b"of a merge that died")
    said = json.loads(cli("vacuum", "--data", str(folder), "--json")[1])
    assert said["files_deleted"] == 1
    assert not left_over.exists()
    assert files_of(folder, "history/shard=0000") == sorted(Table(store).snapshot().files)


def test_damage_is_named_and_the_exit_code_says_so(cli: Cli, data: tuple[Path, WrittenLog]) -> None:
    folder, log = data
    cut = log.segment
    log.write(1)
    path = folder / segment_name(0, 3)
    path.write_bytes(path.read_bytes()[:-20])
    code, out, err = cli("compact", "--data", str(folder))
    assert code == 2
    assert out.startswith("merged 0 segments")
    above, held = out.splitlines()[2:]
    assert above == "1 segments are above the newest checkpoint: a running system makes the next one"
    assert held.startswith(f"{cut} segments of shard 0 are held back by an error: log 0: corrupt file wal/shard=0000/")
    assert "shard 0: log 0: corrupt file wal/shard=0000/00000000000000000003.parquet" in err


def test_what_another_merger_took_is_no_matter_of_a_checkpoint(cli: Cli, data: tuple[Path, WrittenLog]) -> None:
    """What is left below the cut though nothing holds it back."""
    folder, log = data
    store = UnsyncedStore(folder)
    state = MergeStatus(0, 3, [LogLag(0, log.segment, log.segment)], ["compact: a full disk"])
    rest = history._rest_of(store, state)
    assert (rest.above, rest.below) == (0, [(log.segment, "")])
    (line,) = rest.lines(only_vacuum=False)
    assert line == f"{log.segment} segments of shard 0 are not merged: another merger was at work: run it again"


@pytest.mark.parametrize("end", [0, 1])
def test_compact_with_the_least_and_the_most_that_settings_allow(
    cli: Cli, data: tuple[Path, WrittenLog], monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    folder, log = data
    for name, bounds in BOUNDS.items():
        if name != "read_s_max":
            monkeypatch.setenv(f"IMRAY_{name.upper()}", str(bounds[end]))
    said = json.loads(cli("compact", "--data", str(folder), "--json")[1])
    assert (said["segments_unmerged"], said["segments_kept"], said["held"]) == (0, 0, [])
    assert all_rows(UnsyncedStore(folder)) == once(log)


@pytest.mark.parametrize("command", ["compact", "vacuum"])
def test_a_folder_that_is_none(cli: Cli, tmp_path: Path, command: str) -> None:
    code, out, err = cli(command, "--data", str(tmp_path / "nowhere"))
    assert (code, out) == (2, "")
    assert "is no data folder" in err
    assert not (tmp_path / "nowhere").exists()


def test_the_lag_of_each_log(tmp_path: Path) -> None:
    store = UnsyncedStore(tmp_path)
    for log, numbers in {0: [1, 7, 8, 9], 1: [3], log_of(0, 2): [4, 5]}.items():
        for number in numbers:
            store.put_if_absent(segment_name(log, number), [b"x"])
    store.put_if_absent("wal/shard=0000/notes.txt", [b"x"])
    assert logs_of(store, 0) == [0, log_of(0, 2)]
    snapshot = TableSnapshot(merged={0: 7})
    assert lags_of(store, 0, snapshot) == [LogLag(0, 4, 2), LogLag(log_of(0, 2), 2, 2)]


def test_status_shows_the_lag(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    merge = MergeStatus(0, 12, [LogLag(0, 40, 3), LogLag(log_of(0, 1), 2, 1)], ["log 0: corrupt\x1b file x"])
    shard = ShardStatus(0, ServingState.SERVING, "", 0, [], merge=merge)
    answer: dict[str, Any] = {"shards": [shard.to_json()]}
    monkeypatch.setattr(inspect, "_get_status", lambda _target, _timeout: answer)
    code, out, _ = cli("status", "--url", "http://127.0.0.1:1", "--token", "x")
    assert code == 0
    assert "shard    log  unmerged  not_deleted  table_version" in out
    assert "    0  10001         1            2             12" in out
    assert "  shard 0: log 0: corrupt\\x1b file x" in out
    answer = {"shards": [ShardStatus(0, ServingState.SERVING, "", 0, []).to_json()]}
    assert "unmerged" not in cli("status", "--url", "http://127.0.0.1:1", "--token", "x")[1]
