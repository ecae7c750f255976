"""The live client on a real system: catch-up and push in one stream, over a killed shard and many cut connections."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from conftest import System, start, stop

from imray.client import AsyncClient, AsyncLive, AsyncOutbox, Hole, Message, Unread
from imray.client.follower import AsyncFollower
from tests.support.live_callers import QUICK

WAIT_S = 90
EXAMPLE = Path(__file__).parents[2] / "examples" / "outbox.py"
CLI = (sys.executable, "-m", "imray.cli")
MESSAGES = 3_000


@pytest.fixture
def conv() -> str:
    return f"live {uuid.uuid4()}"


@pytest.fixture
async def live(system: System) -> AsyncIterator[AsyncLive]:
    async with AsyncLive(system.url, system.token, timeout_s=WAIT_S, config=QUICK) as client:
        yield client


def bodies(first: int, last: int) -> Iterator[str]:
    return (f"m{n}" for n in range(first, last + 1))


async def up_to(follower: AsyncFollower[Message | Hole], last: int) -> dict[int, str]:
    """What is shown up to a number: every number once, in order, as a message or in a hole."""
    shown: dict[int, str] = {}
    cursor = follower.last_shown or 0
    async with asyncio.timeout(WAIT_S):
        while cursor < last:
            item = await anext(follower)
            if isinstance(item, Hole):
                assert item.from_seq == cursor + 1 <= item.to_seq
                cursor = item.to_seq
            else:
                assert item.conv_seq == cursor + 1
                cursor = item.conv_seq
                assert isinstance(item.body, str)
                shown[cursor] = item.body
    return shown


async def cut_now_and_then(live: AsyncLive, times: int) -> None:
    """Connections that break without a word, at moments drawn by chance."""
    chance = random.Random(7)
    for _ in range(times):
        await asyncio.sleep(chance.uniform(0.02, 0.2))
        for socket in list(live._driver._sockets.values()):
            assert socket._socket is not None
            socket._socket.transport.abort()


async def test_old_and_new_messages_are_one_stream_on_every_device(live: AsyncLive, system: System, conv: str) -> None:
    async with AsyncClient(system.url, system.token) as other:
        await other.send_batch([{"conv_id": conv, "body": body} for body in bodies(1, 500)])
        devices = [live.follow(conv, 0), other.follow(conv, 490)]
        acks = await asyncio.gather(*(live.send(conv, body) for body in bodies(501, 1_000)))
        assert sorted(ack.conv_seq for ack in acks) == list(range(501, 1_001))
        first, second = await asyncio.gather(*(up_to(device, 1_000) for device in devices))
        assert list(first) == list(range(1, 1_001))
        assert sorted(first.values()) == sorted(bodies(1, 1_000))
        assert second == {n: body for n, body in first.items() if n > 490}


async def test_cut_connections_neither_lose_nor_repeat(live: AsyncLive, system: System, conv: str) -> None:
    async with AsyncLive(system.url, system.token, timeout_s=WAIT_S, config=QUICK) as sender:
        showing = asyncio.create_task(up_to(live.follow(conv, 0), MESSAGES))
        cuts = [asyncio.create_task(cut_now_and_then(each, 15)) for each in (live, sender)]
        numbers = []
        for at in range(0, MESSAGES, 100):
            sends = (sender.send(conv, body) for body in bodies(at + 1, at + 100))
            numbers += [ack.conv_seq for ack in await asyncio.gather(*sends)]
        await asyncio.gather(*cuts)
        shown = await showing
        assert sorted(numbers) == list(shown) == list(range(1, MESSAGES + 1))
        assert sorted(shown.values()) == sorted(bodies(1, MESSAGES))


async def test_a_killed_shard_is_waited_for(live: AsyncLive, system: System, conv: str) -> None:
    with system.client() as client:
        shard = client.head(conv).shard
    follower = live.follow(conv, 0)
    for body in bodies(1, 20):
        await live.send(conv, body)
    before = await up_to(follower, 20)
    os.kill(system.shard_pids()[shard], signal.SIGKILL)
    acks = await asyncio.gather(*(live.send(conv, body) for body in bodies(21, 40)))
    after = await up_to(follower, max(ack.conv_seq for ack in acks))
    assert {ack.conv_seq for ack in acks} <= after.keys()
    assert sorted((before | after).values()) == sorted(bodies(1, 40))


async def test_from_now_on_heads_read_marks_and_an_outbox(live: AsyncLive, conv: str, tmp_path: Path) -> None:
    for body in bodies(1, 3):
        await live.send(conv, body)
    follower = live.follow(conv)
    page = await live.pull(conv, limit=2, order="desc")
    async with asyncio.timeout(WAIT_S):
        while live._driver.session.last_shown(conv) is None:  # it begins when the server says so
            page = await live.pull(conv, limit=2, order="desc")
    assert [message.conv_seq for message in page.messages] == [3, 2]
    await live.read(conv, 2)
    async with AsyncOutbox(tmp_path / "outbox", live) as outbox:
        assert (await outbox.send(conv, "m4")).conv_seq == 4
    assert await up_to_one(follower) == 4
    watcher = live.watch(conv, 0)
    async with asyncio.timeout(WAIT_S):
        head = await anext(watcher)
    assert isinstance(head, Unread)
    assert head.conv_seq == 4


def test_the_outbox_example_sends_what_an_earlier_run_has_left(system: System, conv: str, tmp_path: Path) -> None:
    def run(url: str, lines: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLE), conv, "--file", str(tmp_path / "outbox"), "--seconds", "2"]
        environment = os.environ | {"IMRAY_URL": url, "IMRAY_TOKEN": system.token}
        return subprocess.run(command, input=lines, env=environment, capture_output=True, text=True, timeout=WAIT_S)

    away = run("http://127.0.0.1:9", "one\n")
    assert away.returncode == 1
    assert "is sent by the next run" in away.stderr
    assert run(system.url, "two\n").stdout.splitlines() == ["left by an earlier run: 1 one", "2 two"]
    assert run(system.url, "").stdout == ""


@pytest.mark.slow
def test_two_chats_go_on_over_a_restart_of_the_server(tmp_path: Path, free_port: int) -> None:
    """What the README says: what was typed meanwhile is sent once the server is there again."""
    data = tmp_path / "data"
    running = start(data, "--port", str(free_port))
    chats = {}
    for name in ("ada", "bob"):
        token = subprocess.run([*CLI, "token", "--sub", name, "--data", str(data)], capture_output=True, text=True)
        command = [*CLI, "chat", "tea", "--url", running.url, "--token", token.stdout.strip(), "--timeout", "5"]
        chats[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        for name, other in (("ada", "bob"), ("bob", "ada")):
            type_line(chats[name], f"from {name}")
            for chat in (chats[name], chats[other]):
                until_line(chat, f"{name}: from {name}")
        stop(running)
        type_line(chats["ada"], "typed while it was away")
        until_line(chats["ada"], "! no answer yet")
        running = start(data, "--port", str(free_port))
        for chat in chats.values():
            assert until_line(chat, "ada: typed while it was away").startswith("3  ")
        for chat in chats.values():
            type_line(chat, "/quit")
            assert chat.wait(WAIT_S) == 0
    finally:
        for chat in chats.values():
            chat.kill()
            chat.communicate()
        stop(running)


def type_line(chat: subprocess.Popen[str], line: str) -> None:
    assert chat.stdin is not None
    chat.stdin.write(f"{line}\n")
    chat.stdin.flush()


def until_line(chat: subprocess.Popen[str], part: str) -> str:
    """The test's own time-out bounds it."""
    assert chat.stdout is not None
    while part not in (line := chat.stdout.readline()):
        assert line, f"it ended before it showed {part!r}"
    return line


async def up_to_one(follower: AsyncFollower[Message | Hole]) -> int:
    async with asyncio.timeout(WAIT_S):
        item = await anext(follower)
    assert isinstance(item, Message)
    return item.conv_seq
