"""`imray up` and `imray down` over a folder that somebody prepared: nothing of it is believed, nothing is harmed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imray.cli import own_process, up
from imray.cli.common import find_target
from imray.core.errors import InvalidError

_STRANGER = 54_321


@pytest.fixture(autouse=True)
def _plain_umask() -> Iterator[None]:
    """The folders that the tests make are not their group's to write, whatever the umask of whoever runs them."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def imray(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("IMRAY_")}
    command = [sys.executable, "-m", "imray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def _plant(data: Path, **note: object) -> None:
    (data / "run").mkdir(mode=0o700, parents=True)
    known = {"url": "http://127.0.0.1:1", "token": "planted", "namespace": "n", "address": None}
    (data / "run" / "up.json").write_text(json.dumps(known | note))
    (data / "run" / "up.json").chmod(0o600)


def test_a_linked_log_does_not_overwrite_what_it_leads_to(tmp_path: Path) -> None:
    data = tmp_path / "chat"
    (data / "run").mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("dear")
    (data / "run" / "up.log").symlink_to(victim)
    # it ends at once, since it listens to everybody and has no key: the log says so
    started = imray("up", "--data", str(data), "--detach", "--host", "0.0.0.0", "--port", "0")
    assert "IMRAY_JWT_KEY_FILE" in started.stderr
    assert victim.read_text() == "dear"


def test_a_linked_folder_of_temporary_files_is_refused_and_not_emptied(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "letter").write_text("dear")
    data = tmp_path / "chat"
    data.mkdir()
    (data / "tmp").symlink_to(victim)
    started = imray("up", "--data", str(data), "--host", "0.0.0.0", "--port", "0")
    assert started.returncode == 2
    assert f"{data / 'tmp'} is a link" in started.stderr
    assert (victim / "letter").read_text() == "dear"


def test_a_planted_process_is_not_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        _plant(tmp_path / "chat", pid=victim.pid, started=own_process.started(victim.pid))
        ended = imray("down", "--data", str(tmp_path / "chat"))
        assert "it had ended already" in ended.stdout
        assert victim.poll() is None
        victim.communicate(b"\n")
        assert victim.returncode == 0


@pytest.mark.parametrize("command", ["up", "down", "status", "token"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder; see test_private.py")
def test_a_folder_of_anothers_is_refused_by_every_command(tmp_path: Path, command: str) -> None:
    data = tmp_path / "chat"
    _plant(data, pid=2, started="1")
    for path in (data, data / "run", data / "run" / "up.json"):
        os.chown(path, _STRANGER, _STRANGER)
    (data / "run" / "jwt.key").write_text("k" * 64)
    done = imray(command, "--data", str(data))
    assert done.returncode == 2
    assert f"belongs to user {_STRANGER}" in done.stderr
    assert "chown" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_server_and_a_token_that_others_could_have_planted_are_not_used(tmp_path: Path) -> None:
    _plant(tmp_path)
    assert find_target(None, None, tmp_path, {}).token == "planted"
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(InvalidError, match="may be written to by other users"):
        find_target(None, None, tmp_path, {})


@pytest.mark.parametrize("terminal", [True, False])
def test_a_token_is_shown_on_a_terminal_and_nowhere_else(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    up._print_info({"url": "http://127.0.0.1:1", "token": "s3cret", "data": "chat"})
    shown = capsys.readouterr().out
    assert ("s3cret" in shown) is terminal
    assert "token" in shown
