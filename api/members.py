"""Members of conversations, and how far each has read."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import orjson
from fastapi import APIRouter, Request, Response

from api.auth import Authenticator, Caller, check_seen
from api.checks import invalid, media_type, read_body, whole
from api.docs import json_body, problems
from api.door import RawRoute
from api.history import check_conv, integer
from api.member_schemas import (
    AddMembersRequest,
    ChangedResponse,
    CreateRequest,
    CursorRequest,
    CursorResponse,
    MemberOut,
    MembersResponse,
    PathUser,
    RemoveMembersRequest,
)
from api.problems import PROBLEM_TYPE, ProblemError, refused
from api.rights import check_listens, roles_for_reader
from api.schemas import USER_PATTERN, PathConvId, text_schema
from imray.core.errors import InvalidError
from imray.core.members import USER_BYTES_MAX, Changed, Role
from imray.core.pages import SEQ_MAX
from imray.core.replies import Refusal
from imray.core.routing import check_text
from imray.engine.engine import Engine

USERS_MAX = 1000
"""In one request, and on one page."""
_PAGE_DEFAULT = 100
_BODY_BYTES_MAX = 1024 * 1024
"""So many of the longest names, most of their bytes as escapes."""
_PROBLEM = {"content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
_ABSENT: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such conversation or member", **_PROBLEM}}
_EXISTS: dict[int | str, dict[str, Any]] = {409: {"description": "It is there already, and different", **_PROBLEM}}
_WRITES = problems(400, 401, 403, 413, 415, 422, 429, 500, 503, 504)
_READS = problems(401, 403, 422, 429, 500, 503, 504)

BodyT = TypeVar("BodyT")


class _Member(msgspec.Struct, forbid_unknown_fields=True):
    user: str
    role: Role


class _Create(msgspec.Struct, forbid_unknown_fields=True):
    public: bool = False
    members: list[_Member] = []


class _Add(msgspec.Struct, forbid_unknown_fields=True):
    members: list[_Member]


class _Remove(msgspec.Struct, forbid_unknown_fields=True):
    users: list[str]


class _Cursor(msgspec.Struct, forbid_unknown_fields=True):
    seq: int | float


def routes(engine: Engine, auth: Authenticator) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["members"], route_class=RawRoute)
    _change_routes(router, engine, auth)
    _read_routes(router, engine, auth)
    _cursor_routes(router, engine, auth)
    return router


def _change_routes(router: APIRouter, engine: Engine, auth: Authenticator) -> None:
    @router.put(
        "/v1/conversations/{conv_id}",
        summary="Create a conversation",
        status_code=201,
        response_model=ChangedResponse,
        responses={200: {"model": ChangedResponse, "description": "It is so already."}, **_WRITES, **_EXISTS},
        openapi_extra=json_body(CreateRequest),
    )
    async def create(conv_id: PathConvId, request: Request) -> Response:
        """From then on it has members, and the caller is an owner; a service names one. What has messages of others
        only a service may create."""
        caller = _caller(auth, request, conv_id)
        wanted = await _body(request, _Create)
        members = _roles(wanted.members)
        changed = await engine.members.create(conv_id, caller.sender, caller.service, wanted.public, members)
        created = isinstance(changed, Changed) and changed.created
        return _changed(conv_id, changed, caller, 201 if created else 200)

    @router.post(
        "/v1/conversations/{conv_id}/members:add",
        summary="Add members, or change their roles",
        response_model=ChangedResponse,
        responses={**_WRITES, **_ABSENT},
        openapi_extra=json_body(AddMembersRequest),
    )
    async def add(conv_id: PathConvId, request: Request) -> Response:
        """Needs an owner, or a service. The answer comes when it is durable; what is so already is no change."""
        caller = _caller(auth, request, conv_id)
        wanted = _roles((await _body(request, _Add)).members)
        if not wanted:
            raise invalid("members: name at least one")
        changed = await engine.members.change(conv_id, caller.sender, caller.service, wanted, [])
        return _changed(conv_id, changed, caller)

    @router.post(
        "/v1/conversations/{conv_id}/members:remove",
        summary="Remove members",
        response_model=ChangedResponse,
        responses={**_WRITES, **_ABSENT},
        openapi_extra=json_body(RemoveMembersRequest),
    )
    async def remove(conv_id: PathConvId, request: Request) -> Response:
        """Needs an owner, or a service; oneself needs no right. The last owner stays."""
        caller = _caller(auth, request, conv_id)
        users = (await _body(request, _Remove)).users
        _check_users(users)
        if not users:
            raise invalid("users: name at least one")
        changed = await engine.members.change(conv_id, caller.sender, caller.service, {}, users)
        return _changed(conv_id, changed, caller)


def _read_routes(router: APIRouter, engine: Engine, auth: Authenticator) -> None:
    @router.get(
        "/v1/conversations/{conv_id}/members",
        summary="Who is a member",
        response_model=MembersResponse,
        responses={**_READS, **_ABSENT},
        openapi_extra={"parameters": _PARAMETERS},
    )
    async def members(conv_id: PathConvId, request: Request) -> Response:
        """In an order that does not change; `next` goes into `after` of the next call."""
        caller = _caller(auth, request, conv_id)
        query = request.query_params
        if unknown := set(query) - {"after", "limit"}:
            raise invalid(f"unknown parameters {sorted(unknown)}: known are after, limit")
        limit = integer(query.get("limit", str(_PAGE_DEFAULT)), "limit", 1, USERS_MAX)
        after = query.get("after")
        if after is not None:
            _check_users([after])
        if not (await roles_for_reader(engine, conv_id, caller, [])).created:
            raise _nobody_created_it()
        page = await engine.members.page(conv_id, after, limit)
        if isinstance(page, Refusal):
            raise refused(page, caller.service)
        content = {
            "conv_id": conv_id,
            "public": page.public,
            "total": page.total,
            "members": [{"user": m.user, "role": m.role} for m in page.members],
            "next": page.next,
        }
        return _json(content)

    @router.get(
        "/v1/conversations/{conv_id}/members/{user}",
        summary="A member's role",
        response_model=MemberOut,
        responses={**_READS, **_ABSENT},
    )
    async def member(conv_id: PathConvId, user: PathUser, request: Request) -> Response:
        """404 where the user is no member."""
        caller = _caller(auth, request, conv_id)
        _check_users([user])
        roles = await roles_for_reader(engine, conv_id, caller, [user])
        if not roles.created:
            raise _nobody_created_it()
        role = roles.roles[user]
        if role is None:
            raise ProblemError(404, "not-found", f"{user!r} is no member")
        return _json({"user": user, "role": role})


def _cursor_routes(router: APIRouter, engine: Engine, auth: Authenticator) -> None:
    @router.put(
        "/v1/conversations/{conv_id}/cursor",
        summary="Say how far one has read",
        response_model=CursorResponse,
        responses=_WRITES,
        openapi_extra=json_body(CursorRequest),
    )
    async def mark_read(conv_id: PathConvId, request: Request) -> Response:
        """The caller has read up to `seq`. Answered when it is durable, with how far it has: that never goes back."""
        caller = _caller(auth, request, conv_id)
        seq = (await _body(request, _Cursor)).seq
        if not 0 <= seq <= SEQ_MAX:
            raise invalid(f"seq={seq}: a whole number from 0 to {SEQ_MAX}")
        return await cursor_of(conv_id, caller, _whole(seq))

    @router.get(
        "/v1/conversations/{conv_id}/cursor",
        summary="How far one has read",
        response_model=CursorResponse,
        responses=_READS,
    )
    async def cursor(conv_id: PathConvId, request: Request) -> Response:
        """The caller's own; 0 where it has not said."""
        return await cursor_of(conv_id, _caller(auth, request, conv_id), 0)

    async def cursor_of(conv_id: str, caller: Caller, seq: int) -> Response:
        await check_listens(engine, conv_id, caller)
        read = await engine.members.mark_read(conv_id, caller.sender, seq)
        if isinstance(read, Refusal):
            raise refused(read, caller.service)
        return _json({"conv_id": conv_id, "seq": read.seq})


_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "after",
        "in": "query",
        "required": False,
        "schema": text_schema(USER_BYTES_MAX, USER_PATTERN),
        "description": "Only members after this one: `next` of the page before.",
    },
    {
        "name": "limit",
        "in": "query",
        "required": False,
        "schema": {"type": "integer", "minimum": 1, "maximum": USERS_MAX, "default": _PAGE_DEFAULT},
        "description": "At most so many.",
    },
]


def _caller(auth: Authenticator, request: Request, conv_id: str) -> Caller:
    caller = auth.caller(request.headers.get("authorization"))
    check_conv(conv_id)
    return caller


async def _body(request: Request, type_: type[BodyT]) -> BodyT:
    media_type(request.headers.get("content-type"), "application/json")
    data = await read_body(request, _BODY_BYTES_MAX)
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.ValidationError as e:
        raise invalid(str(e)) from e
    except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
        raise ProblemError(400, "invalid", f"not valid JSON: {e}") from e


def _check_users(users: list[str]) -> None:
    if len(users) > USERS_MAX:
        raise ProblemError(413, "too-large", f"{len(users)} users at once: at most {USERS_MAX}")
    try:
        for user in users:
            check_text(user, "user", USER_BYTES_MAX)
            check_seen(user, "user")
    except InvalidError as e:
        raise invalid(str(e)) from e


def _roles(members: list[_Member]) -> dict[str, Role]:
    _check_users([m.user for m in members])
    roles = {m.user: m.role for m in members}
    if len(roles) < len(members):
        raise invalid("members: a user is named twice")
    return roles


def _whole(seq: int | float) -> int:
    try:
        return whole(seq, "seq")
    except InvalidError as e:
        raise invalid(str(e)) from e


def _nobody_created_it() -> ProblemError:
    return ProblemError(404, "not-found", "nobody created this conversation: it has no members")


def _changed(conv_id: str, changed: Changed | Refusal, caller: Caller, status: int = 200) -> Response:
    if isinstance(changed, Refusal):
        raise refused(changed, caller.service)
    return _json({"conv_id": conv_id, "after": changed.after, "members": changed.members}, status)


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
