"""Both clients' calls about members over a real gateway, real shards and the real API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imray.cli import run
from imray.client import AsyncClient, AuthError, Client, ConflictError, InvalidError, Member
from imray.engine.engine import Engine
from imray.settings import Settings
from tests.support.live_system import LiveServer, token_of
from tests.support.local_system import local_system


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    @asynccontextmanager
    async def engine_of(_settings: Settings) -> AsyncIterator[Engine]:
        async with local_system(tmp_path / "data") as system:
            yield system.engine()

    with LiveServer(tmp_path, engine_of) as running:
        yield running


class Caller:
    """One user by either client: `await caller.do("role", ...)`."""

    def __init__(self, kind: str, server: LiveServer, sender: str, service: bool = False) -> None:
        self._kind = kind
        self._place = (server.http, token_of(sender, service))

    async def do(self, name: str, *args: Any, **named: Any) -> Any:
        if self._kind == "async":
            async with AsyncClient(*self._place) as client:
                return await getattr(client, name)(*args, **named)

        def call() -> Any:
            with Client(*self._place) as client:
                return getattr(client, name)(*args, **named)

        return await asyncio.to_thread(call)

    async def every_member(self, conv_id: str, limit: int) -> list[Member]:
        if self._kind == "async":
            async with AsyncClient(*self._place) as client:
                return [member async for member in client.iter_members(conv_id, limit=limit)]

        def call() -> list[Member]:
            with Client(*self._place) as client:
                return list(client.iter_members(conv_id, limit=limit))

        return await asyncio.to_thread(call)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_conversation_is_created_changed_read_and_left(server: LiveServer, kind: str) -> None:
    ada, bob, eve = (Caller(kind, server, name) for name in ("ada", "bob", "eve"))
    odd = "ü/?#&+%2F .."
    members = [Member("bob", "reader"), {"user": odd}, Member("..")]
    made = [await ada.do("create_conversation", "club", members=members) for _ in range(2)]
    assert [(m.created, m.after, m.members) for m in made] == [(True, 0, 4), (False, 0, 4)]
    with pytest.raises(ConflictError, match="other members"):
        await ada.do("create_conversation", "club", public=True, members=members)
    assert [await ada.do("role", "club", user) for user in ("ada", "bob", odd, "..")] == [
        *("owner", "reader"),
        *("member", "member"),
    ]
    with pytest.raises(InvalidError, match="404"):
        await ada.do("role", "club", "eve")
    for call in (("role", "club", "ada"), ("members", "club"), ("mark_read", "club", 0), ("read_cursor", "club")):
        with pytest.raises(AuthError):
            await eve.do(*call)
    with pytest.raises(AuthError):
        await bob.do("add_members", "club", [Member("eve")])
    await ada.do("send", "club", "one")
    assert await bob.do("mark_read", "club", 1) == 1
    assert await bob.do("mark_read", "club", 0) == 1, "it never goes back"
    assert [await caller.do("read_cursor", "club") for caller in (bob, ada)] == [1, 0]
    with pytest.raises(InvalidError, match="422"):
        await bob.do("mark_read", "club", 2)
    left = await bob.do("remove_members", "club", ["bob"])
    assert (left.after, left.members) == (1, 3)
    with pytest.raises(AuthError):
        await bob.do("history", "club")
    with pytest.raises(InvalidError, match="owner"):
        await ada.do("remove_members", "club", ["ada"])


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_thousands_are_added_listed_and_removed(server: LiveServer, kind: str) -> None:
    ada = Caller(kind, server, "ada")
    await ada.do("create_conversation", "hall", public=True)
    users = [f"user {n} ä/%" for n in range(2500)]
    assert (await ada.do("add_members", "hall", [Member(user, "reader") for user in users])).members == 2501
    found = await ada.every_member("hall", 1000)
    assert sorted(m.user for m in found) == sorted([*users, "ada"])
    assert [m.user for m in await ada.every_member("hall", 700)] == [m.user for m in found]
    page = await Caller(kind, server, "eve").do("members", "hall")
    assert (page.public, page.total, len(page.members)) == (True, 2501, 100)
    assert (await ada.do("remove_members", "hall", users)).members == 1
    assert await ada.every_member("hall", 1000) == [Member("ada", "owner")]


def test_the_command_line_does_the_same(
    server: LiveServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMRAY_URL", server.http)
    monkeypatch.setenv("IMRAY_TOKEN", token_of("root", service=True))
    said = []
    for command in (
        ("create", "tea", "--member", "ada:owner", "--member", "bob"),
        ("create", "tea", "--member", "ada:owner", "--member", "bob"),
        ("members", "tea", "--add", "carl:owner", "--remove", "ada"),
        ("members", "tea"),
    ):
        assert run(command) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out)
    assert said[:3] == [
        "tea is created, 2 members\n",
        "tea was so already, 2 members\n",
        "tea has 2 members; so it is after number 0\n",
    ]
    rows = [line.split() for line in said[3].splitlines()]
    assert rows[0] == ["user", "role"]
    assert sorted(rows[1:3]) == [["bob", "member"], ["carl", "owner"]]
    assert run(("create", "hall")) == 2
    assert "owner" in capsys.readouterr().err, "a service names one"
