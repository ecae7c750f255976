"""The command line as a user meets it: help with examples, one-line errors, exit codes, what commands print."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imray.cli import run
from imray.cli.common import find_target, printable, table
from imray.core.errors import InvalidError, UnavailableError
from tests.support.fake_imray import FakeImray, Server

COMMANDS = (
    *("up", "down", "token", "status", "send", "tail", "chat", "create", "members", "replay", "hot", "cold"),
    *("audit", "sql", "bench"),
)
NOBODY = ("--url", "http://127.0.0.1:1", "--token", "t", "--timeout", "0.2")
ID = "0190b0f2-6f2e-7c3a-9d27-0242ac120002"

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run a command in an empty folder: its exit code, stdout and stderr."""
    for name in ("IMRAY_URL", "IMRAY_TOKEN", "IMRAY_DATA", "IMRAY_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        return code, *capsys.readouterr()

    return call


class Fake(FakeImray):
    """With figures of its shards."""

    state = "serving"
    notes: tuple[str, ...] = ()

    def handle(self, method: str, raw_path: str, content: Any) -> tuple[int, Any]:
        if raw_path == "/v1/status":
            return 200, {"shards": [{"shard": 0, "state": self.state, "epoch": 3, "bytes": 12345, "pid": 77,
                                      "notes": self.notes}]}  # fmt: skip
        return super().handle(method, raw_path, content)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Fake, str]]:
    app = Fake()
    server = Server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.up.wait(10)
    yield app, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def server(running: tuple[Fake, str], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A fake server that the environment names."""
    app, url = running
    app.__init__()  # type: ignore[misc]
    monkeypatch.setenv("IMRAY_URL", url)
    monkeypatch.setenv("IMRAY_TOKEN", "secret")
    return app


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Put bytes into stdin."""
    with (tmp_path / "stdin").open("w+b") as file:

        def give(content: bytes) -> None:
            file.write(content)
            file.seek(0)
            monkeypatch.setattr(sys, "stdin", file)

        yield give


def chat_file(path: Path) -> str:
    rows = {"log": ["a", "b", "a"], "nick": ["ann", "bob", None], "text": ["one", "two", "three"]}
    pq.write_table(pa.table(rows), path)
    return str(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"imray {command}" in out.split("Example", 1)[1]


def test_help_and_version(cli: Cli) -> None:
    code, out, _ = cli()
    assert code == 0
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert cli("--version")[1].startswith("imray ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense",), "see `imray --help`"),
        (("send",), "see `imray send --help`"),
        (("tail", "c", "--last", "x"), "see `imray tail --help`"),
        (("tail", "c", *NOBODY, "--last", "1", "--after", "1"), "leave one out"),
        (("status",), "start one with `imray up --data DIR`, or pass --url"),
        (("status", "--data", "gone"), "nothing runs over gone: start one"),
        (("send", "c", "t", "--url", "http://x"), "pass --token or set IMRAY_TOKEN"),
        (("send", "c", "t", "--url", "x", "--token", "t"), "must start with http:// or https://"),
        (("send", "c", "t", *NOBODY), "repeat it with --id "),
        (("send", "c", "t", *NOBODY, "--id", "7"), "a client_msg_id is 128 bit"),
        (("send", "", "t", *NOBODY), "conv_id has 0 bytes"),
        (("send", "c", "-", *NOBODY, "--id", ID), "leave it out with -"),
        (("tail", "c", *NOBODY), "Is it up? `imray up` starts one"),
        (("members", "c", *NOBODY), "Is it up? `imray up` starts one"),
        (("create", "c", *NOBODY), "Is it up? `imray up` starts one"),
        (("members", "c", "--add", "", *NOBODY), "user has 0 bytes"),
        (("chat", "c", *NOBODY), "Is it up? `imray up` starts one"),
        (("status", *NOBODY), "Is it up? `imray up` starts one"),
        (("replay", "gone.parquet", *NOBODY), "gone.parquet cannot be read: No such file"),
        (("replay", "notes.txt", *NOBODY), "notes.txt is no Parquet file"),
        (("replay", "other.parquet", *NOBODY), "has no column conversation or log or conv_id; it has x"),
        (("replay", "chat.parquet", *NOBODY), "0 of 3 messages are stored: no answer within 0.2 s"),
        (("audit", "--data", "gone"), "gone is no data folder"),
        (("sql", "SELECT 1"), "imray-data is no data folder"),
    ],
)
def test_errors_are_one_line(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    (tmp_path / "notes.txt").write_text("no columns here")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    chat_file(tmp_path / "chat.parquet")
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_a_process_shows_no_traceback() -> None:
    command = [sys.executable, "-m", "imray.cli", "tail", "c", *NOBODY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("imray: ")
    assert done.stderr.count("\n") == 1


def test_interrupts_are_quiet(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imray.cli.inspect.find_target", interrupt)
    assert cli("status") == (130, "", "")


def test_a_bug_is_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr("imray.cli.inspect.find_target", fail)
    assert cli("status") == (2, "", "imray: ValueError: two lines (IMRAY_DEBUG=1 shows where)\n")


def test_errors_cannot_steer_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise UnavailableError("a \x1b[31mred\u202e file\u2028name\x9b")

    monkeypatch.setattr("imray.cli.inspect.find_target", fail)
    assert cli("status") == (2, "", "imray: a \\x1b[31mred\\u202e file name\\x9b\n")


def test_nothing_heavy_is_imported_for_help() -> None:
    heavy = "{'ray', 'duckdb', 'pyarrow', 'numpy', 'numba', 'httpx', 'rich', 'fastapi'}"
    code = f"import sys; from imray.cli.app import app; sys.exit(str({heavy} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr.strip() == b""


def test_send_and_retry(cli: Cli, server: Fake) -> None:
    code, out, _ = cli("send", "tea", "hello", "--id", ID, "--topic", "t", "--sender", "ann")
    assert (code, out) == (0, f"1  {ID}  stored\n")
    assert server.stored["tea"][0] | {"body": "hello", "topic": "t", "sender": "ann"} == server.stored["tea"][0]
    assert cli("send", "tea", "hello", "--id", ID)[1] == f"1  {ID}  stored before\n"
    code, _, err = cli("send", "tea", "another", "--id", ID)
    assert code == 2
    assert "another payload" in err


def test_send_lines(cli: Cli, server: Fake, stdin: Callable[[bytes], None]) -> None:
    stdin("one\r\n\nthree ☕\nlast".encode())
    code, out, _ = cli("send", "tea", "-", "--json")
    assert code == 0
    assert [json.loads(line)["conv_seq"] for line in out.splitlines()] == [1, 2, 3, 4]
    assert [m["body"] for m in server.stored["tea"]] == ["one", "", "three ☕", "last"]
    assert len({m["client_msg_id"] for m in server.stored["tea"]}) == 4


def test_send_lines_that_are_no_text(cli: Cli, server: Fake, stdin: Callable[[bytes], None]) -> None:
    stdin(b"good\n\xff\n")
    code, _, err = cli("send", "tea")
    assert code == 2
    assert "line 2 of stdin is not UTF-8" in err
    assert [m["body"] for m in server.stored["tea"]] == ["good"]


def test_tail(cli: Cli, server: Fake) -> None:
    for body in ("one", "two", "\x1b[31mred\nline"):
        cli("send", "tea", body, "--sender", "ann")
    code, out, _ = cli("tail", "tea", "--last", "2")
    assert code == 0
    assert out == "2  1970-01-01 00:00:00  ann: two\n3  1970-01-01 00:00:00  ann: \\x1b[31mred\\nline\n"
    assert [json.loads(line)["conv_seq"] for line in cli("tail", "tea", "--after", "0", "--json")[1].splitlines()] == [
        1,
        2,
        3,
    ]
    assert cli("tail", "tea", "--after", "3") == (0, "", "")
    assert cli("tail", "nobody-wrote-here") == (0, "", "")


def test_tail_shows_holes(cli: Cli, server: Fake) -> None:
    stored = [{"sender": "ann", "server_ts": 5, "client_msg_id": ID, "conv_seq": n, "body": "x"} for n in range(1, 92)]
    server.stored["tea"] = [m for m in stored if m["conv_seq"] not in (90, 91)] + [stored[-1] | {"conv_seq": 92}] * 3
    out = cli("tail", "tea", "--after", "88")[1]
    assert out.splitlines()[1] == "90..91  (no messages: lost grant)"


def test_status(cli: Cli, server: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = cli("status")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["shard", "state", "epoch"]
    assert out.splitlines()[1].split() == ["0", "serving", "3", "12345", "77"]
    assert "damaged" not in out
    monkeypatch.setattr(server, "notes", ("a.ids.arrow: it does not verify; made anew from the log\x1b",))
    assert "  shard 0: a.ids.arrow: it does not verify; made anew from the log\\x1b" in cli("status")[1]
    monkeypatch.setattr(server, "state", "recovering")
    code, out, _ = cli("status", "--json")
    assert code == 1
    assert json.loads(out)["shards"][0]["state"] == "recovering"


@pytest.mark.parametrize("mode", [(), ("--by-sender",)])
def test_replay_proves(cli: Cli, server: Fake, tmp_path: Path, mode: tuple[str, ...]) -> None:
    code, out, _ = cli("replay", chat_file(tmp_path / "chat.parquet"), "--json", "--prefix", "p-", *mode)
    figures = json.loads(out)
    assert code == 0
    assert (figures["ok"], figures["sent"], figures["new"], figures["proved"]) == (True, 3, 3, 3)
    assert [m["body"] for m in server.stored["p-a"]] == ["one", "three"]
    assert [m["sender"] for m in server.stored["p-a"]] == ["ann", "-"]


def test_replay_says_what_differs(cli: Cli, server: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = server.history
    monkeypatch.setattr(server, "history", lambda conv, params: right(conv, params) | {"messages": []})
    code, out, _ = cli("replay", chat_file(tmp_path / "chat.parquet"))
    assert code == 1
    assert "a: row 0, acked as 1, cannot be read back" in out


def test_replay_records_what_the_client_saw(cli: Cli, server: Fake, tmp_path: Path) -> None:
    assert cli("replay", chat_file(tmp_path / "chat.parquet"), "--events", "seen.jsonl")[0] == 0
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert [e["ev"] for e in seen] == ["send"] * 3 + ["ack"] * 3 + ["read"] * 2
    acked = {(e["conv"], e["id"], e["seq"]) for e in seen if e["ev"] == "ack"}
    read = {(e["conv"], msg_id, seq) for e in seen if e["ev"] == "read" for seq, msg_id, _ in e["rows"]}
    assert acked == read


def test_replay_needs_the_role(cli: Cli, server: Fake, tmp_path: Path) -> None:
    server.script.append((403, {"detail": "not yours"}))
    code, _, err = cli("replay", chat_file(tmp_path / "chat.parquet"))
    assert code == 2
    assert "imray token --service" in err


def test_targets(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "up.json").write_text(json.dumps({"url": "http://here", "token": "dev"}))
    (tmp_path / "run" / "up.json").chmod(0o600)
    env = {"IMRAY_URL": "http://env", "IMRAY_DATA": str(tmp_path)}
    assert vars(find_target(None, None, tmp_path, env)) == {"url": "http://here", "token": "dev"}
    assert vars(find_target(None, None, None, {"IMRAY_DATA": str(tmp_path)}))["url"] == "http://here"
    assert vars(find_target(None, "mine", None, env)) == {"url": "http://env", "token": "mine"}
    assert vars(find_target("http://flag", None, tmp_path, {}))["token"] == "dev"
    with pytest.raises(InvalidError, match="no token for http://env"):
        find_target(None, None, None, env)  # a folder's token is for its own server


def test_printing() -> None:
    assert printable("a\x07b\u202ec\n☕") == "a\\x07b\\u202ec\\n☕"
    assert table(("n", "what"), [(1, "a"), (20, None)]) == " n  what\n 1  a\n20"
    assert table(("n",), []) == "n"
