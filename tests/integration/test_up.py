"""`imray up`, `down`, `replay` and `audit` as a user runs them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import System, start, stop

_TIMEOUT_S = 170


def imray(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("IMRAY_")} | environment
    command = [sys.executable, "-m", "imray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env, check=False)


def processes_of(data: Path) -> list[str]:
    """Command lines of living processes that name the folder or were started over it."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = environ.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        if str(data) in line and "pytest" not in line:
            found.append(line)
    return found


@pytest.mark.timeout(300)
def test_detached_it_outlives_its_command_and_ends_by_down(tmp_path: Path) -> None:
    data = tmp_path / "chat"
    up = imray("up", "--data", str(data), "--port", "0", "--shards", "1", "--detach", "--json")
    try:
        assert up.returncode == 0, up.stderr
        info: dict[str, Any] = json.loads(up.stdout)
        assert info["url"].startswith("http://127.0.0.1:")
        run = data / "run"
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in run.iterdir()} == {0o600}
        log = (run / "up.log").read_text()
        assert info["url"] in log
        assert info["token"] not in log
        sent = imray("send", "tea", "hello", "--data", str(data), "--json")
        assert sent.returncode == 0, sent.stderr
        assert "hello" in imray("tail", "tea", "--data", str(data)).stdout
        again = imray("up", "--data", str(data), "--port", "0", "--detach")
        assert again.returncode == 2
        assert "runs already" in again.stderr
        other = imray("up", "--data", str(data), "--port", "0", "--shards", "3")
        assert other.returncode == 2
        port = info["url"].rsplit(":", 1)[1]
        taken = imray("up", "--data", str(tmp_path / "other"), "--port", port)
        assert taken.returncode == 2
        assert "--port" in taken.stderr
        assert len(taken.stderr.strip().splitlines()) == 1
    finally:
        down = imray("down", "--data", str(data))
    assert down.returncode == 0, down.stderr
    assert processes_of(data) == []
    assert imray("down", "--data", str(data)).returncode == 2
    audit = imray("audit", "--data", str(data), "--json")
    assert audit.returncode == 0
    assert json.loads(audit.stdout)["ok"]
    count = imray("sql", "SELECT count(*) AS n FROM messages", "--data", str(data), "--json")
    assert json.loads(count.stdout)[0]["n"] == 1


def test_outside_loopback_it_wants_a_key(tmp_path: Path) -> None:
    up = imray("up", "--data", str(tmp_path / "d"), "--host", "0.0.0.0", "--port", "0")
    assert up.returncode == 2
    assert "IMRAY_JWT_KEY_FILE" in up.stderr


@pytest.mark.timeout(300)
def test_a_log_survives_a_restart_and_a_replay_is_proved(tmp_path: Path, test_data: Path) -> None:
    file = str(test_data / "irc-ubuntu" / "train.parquet")
    known = ("--limit", "20000", "--json")
    events = tmp_path / "events.jsonl"
    system = start(tmp_path / "chat")
    try:
        first = replay(system, file, *known, "--events", str(events))
        assert (first["new"], first["duplicates"]) == (20_000, 0)
    finally:
        stop(system)
    system = start(tmp_path / "chat")
    try:
        second = replay(system, file, *known)
        assert (second["new"], second["duplicates"]) == (0, 20_000)
        by_sender = replay(system, file, *known, "--by-sender", "--prefix", "lanes ")
        assert by_sender["new"] == 20_000
    finally:
        stop(system)
    checked = subprocess.run([sys.executable, "-m", "tests.checker", str(events)], timeout=60, check=False)
    assert checked.returncode == 0
    assert imray("audit", "--data", str(system.data)).returncode == 0


def replay(system: System, *arguments: str) -> dict[str, Any]:
    ran = imray("replay", *arguments, IMRAY_URL=system.url, IMRAY_TOKEN=system.token)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return json.loads(ran.stdout)
