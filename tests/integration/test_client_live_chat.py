"""`imray chat` and `imray tail --follow` as a user runs them: in a pipe, in a terminal, two side by side."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imray.cli.chat_screen import LINE_CHARS_MAX, LineEditor, PlainScreen, TerminalScreen
from tests.support.live_callers import WAIT_S, append, live_of
from tests.support.live_server import LiveServer, live_server

COMMAND = (sys.executable, "-m", "imray.cli", "chat", "tea")


@pytest.fixture
async def server() -> AsyncIterator[LiveServer]:
    async with live_server() as running:
        yield running


def environment(server: LiveServer, token: str) -> dict[str, str]:
    return os.environ | {"IMRAY_URL": server.url, "IMRAY_TOKEN": token, "COLUMNS": "80"}


async def begin(server: LiveServer, folder: Path, token: str = "me", *options: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND, *options, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment(server, token), cwd=folder
    )


async def until_line(chat: Process, part: str) -> str:
    assert chat.stdout is not None
    async with asyncio.timeout(WAIT_S):
        while part not in (line := (await chat.stdout.readline()).decode()):
            assert line, f"it ended before it showed {part!r}"
    return line


async def test_in_a_pipe_it_shows_what_was_sends_each_line_and_ends(server: LiveServer, tmp_path: Path) -> None:
    append(server, 30)
    chat = await begin(server, tmp_path)
    out, err = await asyncio.wait_for(chat.communicate("hällo\n\nsecond \x1b[31m\n".encode()), WAIT_S)
    assert (chat.returncode, err) == (0, b"")
    lines = out.decode().splitlines()
    assert [line.split("  ")[0] for line in lines] == [str(n) for n in range(11, 33)]
    assert lines[-2].endswith("me: hällo")
    assert lines[-1].endswith(r"me: second \x1b[31m")


async def test_two_side_by_side_see_the_same_and_who_types(server: LiveServer, tmp_path: Path) -> None:
    ada = await begin(server, tmp_path, "ada")
    bob = await begin(server, tmp_path, "bob")
    await server.until(lambda: len(server.said("subscribe")) == 2)
    for chat, text in ((ada, "from ada"), (bob, "from bob")):
        assert chat.stdin is not None
        chat.stdin.write(f"{text}\n".encode())
        for other in (ada, bob):
            assert f"{text.split()[1]}: {text}" in await until_line(other, text)
    async with live_of(server, token="eve") as eve:
        await eve.pull("tea")
        assert eve.signal("tea", "typing")
        assert eve.signal("tea", "typing")
        await until_line(ada, "(eve is typing)")
        await eve.send("tea", "done")
        assert "eve: done" in await until_line(ada, "")
    for chat in (ada, bob):
        assert chat.stdin is not None
        chat.stdin.write(b"/quit\nnot sent\n")
        _, err = await asyncio.wait_for(chat.communicate(), WAIT_S)
        assert (chat.returncode, err) == (0, b"")
    assert len(server.log["tea"]) == 3


async def test_a_line_whose_answer_is_lost_is_stored_once(server: LiveServer, tmp_path: Path) -> None:
    server.cut_before_ack = 3
    chat = await begin(server, tmp_path)
    out, _ = await asyncio.wait_for(chat.communicate(b"once\n"), WAIT_S)
    assert [line.split(": ")[1] for line in out.decode().splitlines()] == ["once"]
    assert len(server.log["tea"]) == 1


async def test_what_is_refused_is_said_and_the_chat_goes_on(server: LiveServer, tmp_path: Path) -> None:
    server.refuse = [{"status": 422, "kind": "invalid", "detail": "no such words"}]
    chat = await begin(server, tmp_path)
    out, _ = await asyncio.wait_for(chat.communicate(b"first\nsecond\n"), WAIT_S)
    assert "! not sent: first (status 422: no such words)" in out.decode()
    assert out.decode().splitlines()[-1].endswith("me: second")


async def test_who_may_not_listen_gets_one_line(server: LiveServer, tmp_path: Path) -> None:
    server.forbidden.add("tea")
    chat = await begin(server, tmp_path)
    _, err = await asyncio.wait_for(chat.communicate(), WAIT_S)
    assert chat.returncode == 2
    assert err.decode().count("\n") == 1
    assert "not yours" in err.decode()


async def test_without_a_server_it_says_what_to_do(tmp_path: Path) -> None:
    away = LiveServer()
    away.url = "http://127.0.0.1:9"
    chat = await begin(away, tmp_path, "me", "--timeout", "0.5")
    _, err = await asyncio.wait_for(chat.communicate(), WAIT_S)
    assert chat.returncode == 2
    assert "Is it up? `imray up` starts one" in err.decode()


async def test_in_a_terminal_keys_are_told_and_what_comes_stands_above(server: LiveServer, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    chat = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=theirs, stdout=theirs, stderr=PIPE, env=environment(server, "ada"), cwd=tmp_path
    )
    os.close(theirs)
    shown = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(shown), os.fdopen(ours, "rb", 0)
    )
    try:
        await server.until(lambda: bool(server.said("subscribe")))
        os.write(ours, b"hey")
        await server.until(lambda: bool(server.said("signal")))
        async with asyncio.timeout(WAIT_S):
            await shown.readuntil(b"> hey")
        server.append("tea", "hi", "bob")
        async with asyncio.timeout(WAIT_S):
            assert b"bob: hi\r\n> hey" in await shown.readuntil(b"> hey")
        os.write(ours, b"!\r")
        await server.until(lambda: bool(server.said("send")))
        assert server.said("send")[0]["body"] == "hey!"
        os.write(ours, b"\x04")
        assert await asyncio.wait_for(chat.wait(), WAIT_S) == 0
    finally:
        transport.close()
        if chat.returncode is None:
            chat.kill()
        await chat.communicate()


async def test_tail_follows_by_push_over_a_cut(server: LiveServer, tmp_path: Path) -> None:
    append(server, 5)
    command = (sys.executable, "-m", "imray.cli", "tail", "tea", "--last", "2", "--follow")
    tail = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, env=environment(server, "me"), cwd=tmp_path
    )
    assert (await until_line(tail, "m4")).startswith("4  20")
    await until_line(tail, "m5")
    server.void("tea", 1)
    assert "6  (no messages: lost grant)" in await until_line(tail, "6")
    server.cut()
    append(server, 1)
    assert (await until_line(tail, "m7")).endswith("  ada: m7\n")
    tail.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(tail.communicate(), WAIT_S)
    assert (tail.returncode, err) == (130, b"")


async def test_an_interrupt_ends_a_chat_without_a_word(server: LiveServer, tmp_path: Path) -> None:
    chat = await begin(server, tmp_path)
    await server.until(lambda: bool(server.said("subscribe")))
    chat.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(chat.communicate(), WAIT_S)
    assert (chat.returncode, err) == (130, b"")
    await server.until(lambda: not server.connections)


def test_the_editor_makes_lines_of_keys() -> None:
    editor = LineEditor()
    assert editor.feed("hé".encode()[:2]) == []
    assert editor.feed("hé".encode()[2:] + b"y\x7f") == []
    assert editor.text == "hé"
    assert editor.feed(b" two words\x17\x1b[A\x1b[1;5C\x1bOP\r\n") == ["hé two", ""]
    assert editor.feed(b"gone\x15\x1b") == []
    assert editor.feed(b"[Dx\x04\x01\n") == ["x"]
    assert editor.feed(b"\x04") == [None]
    editor.feed(b"x" * (LINE_CHARS_MAX + 5))
    assert len(editor.text) == LINE_CHARS_MAX


def test_screens_show_who_types_and_nothing_that_steers() -> None:
    out: list[str] = []
    plain = PlainScreen(out.append)
    plain.show_typing(["a\x1b"])
    plain.show_typing(["a\x1b", "b"])
    assert out == ["(a\\x1b is typing)\n", "(b is typing)\n"]
    out.clear()
    terminal = TerminalScreen(out.append, lambda: 30)
    terminal.show_typed("x\x1b" + "y" * 100)
    terminal.show_typing(["bob\x07"])
    terminal.show("line")
    assert all("\x1b" not in text.replace("\r\x1b[K", "") and "\x07" not in text for text in out)
    assert out[-1].startswith("\r\x1b[Kline\n(bob\\x07 typing) > ")
    assert len(out[0].removeprefix("\r\x1b[K")) < 30
