"""The calls about members and read cursors, each a generator (see `call`).

Owns their paths and bodies, and how many members go in one request. Does not own I/O, nor the other calls (`calls`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from imray.client.call import Attempts, Call, Environment, R
from imray.client.calls import JSON_HEADERS, conversation_path, encode_json, path_segment
from imray.client.models import Creation, Json, Member, MemberPage, MemberRole, MembersNow
from imray.core.errors import InvalidError, UnavailableError
from imray.core.members import USER_BYTES_MAX
from imray.core.routing import check_text

USERS_MAX = 1000
"""In one request, by the contract."""
_ROLES = get_args(MemberRole)


class MemberCalls:
    """Every call about members that a client has. All of them may be repeated: what is so already is no change."""

    def __init__(self, env: Environment) -> None:
        self._env = env

    def create(self, conv_id: str, public: bool, members: Iterable[Member | Mapping[str, Any]]) -> Call[Creation]:
        entries = _entries(members)
        if len(entries) > USERS_MAX:
            raise InvalidError(f"{len(entries)} members at once: create it with at most {USERS_MAX}, then add others")
        content = encode_json({"public": public, "members": entries})
        tries_lost: list[bool] = []
        attempts = Attempts(self._env, lost=lambda: tries_lost.append(True))
        reply = yield from attempts.ask("PUT", conversation_path(conv_id), content=content, headers=JSON_HEADERS)
        if reply.status == 409 and tries_lost:
            raise UnavailableError(
                "a retry found the conversation there and different: a try before it may have created it, and others "
                "may have changed it since; look at its members"
            )
        if reply.status not in (200, 201):
            attempts.refuse(reply)
        now = attempts.read(reply, MembersNow.of)
        return Creation(now.conv_id, now.after, now.members, created=reply.status == 201)

    def add(self, conv_id: str, members: Iterable[Member | Mapping[str, Any]]) -> Call[MembersNow]:
        return (yield from self._change(conv_id, "add", "members", _entries(members)))

    def remove(self, conv_id: str, users: Iterable[str]) -> Call[MembersNow]:
        if isinstance(users, str):  # its characters would be removed
            raise InvalidError("users is one text: give a list of users")
        return (yield from self._change(conv_id, "remove", "users", [checked_user(user) for user in users]))

    def page(self, conv_id: str, after: str | None, limit: int) -> Call[MemberPage]:
        params: dict[str, str | int] = {"limit": limit}
        if after is not None:
            params["after"] = checked_user(after)
        return self._read(conversation_path(conv_id) + "/members", MemberPage.of, params)

    def role(self, conv_id: str, user: str) -> Call[MemberRole]:
        path = f"{conversation_path(conv_id)}/members/{path_segment(checked_user(user))}"
        return self._read(path, _role_of)

    def mark_read(self, conv_id: str, seq: int) -> Call[int]:
        attempts = Attempts(self._env)
        path = conversation_path(conv_id) + "/cursor"
        reply = yield from attempts.ask("PUT", path, content=encode_json({"seq": seq}), headers=JSON_HEADERS)
        if reply.status != 200:
            attempts.refuse(reply)
        return attempts.read(reply, _seq_of)

    def read_cursor(self, conv_id: str) -> Call[int]:
        return self._read(conversation_path(conv_id) + "/cursor", _seq_of)

    def _read(self, path: str, of: Callable[[Json], R], params: Mapping[str, str | int] | None = None) -> Call[R]:
        attempts = Attempts(self._env)
        reply = yield from attempts.ask("GET", path, params=params)
        if reply.status != 200:
            attempts.refuse(reply)
        return attempts.read(reply, of)

    def _change(self, conv_id: str, verb: str, field: str, entries: list[Any]) -> Call[MembersNow]:
        """As many requests as it takes, one after the other, each with a deadline of its own; the last answer."""
        path = f"{conversation_path(conv_id)}/members:{verb}"
        now: MembersNow | None = None
        for begin in range(0, len(entries), USERS_MAX):
            attempts = Attempts(self._env)
            content = encode_json({field: entries[begin : begin + USERS_MAX]})
            reply = yield from attempts.ask("POST", path, content=content, headers=JSON_HEADERS)
            if reply.status != 200:
                attempts.refuse(reply)
            now = attempts.read(reply, MembersNow.of)
        if now is None:
            raise InvalidError(f"no {field} to {verb}")
        return now


def checked_user(user: str) -> str:
    """A user as the contract has it; InvalidError for what the server could only refuse."""
    if not isinstance(user, str):
        raise InvalidError(f"user must be str, not {type(user).__name__}")
    check_text(user, "user", USER_BYTES_MAX)
    return user


def _entries(members: Iterable[Member | Mapping[str, Any]]) -> list[dict[str, str]]:
    """Members as the contract has them. One call's requests know nothing of each other, so users who are named twice
    are found here."""
    roles: dict[str, str] = {}
    for member in map(_member, members):
        if checked_user(member.user) in roles:
            raise InvalidError(f"{member.user!r} is named twice")
        if member.role not in _ROLES:
            raise InvalidError(f"{member.role!r} is no role: roles are {', '.join(_ROLES)}")
        roles[member.user] = member.role
    return [{"user": user, "role": role} for user, role in roles.items()]


def _member(member: Member | Mapping[str, Any]) -> Member:
    if isinstance(member, Member):
        return member
    try:
        return Member(**member)
    except TypeError as e:
        raise InvalidError(f"not a member: {e}") from e


def _role_of(answer: Json) -> MemberRole:
    role: MemberRole = answer["role"]
    return role


def _seq_of(answer: Json) -> int:
    return int(answer["seq"])
