"""Server-Sent Events against every kind of caller, over real shards and feeds: who hears, and who is told why not.

What a WebSocket answers to the same callers stands in the same table: both ask the same feeds.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson
import pytest

from imray.client import Client, Member, MemberRole
from imray.engine.engine import Engine
from imray.settings import Settings
from tests.support.live_client import joined
from tests.support.live_system import LiveServer, token_of
from tests.support.local_system import local_system

ROLES: tuple[MemberRole, ...] = ("owner", "member", "reader")
TOKENS: dict[str, Callable[[], str | None]] = {
    "none": lambda: None,
    "expired": lambda: token_of("owner", lifetime_s=-3600),
    "wrong signature": lambda: token_of("owner", key=b"f" * 32),
    "foreign": lambda: token_of("foreign"),
    "reader": lambda: token_of("reader"),
    "removed": lambda: token_of("removed"),
    "member": lambda: token_of("member"),
    "owner": lambda: token_of("owner"),
    "service": lambda: token_of("service", service=True),
}
"""Who calls. `foreign` was never a member; of `expired` and `wrong signature` only the token is wrong."""
_UNKNOWN = ("none", "expired", "wrong signature")
_STRANGERS = ("foreign", "removed")
_KIND = {401: "unauthenticated", 403: "forbidden"}


class Room(NamedTuple):
    """A conversation, and what it answers to whom; who is not named hears."""

    conv_id: str
    refused: dict[str, int]


UNKNOWN = dict.fromkeys(_UNKNOWN, 401)
ROOMS = [
    Room("private", UNKNOWN | dict.fromkeys(_STRANGERS, 403)),
    Room("public", UNKNOWN),
    Room("nobody created it", UNKNOWN),
]
CLOSED = Room("nobody created it", UNKNOWN | dict.fromkeys((*ROLES, *_STRANGERS), 403))
"""With `IMRAY_CONVERSATIONS_OPEN=0`: only a service listens to what nobody created."""


@contextlib.contextmanager
def _serving(folder: Path, **settings: Any) -> Iterator[LiveServer]:
    """A gateway over real shards, with a private and a public conversation."""

    @asynccontextmanager
    async def engine_of(_settings: Settings) -> AsyncIterator[Engine]:
        async with local_system(folder / "data", **settings) as system:
            yield system.engine()

    with LiveServer(folder, engine_of) as running:
        with _client(running, "service", True) as client:
            for name in ("private", "public"):
                members = [*(Member(role, role) for role in ROLES), Member("removed")]
                client.create_conversation(name, public=name == "public", members=members)
                client.remove_members(name, ["removed"])
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with _serving(tmp_path_factory.mktemp("callers")) as running:
        yield running


def _client(server: LiveServer, sender: str, service: bool = False) -> Client:
    return Client(server.http, token_of(sender, service))


@contextlib.contextmanager
def _events(server: LiveServer, conv_id: str, token: str | None, after: int = 0) -> Iterator[httpx.Response]:
    url = f"{server.http}/v1/conversations/{conv_id}/events"
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with httpx.stream("GET", url, params={"after": after}, headers=headers, timeout=10) as answer:
        yield answer


def _heard(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """What the events say."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield orjson.loads(line[6:])


def _send(server: LiveServer, conv_id: str, body: str) -> int:
    """By a member; its number."""
    with _client(server, "member") as client:
        return client.send(conv_id, body).conv_seq


def _answer(server: LiveServer, conv_id: str, caller: str) -> int:
    """The status that a caller gets. One who is let in hears what is sent, one who is not hears nothing of it."""
    with _events(server, conv_id, TOKENS[caller](), after=_send(server, conv_id, "before")) as answer:
        if answer.status_code == 200:
            assert answer.headers["content-type"] == "text/event-stream"
            told = _send(server, conv_id, "secret")
            assert [m["conv_seq"] for m in next(_heard(answer))["messages"]] == [told]
        else:
            problem = orjson.loads(answer.read())
            assert answer.headers["content-type"] == "application/problem+json"
            assert problem["type"] == f"urn:imray:problem:{_KIND[answer.status_code]}"
            assert "before" not in answer.text
        return answer.status_code


def _answer_of_socket(server: LiveServer, conv_id: str, caller: str) -> int:
    with joined(server, caller, caller == "service") as client:
        told = client.ask({"t": "subscribe", "ref": 1, "conv_id": conv_id})
        return int(told["status"]) if told["t"] == "error" else 200


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.conv_id)
def test_every_kind_of_caller_hears_what_its_role_allows(server: LiveServer, room: Room) -> None:
    found = {caller: _answer(server, room.conv_id, caller) for caller in TOKENS}
    assert found == dict.fromkeys(TOKENS, 200) | room.refused


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.conv_id)
def test_a_websocket_answers_the_same_callers_alike(server: LiveServer, room: Room) -> None:
    known = [caller for caller in TOKENS if caller not in _UNKNOWN]
    found = {caller: _answer_of_socket(server, room.conv_id, caller) for caller in known}
    assert found == {caller: room.refused.get(caller, 200) for caller in known}


def test_where_conversations_are_not_open_only_a_service_hears_what_nobody_created(tmp_path: Path) -> None:
    with _serving(tmp_path, conversations_open=False) as running:
        found = {}
        for caller in TOKENS:
            with _events(running, CLOSED.conv_id, TOKENS[caller]()) as answer:
                found[caller] = answer.status_code
        assert found == dict.fromkeys(TOKENS, 200) | CLOSED.refused
        assert {caller: _answer(running, "private", caller) for caller in TOKENS} == (
            dict.fromkeys(TOKENS, 200) | ROOMS[0].refused
        )


def test_who_is_refused_is_told_nothing_of_whether_the_conversation_has_messages(server: LiveServer) -> None:
    with _client(server, "service", True) as client:
        client.create_conversation("empty", members=[Member("owner", "owner")])
    said = []
    for name in ("private", "empty"):
        with _events(server, name, token_of("foreign"), after=10**9) as answer:
            said.append((answer.status_code, answer.read().replace(name.encode(), b"")))
    assert said[0] == said[1]


@pytest.mark.parametrize("who", ["reader", "member", "owner"])
def test_a_stream_ends_with_the_membership_in_order(server: LiveServer, who: str) -> None:
    name = f"left by {who}"
    with _client(server, "service", True) as service:
        members = [*(Member(role, role) for role in ROLES), Member("other", "owner")]
        service.create_conversation(name, members=members)
        with _client(server, who) as leaving, _events(server, name, token_of(who)) as answer:
            service.add_members(name, [Member("service")])
            service.send(name, "for all")
            leaving.remove_members(name, [who])
            service.send(name, "for others")
            messages, ended = _heard(answer)
        assert [m["body"] for m in messages["messages"]] == ["for all"]
        assert ended == {"t": "ended", "conv_id": name, "after": 1, "reason": "removed"}
        with _events(server, name, token_of(who)) as answer:
            assert answer.status_code == 403


def test_who_stays_under_another_role_hears_on(server: LiveServer) -> None:
    with _client(server, "service", True) as service:
        service.create_conversation("demoted", members=[Member("owner", "owner"), Member("member")])
        with _events(server, "demoted", token_of("member")) as answer, _client(server, "owner") as owner:
            heard = _heard(answer)
            owner.add_members("demoted", [Member("member", "reader")])
            owner.send("demoted", "still")
            assert [m["body"] for m in next(heard)["messages"]] == ["still"]
