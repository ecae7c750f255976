"""Members over HTTP, over an engine and shards without Ray: every route against every kind of caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest

from api.app import create_app
from api.auth import make_token
from api.server import GatewayConfig
from tests.support.api_system import KEY, client_of
from tests.support.local_system import LocalSystem, local_system

CALLERS = ("none", "expired", "forged", "foreign", "reader", "removed", "member", "owner", "service")
"""Who calls. `foreign` was never a member."""
_UNKNOWN = {"none": 401, "expired": 401, "forged": 401}


def _headers(caller: str) -> dict[str, str]:
    if caller == "none":
        return {}
    if caller == "expired":
        token = make_token(KEY, "owner", False, 60, now_s=time.time() - 3600)
    elif caller == "forged":
        token = make_token(b"f" * 32, "owner", False, 600)
    else:
        token = make_token(KEY, caller, caller == "service", 600)
    return {"Authorization": f"Bearer {token}"}


class Chat:
    """A gateway, and calls of it."""

    def __init__(self, system: LocalSystem, client: httpx.AsyncClient) -> None:
        self.system = system
        self._client = client
        self._rooms = 0

    async def call(self, caller: str, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self._client.request(method, f"/v1{path}", json=body, headers=_headers(caller))

    async def room(self, public: bool = False) -> str:
        """A new conversation with one of each kind, and two messages of its owner."""
        self._rooms += 1
        name = f"room{self._rooms}"
        roles = [{"user": role, "role": role} for role in ("owner", "member", "reader")]
        members = [*roles, {"user": "removed", "role": "member"}]
        made = await self.call("service", "PUT", f"/conversations/{name}", {"public": public, "members": members})
        assert made.status_code == 201, made.text
        gone = await self.call("owner", "POST", f"/conversations/{name}/members:remove", {"users": ["removed"]})
        assert gone.json() == {"conv_id": name, "after": 0, "members": 3}
        for _ in range(2):
            assert (await self.send("owner", name)).status_code == 201
        return name

    async def send(self, caller: str, name: str, **more: Any) -> httpx.Response:
        message = {"client_msg_id": str(uuid4()), "body": "hello", **more}
        return await self.call(caller, "POST", f"/conversations/{name}/messages", message)


@asynccontextmanager
async def _chat(root: Path, **settings: Any) -> AsyncIterator[Chat]:
    async with local_system(root / "data", **settings) as system:
        (root / "key").write_bytes(KEY)
        app = create_app(system.engine(), GatewayConfig("127.0.0.1", 0, {"key_file": str(root / "key")}))
        async with client_of(app) as client:
            yield Chat(system, client)


@pytest.fixture
async def chat(tmp_path: Path) -> AsyncIterator[Chat]:
    async with _chat(tmp_path) as made:
        yield made


class Route(NamedTuple):
    """A route, and what it answers to whom."""

    name: str
    method: str
    path: str
    body: Any
    expected: dict[str, int]
    """In a conversation that is not public. Who is not named gets 401 or 403."""
    public: dict[str, int]
    """What differs in a public one."""


_MESSAGE = {"client_msg_id": "00000000-0000-0000-0000-000000000007", "body": "x"}
_READ = {"reader": 200, "member": 200, "owner": 200, "service": 200}
_PUBLIC = {"foreign": 200, "removed": 200}
_NEW = {"members": [{"user": "new", "role": "reader"}]}
ROUTES = [
    # a service is no member by itself: it sends under its own name, or that of a member, once it is one
    Route("send", "POST", "/conversations/{}/messages", _MESSAGE, {"member": 201, "owner": 201}, {}),
    Route("history", "GET", "/conversations/{}/messages", None, _READ, _PUBLIC),
    Route("head", "GET", "/conversations/{}", None, _READ, _PUBLIC),
    Route("add", "POST", "/conversations/{}/members:add", _NEW, {"owner": 200, "service": 200}, {}),
    Route(
        "remove another", "POST", "/conversations/{}/members:remove", {"users": ["member", "reader"]},
        {"owner": 200, "service": 200}, {},
    ),
    Route("members", "GET", "/conversations/{}/members", None, _READ, _PUBLIC),
    Route("a member", "GET", "/conversations/{}/members/owner", None, _READ, _PUBLIC),
    Route("mark read", "PUT", "/conversations/{}/cursor", {"seq": 2}, _READ, _PUBLIC),
    Route("cursor", "GET", "/conversations/{}/cursor", None, _READ, _PUBLIC),
    Route(
        "create again", "PUT", "/conversations/{}", {"public": True},
        dict.fromkeys(CALLERS[3:-1], 409) | {"service": 422}, {},
    ),
    Route("topics", "PUT", "/conversations/{}/topics", {"topics": 0}, {"service": 200}, {}),
]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_every_kind_of_caller_gets_what_its_role_allows(chat: Chat, route: Route) -> None:
    for public in (False, True):
        expected = dict.fromkeys(CALLERS, 403) | _UNKNOWN | route.expected | (route.public if public else {})
        found = {}
        for caller in CALLERS:
            name = await chat.room(public)
            answer = await chat.call(caller, route.method, route.path.format(name), route.body)
            found[caller] = answer.status_code
            if answer.status_code == 403:
                assert answer.json()["type"] == "urn:imray:problem:forbidden"
                assert answer.headers["content-type"] == "application/problem+json"
        assert found == expected, f"public={public}"


async def test_a_batch_says_403_for_each_message_that_may_not_be_sent(chat: Chat) -> None:
    name = await chat.room()
    await chat.call(
        "service", "POST", f"/conversations/{name}/members:add", {"members": [{"user": "service", "role": "member"}]}
    )
    rows = [("member", name), ("foreign", name), ("foreign", "open"), ("reader", name), ("service", name)]
    messages = [
        {"conv_id": conv, "client_msg_id": str(uuid4()), "body": "x", "sender": sender} for sender, conv in rows
    ]
    answer = await chat.call("service", "POST", "/messages:batch", {"messages": messages})
    results = answer.json()["results"]
    assert [r["status"] for r in results] == [201, 403, 201, 403, 201]
    assert [r.get("conv_seq") for r in results] == [3, None, 1, None, 4]
    assert all("member" in r["detail"] for r in results if r["status"] == 403)
    for r in messages:
        del r["sender"]
    alone = await chat.call(
        "foreign", "POST", "/messages:batch", {"messages": [m for m in messages if m["conv_id"] == name]}
    )
    assert (alone.status_code, alone.json()["type"]) == (403, "urn:imray:problem:forbidden")


async def test_who_is_no_member_learns_nothing_by_leaving(chat: Chat) -> None:
    name = await chat.room()
    for room in (name, "a room that nobody created"):
        left = await chat.call("foreign", "POST", f"/conversations/{room}/members:remove", {"users": ["foreign"]})
        assert (left.status_code, left.json()) == (200, {"conv_id": room, "after": 0, "members": 0})


@pytest.mark.parametrize("user", ["bob\u202e", "\u200e", "a\u2066b"])
async def test_a_name_that_looks_like_another_is_no_member(chat: Chat, user: str) -> None:
    name = await chat.room()
    asked = {"members": [{"user": user, "role": "member"}]}
    answer = await chat.call("owner", "POST", f"/conversations/{name}/members:add", asked)
    assert answer.status_code == 422
    assert "mark of direction" in answer.json()["detail"]


async def test_a_retry_stays_a_duplicate_after_the_removal(chat: Chat) -> None:
    name = await chat.room()
    kept = {"client_msg_id": str(uuid4()), "body": "kept"}
    first = await chat.call("member", "POST", f"/conversations/{name}/messages", kept)
    assert (first.status_code, first.json()["conv_seq"]) == (201, 3)
    gone = await chat.call("member", "POST", f"/conversations/{name}/members:remove", {"users": ["member"]})
    assert gone.json() == {"conv_id": name, "after": 3, "members": 2}, "oneself needs no right"
    again = await chat.call("member", "POST", f"/conversations/{name}/messages", kept)
    assert (again.status_code, again.json()["conv_seq"], again.json()["duplicate"]) == (200, 3, True)
    assert (await chat.send("member", name)).status_code == 403
    assert (await chat.call("member", "GET", f"/conversations/{name}/messages")).status_code == 403


async def test_created_again_it_is_there_and_different_it_is_a_conflict(chat: Chat) -> None:
    body = {"members": [{"user": "mia", "role": "member"}]}
    made = [await chat.call("ada", "PUT", "/conversations/tea", body) for _ in range(2)]
    assert [m.status_code for m in made] == [201, 200]
    assert [m.json() for m in made] == [{"conv_id": "tea", "after": 0, "members": 2}] * 2
    other = await chat.call("ada", "PUT", "/conversations/tea", {**body, "public": True})
    assert (other.status_code, other.json()["type"]) == (409, "urn:imray:problem:exists")
    await chat.send("ada", "talk")
    mine = await chat.call("eve", "PUT", "/conversations/talk", {})
    assert mine.status_code == 403, "others wrote there"


async def test_the_last_owner_stays(chat: Chat) -> None:
    name = await chat.room()
    for path, body in (
        ("members:remove", {"users": ["owner"]}),
        ("members:add", {"members": [{"user": "owner", "role": "reader"}]}),
    ):
        for caller in ("owner", "service"):
            answer = await chat.call(caller, "POST", f"/conversations/{name}/{path}", body)
            assert (answer.status_code, answer.json()["type"]) == (422, "urn:imray:problem:invalid")


async def test_members_come_in_pages_each_once(chat: Chat) -> None:
    name = await chat.room()
    users = [{"user": f"user {i} ä/%", "role": "reader"} for i in range(250)]
    added = await chat.call("owner", "POST", f"/conversations/{name}/members:add", {"members": users})
    assert added.json()["members"] == 253
    seen: list[str] = []
    after: str | None = None
    while True:
        query = httpx.QueryParams({"limit": 100} | ({} if after is None else {"after": after}))
        page = (await chat.call("reader", "GET", f"/conversations/{name}/members?{query}")).json()
        assert (page["total"], page["public"]) == (253, False)
        seen += [m["user"] for m in page["members"]]
        after = page["next"]
        if after is None:
            break
    assert sorted(seen) == sorted([u["user"] for u in users] + ["owner", "member", "reader"])
    one = await chat.call("reader", "GET", f"/conversations/{name}/members/user%207%20%C3%A4%2F%25")
    assert one.json() == {"user": "user 7 ä/%", "role": "reader"}
    assert (await chat.call("reader", "GET", f"/conversations/{name}/members/nobody")).status_code == 404
    assert (await chat.call("reader", "GET", f"/conversations/{name}/members?after=nobody")).status_code == 404


async def test_cursors_are_of_each_caller_and_never_go_back(chat: Chat) -> None:
    name = await chat.room()
    path = f"/conversations/{name}/cursor"
    for seq, expected in ((1, 1), (2, 2), (1, 2), (0, 2), (2.0, 2)):
        assert (await chat.call("member", "PUT", path, {"seq": seq})).json() == {"conv_id": name, "seq": expected}
    assert (await chat.call("member", "GET", path)).json()["seq"] == 2
    assert (await chat.call("reader", "GET", path)).json()["seq"] == 0
    for wrong in (3, -1, 1.5, "1", None):
        assert (await chat.call("member", "PUT", path, {"seq": wrong})).status_code == 422


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("members:add", {"members": []}, 422),
        ("members:add", {"members": [{"user": "a", "role": "king"}]}, 422),
        ("members:add", {"members": [{"user": "", "role": "reader"}]}, 422),
        ("members:add", {"members": [{"user": "é" * 65, "role": "reader"}]}, 422),
        ("members:add", {"members": [{"user": "a", "role": "reader"}, {"user": "a", "role": "member"}]}, 422),
        ("members:add", {"members": [{"user": "a"}]}, 422),
        ("members:add", {"members": [{"user": f"u{i}", "role": "reader"} for i in range(1001)]}, 413),
        ("members:remove", {"users": []}, 422),
        ("members:remove", {"users": ["a\x00"]}, 422),
        ("members:remove", {"users": ["a"], "more": 1}, 422),
        ("members:remove", {"users": [f"u{i}" for i in range(1001)]}, 413),
    ],
)
async def test_what_is_malformed_is_refused(chat: Chat, path: str, body: Any, status: int) -> None:
    name = await chat.room()
    answer = await chat.call("owner", "POST", f"/conversations/{name}/{path}", body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_what_nobody_created_has_no_members(chat: Chat) -> None:
    for method, path, body in (
        ("GET", "members", None),
        ("GET", "members/owner", None),
        ("POST", "members:add", _NEW),
        ("POST", "members:remove", {"users": ["x"]}),
    ):
        for caller in ("foreign", "service"):
            answer = await chat.call(caller, method, f"/conversations/open/{path}", body)
            assert (answer.status_code, answer.json()["type"]) == (404, "urn:imray:problem:not-found")


async def test_where_conversations_are_not_open_only_what_was_created_can_be_used(tmp_path: Path) -> None:
    async with _chat(tmp_path, conversations_open=False) as chat:
        assert (await chat.send("foreign", "talk")).status_code == 403
        for caller, status in (("foreign", 403), ("service", 200)):
            assert (await chat.call(caller, "GET", "/conversations/talk")).status_code == status
            assert (await chat.call(caller, "GET", "/conversations/talk/messages")).status_code == status
        assert (await chat.call("ada", "PUT", "/conversations/talk", {})).status_code == 201
        assert (await chat.send("ada", "talk")).status_code == 201
        assert (await chat.send("foreign", "talk")).status_code == 403


async def test_all_of_it_holds_when_the_shard_is_another_process(chat: Chat) -> None:
    name = await chat.room()
    shard = chat.system.engines[0].shard_of(name)
    await chat.call("reader", "PUT", f"/conversations/{name}/cursor", {"seq": 1})
    await chat.system.replace(shard)
    assert (await chat.send("removed", name)).status_code == 403
    assert (await chat.send("member", name)).json()["conv_seq"] == 3
    assert (await chat.call("removed", "GET", f"/conversations/{name}/messages")).status_code == 403
    assert (await chat.call("reader", "GET", f"/conversations/{name}/cursor")).json()["seq"] == 1


async def test_many_changes_at_once_leave_one_owner_at_least(chat: Chat) -> None:
    name = await chat.room()
    owners = [{"user": f"o{i}", "role": "owner"} for i in range(8)]
    await chat.call("owner", "POST", f"/conversations/{name}/members:add", {"members": owners})
    everybody = [o["user"] for o in owners] + ["owner"]
    leaving = [chat.call(o, "POST", f"/conversations/{name}/members:remove", {"users": [o]}) for o in everybody]
    answers = await asyncio.gather(*leaving)
    assert sorted(a.status_code for a in answers) == [200] * 8 + [422]
    page = (await chat.call("service", "GET", f"/conversations/{name}/members")).json()
    assert sum(m["role"] == "owner" for m in page["members"]) == 1
