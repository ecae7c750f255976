"""The clients' calls about members: what they ask, how answers are read, and what a lost try leaves unknown.

The transport is mocked and the clock moves with the pauses alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from imray.client import (
    AsyncClient,
    AuthError,
    Client,
    ConflictError,
    Creation,
    InvalidError,
    Member,
    MemberPage,
    MembersNow,
    RetryPolicy,
    ServerError,
    UnavailableError,
)

LOST = "no answer"
NOW = {"conv_id": "tea", "after": 7, "members": 2}
TIMEOUT_S = 30.0


class Talk:
    """One client, whichever it is, and what it is answered in turn: LOST, a status, or a status and an answer."""

    def __init__(self, kind: str) -> None:
        self.answers: list[str | int | tuple[int, Any]] = []
        self.asked: list[tuple[str, str, Any]] = []
        self.now_s = 0.0
        self.retry_after_s = 0
        """Said with every answer."""
        options: dict[str, Any] = {
            "timeout_s": TIMEOUT_S,
            "retry": RetryPolicy(pause_s_min=1, pause_s_max=2),
            "transport": httpx.MockTransport(self.answer),
            "clock_s": lambda: self.now_s,
        }
        self.client: Any = (
            AsyncClient("http://imray.test", sleep=self.sleep_async, **options)
            if kind == "async"
            else Client("http://imray.test", sleep=self.sleep, **options)
        )

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s

    async def sleep_async(self, pause_s: float) -> None:
        self.now_s += pause_s

    def answer(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.raw_path.decode(), body))
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            raise httpx.ReadTimeout(answer)
        status, content = answer if isinstance(answer, tuple) else (answer, {"detail": "because"})
        return httpx.Response(status, json=content, headers={"retry-after": str(self.retry_after_s)})

    async def do(self, name: str, *args: Any, **named: Any) -> Any:
        result = getattr(self.client, name)(*args, **named)
        return await result if asyncio.iscoroutine(result) else result

    async def every_member(self, *args: Any) -> list[Member]:
        if isinstance(self.client, AsyncClient):
            return [member async for member in self.client.iter_members(*args)]
        return list(self.client.iter_members(*args))


@pytest.fixture(params=["async", "sync"])
def talk(request: pytest.FixtureRequest) -> Talk:
    return Talk(request.param)


@pytest.mark.parametrize("status", [201, 200])
async def test_a_creation_says_whether_it_was_so_already(talk: Talk, status: int) -> None:
    talk.answers = [(status, NOW)]
    members = [Member("ada", "owner"), {"user": "bob"}]
    made = await talk.do("create_conversation", "tea", public=True, members=members)
    assert made == Creation("tea", 7, 2, created=status == 201)
    body = {"public": True, "members": [{"user": "ada", "role": "owner"}, {"user": "bob", "role": "member"}]}
    assert talk.asked == [("PUT", "/v1/conversations/tea", body)]


async def test_a_creation_without_members_is_private(talk: Talk) -> None:
    talk.answers = [(201, NOW | {"new": "field"})]
    await talk.do("create_conversation", "tea")
    assert talk.asked[0][2] == {"public": False, "members": []}


async def test_what_is_there_and_different_is_a_conflict(talk: Talk) -> None:
    talk.answers = [409]
    with pytest.raises(ConflictError, match="because") as e:
        await talk.do("create_conversation", "tea")
    assert (e.value.client_msg_id, e.value.conv_seq) == ("", None)


@pytest.mark.parametrize("lost", [LOST, 502, 504])
async def test_a_conflict_after_a_lost_creation_says_nothing_of_that_try(talk: Talk, lost: str | int) -> None:
    talk.answers = [lost, 409]
    with pytest.raises(UnavailableError, match="may have created it"):
        await talk.do("create_conversation", "tea")


async def test_a_conflict_after_a_try_that_wrote_nothing_is_a_conflict(talk: Talk) -> None:
    talk.answers = [503, 409]
    with pytest.raises(ConflictError):
        await talk.do("create_conversation", "tea")


CHANGES = [
    ("create_conversation", ("tea",), NOW),
    ("add_members", ("tea", [Member("bob")]), NOW),
    ("remove_members", ("tea", ["bob"]), NOW),
    ("mark_read", ("tea", 3), {"conv_id": "tea", "seq": 5}),
]
READS = [
    ("members", ("tea",), {"conv_id": "tea", "public": False, "total": 0, "members": [], "next": None}),
    ("role", ("tea", "bob"), {"user": "bob", "role": "reader"}),
    ("read_cursor", ("tea",), {"conv_id": "tea", "seq": 5}),
]
EVERY_CALL = pytest.mark.parametrize(("name", "args", "answer"), [*CHANGES, *READS], ids=lambda v: str(v)[:20])


@EVERY_CALL
@pytest.mark.parametrize("fault", [LOST, 408, 429, 502, 503, 504])
async def test_every_call_is_tried_again_as_it_was(
    talk: Talk, name: str, args: Any, answer: Any, fault: str | int
) -> None:
    talk.answers = [fault, fault, (200, answer)]
    await talk.do(name, *args)
    assert talk.asked == talk.asked[:1] * 3


@EVERY_CALL
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AuthError),
        (403, AuthError),
        (404, InvalidError),
        (413, InvalidError),
        (422, InvalidError),
        (500, ServerError),
    ],
)
async def test_a_refusal_says_what_the_caller_must_do(
    talk: Talk, name: str, args: Any, answer: Any, status: int, error: type[Exception]
) -> None:
    talk.answers = [status]
    with pytest.raises(error, match=f"status {status}: because"):
        await talk.do(name, *args)


@pytest.mark.parametrize("name", [name for name, _, _ in CHANGES])
async def test_a_refusal_after_a_lost_change_says_that_it_may_hold(talk: Talk, name: str) -> None:
    args = next(args for other, args, _ in CHANGES if other == name)
    for status in (403, 404, 422):
        talk.answers = [LOST, status]
        with pytest.raises(UnavailableError, match="may hold now or not"):
            await talk.do(name, *args)


@pytest.mark.parametrize("name", [name for name, _, _ in READS])
async def test_a_refusal_after_a_lost_read_is_just_a_refusal(talk: Talk, name: str) -> None:
    args = next(args for other, args, _ in READS if other == name)
    talk.answers = [LOST, 403]
    with pytest.raises(AuthError):
        await talk.do(name, *args)


@EVERY_CALL
async def test_an_answer_that_is_not_imrays_is_said_to_be(talk: Talk, name: str, args: Any, answer: Any) -> None:
    talk.answers = [(200, {"other": 1})]
    with pytest.raises(ServerError, match="not that of an imray server"):
        await talk.do(name, *args)


@pytest.mark.parametrize(("verb", "field"), [("add", "members"), ("remove", "users")])
async def test_more_than_a_thousand_go_in_several_calls_in_order(talk: Talk, verb: str, field: str) -> None:
    users = [f"u{i}" for i in range(2001)]
    talk.answers = [(200, NOW | {"members": n}) for n in (1, 2, 3)]
    now = await talk.do(f"{verb}_members", "tea", (Member(u) if verb == "add" else u for u in users))
    assert now == MembersNow("tea", 7, 3)
    assert {(method, path) for method, path, _ in talk.asked} == {("POST", f"/v1/conversations/tea/members:{verb}")}
    parts = [body[field] for _, _, body in talk.asked]
    assert [len(part) for part in parts] == [1000, 1000, 1]
    assert [entry["user"] if verb == "add" else entry for part in parts for entry in part] == users


async def test_where_a_part_fails_those_after_it_are_not_asked(talk: Talk) -> None:
    talk.answers = [(200, NOW), 403]
    with pytest.raises(AuthError):
        await talk.do("remove_members", "tea", [f"u{i}" for i in range(2001)])
    assert len(talk.asked) == 2


async def test_each_part_has_a_deadline_of_its_own(talk: Talk) -> None:
    talk.retry_after_s = 20
    talk.answers = [503, (200, NOW)] * 3
    await talk.do("add_members", "tea", [Member(f"u{i}") for i in range(2001)])
    assert talk.now_s >= 60 > TIMEOUT_S


async def test_members_come_page_by_page_each_once(talk: Talk) -> None:
    users = ["ada", "b/ä", "c&d"]
    pages = [
        {"conv_id": "tea", "public": True, "total": 3, "members": [{"user": u, "role": "reader"}], "next": after}
        for u, after in zip(users, ["ada", "b/ä", None], strict=True)
    ]
    talk.answers = [(200, page) for page in pages]
    assert await talk.every_member("tea", None, 1) == [Member(u, "reader") for u in users]
    assert [path for _, path, _ in talk.asked] == [
        "/v1/conversations/tea/members?limit=1",
        "/v1/conversations/tea/members?limit=1&after=ada",
        "/v1/conversations/tea/members?limit=1&after=b%2F%C3%A4",
    ]
    talk.answers = [(200, pages[0])]
    assert await talk.do("members", "tea") == MemberPage("tea", True, 3, [Member("ada", "reader")], "ada")


@pytest.mark.parametrize(
    ("user", "segment"), [("a/b", "a%2Fb"), ("..", "%2E%2E"), (".", "%2E"), ("ü ?#", "%C3%BC%20%3F%23")]
)
async def test_any_user_arrives_as_it_is(talk: Talk, user: str, segment: str) -> None:
    talk.answers = [(200, {"user": user, "role": "owner"})]
    assert await talk.do("role", "a/b", user) == "owner"
    assert talk.asked == [("GET", f"/v1/conversations/a%2Fb/members/{segment}", None)]


async def test_cursors_say_how_far_the_server_has_it(talk: Talk) -> None:
    talk.answers = [(200, {"conv_id": "tea", "seq": 5}), (200, {"conv_id": "tea", "seq": 5})]
    assert await talk.do("mark_read", "tea", 3) == 5
    assert await talk.do("read_cursor", "tea") == 5
    assert talk.asked == [
        ("PUT", "/v1/conversations/tea/cursor", {"seq": 3}),
        ("GET", "/v1/conversations/tea/cursor", None),
    ]


@pytest.mark.parametrize(
    ("name", "args", "named"),
    [
        ("add_members", ("tea", []), {}),
        ("add_members", ("tea", "bob"), {}),
        ("add_members", ("tea", ["bob"]), {}),
        ("add_members", ("tea", [Member("bob"), {"user": "bob", "role": "owner"}]), {}),
        ("add_members", ("tea", [{"user": "bob", "rank": "owner"}]), {}),
        ("add_members", ("tea", [{"user": "bob", "role": "king"}]), {}),
        ("add_members", ("tea", [{"user": 7}]), {}),
        ("add_members", ("tea", [Member(f"u{i}") for i in range(1000)] + [Member("é" * 65)]), {}),
        ("add_members", ("", [Member("bob")]), {}),
        ("remove_members", ("tea", []), {}),
        ("remove_members", ("tea", "bob"), {}),
        ("remove_members", ("tea", ["a\x00"]), {}),
        ("remove_members", ("tea", [f"u{i}" for i in range(1000)] + [""]), {}),
        ("create_conversation", ("tea",), {"members": [Member(f"u{i}") for i in range(1001)]}),
        ("create_conversation", ("tea",), {"members": [Member("\ud800")]}),
        ("members", ("tea", ""), {}),
        ("role", ("tea", ""), {}),
        ("mark_read", ("tea", object()), {}),
    ],
)
async def test_what_the_server_could_only_refuse_is_not_sent(
    talk: Talk, name: str, args: Any, named: dict[str, Any]
) -> None:
    with pytest.raises(InvalidError):
        await talk.do(name, *args, **named)
    assert talk.asked == [], "not even a first part"


def test_both_clients_have_the_same_methods() -> None:
    names = {name for name in dir(AsyncClient) if not name.startswith("_")} - {"aclose"}
    assert names == {name for name in dir(Client) if not name.startswith("_")} - {"close"}
