"""`imray audit` and `imray sql` over a data folder that the real writer made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imray.cli import run
from imray.log.manifest import create_or_open
from imray.log.reader import read_segment
from imray.log.store import LocalStore
from imray.shard.recovery import become_writer
from tests.support.batches import SEED, Msg, commit, msg_id, open_committer

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command: its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder that the real writer made: two conversations, two segments."""
    folder = tmp_path / "chat"
    create_or_open(LocalStore(folder), 1)
    committer = open_committer(folder)
    commit(committer, [Msg("tea", msg_id(1)), Msg("tea", msg_id(2), b"second", "bob")])
    commit(committer, [Msg("coffee", msg_id(3), b"\xff\x00")])
    committer.writer.close()
    return folder


def test_sql(cli: Cli, data: Path) -> None:
    query = "SELECT conv_id, count(*) AS n FROM messages GROUP BY ALL ORDER BY ALL"
    assert cli("sql", query, "--data", str(data)) == (0, "conv_id  n\ncoffee   1\ntea      2\n", "")
    assert cli("sql", query, "--data", str(data), "--csv")[1] == "conv_id,n\ncoffee,1\ntea,2\n"
    rows = json.loads(cli("sql", query, "--data", str(data), "--json")[1])
    assert rows == [{"conv_id": "coffee", "n": 1}, {"conv_id": "tea", "n": 2}]


def test_sql_values_that_json_lacks(cli: Cli, data: Path) -> None:
    query = "SELECT 'a\xff'::BLOB b, 'nan'::FLOAT f, 1.5::DECIMAL(9,2) d, DATE '2026-01-02' t, [1, NULL] l, {'k': 2} s"
    code, out, err = cli("sql", query.replace("\xff", "\\xFF"), "--data", str(data), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [{"b": "61ff", "f": None, "d": "1.50", "t": "2026-01-02", "l": [1, None], "s": {"k": 2}}]


def test_sql_errors(cli: Cli, data: Path) -> None:
    code, out, err = cli("sql", "SELECT nonsense FROM messages", "--data", str(data))
    assert (code, out) == (2, "")
    assert "nonsense" in err
    assert err.count("\n") == 1
    assert "leave one out" in cli("sql", "SELECT 1", "--data", str(data), "--json", "--csv")[2]


def test_audit(cli: Cli, data: Path) -> None:
    assert cli("audit", "--data", str(data))[0] == 0
    store = LocalStore(data)
    _, writer = become_writer(store, 0, SEED, lambda: 2000)
    writer.append(read_segment(store, 0, 2).table(), 2000)  # the same numbers and ids once more
    writer.close()
    code, out, _ = cli("audit", "--data", str(data))
    assert code == 1
    assert "tea" in out
    code, out, _ = cli("audit", "--data", str(data), "--json")
    assert code == 1
    assert "tea" in json.dumps(json.loads(out))
