"""`imray chat` and `imray members`, where a part of what was asked is done and another is refused."""

from __future__ import annotations

from typing import Any

import pytest

from imray.cli import chat, members
from imray.cli.chat import ChatSession
from imray.cli.chat_screen import PlainScreen
from imray.client import (
    AuthError,
    ImrayError,
    InvalidError,
    Member,
    MembersNow,
    ServerError,
    UnavailableError,
)


class Refusing:
    """A client whose removals and sends are refused."""

    def __init__(self, error: ImrayError) -> None:
        self.error = error
        self.later: list[ImrayError] = []
        self.added: list[Member] = []

    def add_members(self, conv_id: str, added: list[Member]) -> MembersNow:
        self.added += added
        return MembersNow(conv_id, 7, 2)

    def remove_members(self, conv_id: str, removed: list[str]) -> MembersNow:
        raise self.error

    async def send(self, *_: str, **__: Any) -> None:
        error = self.error
        self.error = self.later.pop(0) if self.later else error
        raise error


@pytest.mark.parametrize(
    "error",
    [
        InvalidError("the last owner"),
        AuthError("no", is_about_request=True),
        UnavailableError("away"),
        ServerError("?"),
    ],
)
def test_where_the_removal_fails_it_says_that_the_additions_hold(error: ImrayError) -> None:
    client: Any = Refusing(error)
    with pytest.raises(type(error), match="bob, carl") as e:
        members._change(client, "tea", [Member("bob", "owner"), Member("carl")], ["ada"], as_json=False)
    assert str(e.value) == f"{error}; the additions hold: bob, carl"
    with pytest.raises(type(error)) as e:
        members._change(client, "tea", [], ["ada"], as_json=False)
    assert str(e.value) == str(error)


def test_many_additions_are_counted() -> None:
    client: Any = Refusing(InvalidError("no"))
    added = [Member(f"user-{n}") for n in range(500)]
    with pytest.raises(InvalidError) as e:
        members._change(client, "tea", added, ["ada"], as_json=False)
    assert str(e.value) == "no; the additions hold: user-0, user-1, user-2, user-3, user-4 and 495 more"


async def test_a_refused_line_is_not_shown_whole() -> None:
    shown: list[str] = []
    live: Any = Refusing(InvalidError("status 413: too much"))
    session = ChatSession(live, "tea", PlainScreen(shown.append), 1.0)
    await session._send_line("x\x07" * 35_000)
    assert shown == [f"! not sent: {('x' + chr(92) + 'x07') * 15 + 'x' + chr(92) + 'x0'}… (status 413: too much)\n"]
    await session._send_line("short")
    assert shown[1] == "! not sent: short (status 413: too much)\n"


async def test_a_line_that_waits_or_is_not_taken_is_not_shown_whole() -> None:
    shown: list[str] = []
    live: Any = Refusing(UnavailableError("away"))
    session = ChatSession(live, "tea", PlainScreen(shown.append), 1.0)
    for _ in range(chat._LINES_MAX + 1):
        session.put_now("y" * 10_000)
    assert shown == [f"! not taken, 100 lines wait to be sent: {'y' * 79}…\n"]
    live.later = [InvalidError("over")]
    await session._send_line("z" * 10_000)
    assert f"{'z' * 79}…\n" in shown[1]
    assert all(len(line) < 200 for line in shown)
