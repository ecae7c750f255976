"""The examples, run as a reader runs them: as programs of their own, against a running system."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from conftest import System

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NOBODY_THERE = "http://127.0.0.1:9"
"""The discard port: nothing listens on it."""


def run(url: str, token: str, *command: str) -> subprocess.CompletedProcess[str]:
    """An example, to its end."""
    environment = {**os.environ, "IMRAY_URL": url, "IMRAY_TOKEN": token}
    arguments = [sys.executable, str(EXAMPLES / command[0]), *command[1:]]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)


def printed(system: System, *command: str) -> list[str]:
    """The lines that an example prints; it must succeed."""
    done = run(system.url, system.token, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def conv() -> str:
    return f"example {uuid.uuid4()}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_what_it_takes(program: str) -> None:
    said = run("", "", program, "--help")
    assert said.returncode == 0
    assert f"python examples/{program} tea" in said.stdout
    assert "IMRAY_URL" in said.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_only_the_client_is_used(program: str) -> None:
    tree = ast.parse((EXAMPLES / program).read_text())
    from_imports = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {name for name in from_imports | plain if name.split(".")[0] in ("imray", "api", "analytics")}
    assert ours == {"imray.client"}


@pytest.mark.parametrize("program", ["send.py", "arrow_batches.py"])
def test_without_a_server_it_says_so(program: str, conv: str) -> None:
    arguments = [conv, "hello"] if program == "send.py" else [conv]
    done = run(NOBODY_THERE, "", program, *arguments, "--seconds", "1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert NOBODY_THERE in done.stderr or "ConnectError" in done.stderr, done.stderr


def test_send_keeps_its_id(system: System, conv: str) -> None:
    message_id = str(uuid.uuid4())
    first = printed(system, "send.py", conv, "hello", "--id", message_id)
    assert first == [f"Message 1 of {conv}, id {message_id}."]
    again = printed(system, "send.py", conv, "hello", "--id", message_id)
    assert again[0] == first[0]
    assert "stored before" in again[1]
    other = run(system.url, system.token, "send.py", conv, "another text", "--id", message_id)
    assert other.returncode == 1
    assert other.stderr.startswith("Not sent: ")
    with system.client() as client:
        assert client.head(conv).conv_seq == 1


def test_follow_shows_the_order_and_goes_on(system: System, conv: str) -> None:
    with system.client() as client:
        for text in ("one", "two", "three"):
            client.send(conv, text)
        sender = client.history(conv).messages[0].sender
    first = printed(system, "follow.py", conv, "--count", "2", "--seconds", "60")
    assert first[:2] == [f"1 {sender}: one", f"2 {sender}: two"]
    assert first[2].endswith("--after 2")
    rest = printed(system, "follow.py", conv, "--after", "2", "--seconds", "5")
    assert rest == [f"3 {sender}: three", "Shown up to 3. To go on from here: --after 3"]


def test_the_bot_answers_once(system: System, conv: str) -> None:
    with system.client() as client:
        for text in ("good morning", "!echo !echo tea", "!count one two three", "!dance"):
            client.send(conv, text)
    first = printed(system, "bot.py", conv, "--count", "3", "--seconds", "60")
    assert [line.partition(" -- ")[2] for line in first[:3]] == [f"is answered by {n}" for n in (5, 6, 7)]
    again = printed(system, "bot.py", conv, "--seconds", "5")
    assert [line.partition(" -- ")[2] for line in again[:3]] == [f"was answered before by {n}" for n in (5, 6, 7)]
    assert again[3] == "3 messages have their answer."
    with system.client() as client:
        texts = [message.body for message in client.history(conv).messages]
    assert texts[4:] == ["> !echo tea", "> 3 words", "> I know !echo TEXT and !count TEXT"]


def test_arrow_batches_store_every_message(system: System, conv: str) -> None:
    lines = printed(system, "arrow_batches.py", conv)
    assert lines[0] == "2,500 messages: numbers 1 to 2500"
    assert lines[3] == "2,500 messages: numbers 7501 to 10000"
    assert lines[4].startswith("10,000 of 10,000 messages are stored")
    with system.client() as client:
        page = client.history(conv, after=9_998)
    assert [message.body for message in page.messages] == ["line 9999", "line 10000"]
