"""A noted process is believed, and ended, only if it is the `imray up` that wrote the note."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from imray.cli import own_process

_WAIT = "import sys; print(flush=True); sys.stdin.read()"


def _started(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _WAIT, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _note(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"pid": process.pid, "started": own_process.started(process.pid)}


@pytest.fixture
def running() -> Iterator[subprocess.Popen[bytes]]:
    """A process that says that it is `imray up`."""
    process = _started("imray", "up", "--data", "chat")
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours that has nothing to do with it."""
    process = _started("editor", "letter")
    yield process
    process.kill()
    process.communicate()


def test_what_it_noted_of_itself_is_believed_and_ended(running: subprocess.Popen[bytes]) -> None:
    note = _note(running)
    assert own_process.runs(note)
    assert own_process.end(note, 30)
    assert running.wait(30) == -15
    assert not own_process.runs(note)
    assert own_process.end(note, 0)


def test_a_process_that_is_no_imray_is_left_alone(victim: subprocess.Popen[bytes]) -> None:
    note = _note(victim)
    assert not own_process.runs(note)
    own_process.end(note, 0)
    assert victim.poll() is None


def test_another_start_time_is_another_process(running: subprocess.Popen[bytes]) -> None:
    note = _note(running) | {"started": "1"}
    assert not own_process.runs(note)
    own_process.end(note, 0)
    assert running.poll() is None


def test_a_process_of_another_user_is_not_ours(
    running: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    note = _note(running)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    assert not own_process.runs(note)


@pytest.mark.parametrize("pid", [-1, 0, 1, "17", None, 2**31 - 1])
def test_a_number_that_means_no_process_or_many_is_not_believed(pid: object) -> None:
    assert not own_process.runs({"pid": pid, "started": own_process.started(1)})
    assert not own_process.runs({"pid": pid, "started": None})
    assert not own_process.runs({})
