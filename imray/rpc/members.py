"""Calls about members and cursors, as messages.

Owns their form on the wire and its bounds. Does not own what they mean: `imray.core.members`, `imray.core.membership`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from imray.core.errors import InvalidError
from imray.core.members import USER_BYTES_MAX, Changed, Cursor, MembersPage, Role, Roles
from imray.core.membership import Change, Create
from imray.core.replies import Refusal
from imray.core.routing import CONV_ID_BYTES_MAX, check_conv_id, check_text
from imray.rpc.arguments import decode_struct, encode_struct
from imray.rpc.endpoint import Parts
from imray.rpc.replies import decode_struct_answer

CHANGE_USERS_MAX = 1000
"""Users in one change: it is one record in the log."""
ROLES_USERS_MAX = 10_000
PAGE_USERS_MAX = 1000

_User = Annotated[str, msgspec.Meta(min_length=1, max_length=USER_BYTES_MAX)]
_ConvId = Annotated[str, msgspec.Meta(min_length=1, max_length=CONV_ID_BYTES_MAX)]


class _ChangeArgs(NamedTuple):
    """Of Method.CHANGE_MEMBERS."""

    conv_id: _ConvId
    actor: _User
    service: bool
    create: bool
    public: bool
    """Of a conversation that is to be created."""
    add: Annotated[dict[_User, Role], msgspec.Meta(max_length=CHANGE_USERS_MAX)]
    remove: Annotated[list[_User], msgspec.Meta(max_length=CHANGE_USERS_MAX)]


class RolesArgs(NamedTuple):
    """Of Method.ROLES."""

    conv_id: _ConvId
    users: Annotated[list[_User], msgspec.Meta(max_length=ROLES_USERS_MAX)]


class MarkReadArgs(NamedTuple):
    """Of Method.MARK_READ: up to where a user has read; 0 asks only."""

    conv_id: _ConvId
    user: _User
    seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class ListMembersArgs(NamedTuple):
    """Of Method.LIST_MEMBERS."""

    conv_id: _ConvId
    after_user: _User | None
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_USERS_MAX)]


def encode_change_members(ask: Create | Change) -> Parts:
    """Of Method.CHANGE_MEMBERS."""
    if isinstance(ask, Create):
        args = _ChangeArgs(ask.conv_id, ask.actor, ask.service, True, ask.public, ask.members, [])
    else:
        args = _ChangeArgs(ask.conv_id, ask.actor, ask.service, False, False, ask.add, list(ask.remove))
    return encode_struct(args)


def decode_change_members(data: memoryview) -> Create | Change:
    """The inverse of `encode_change_members`. InvalidError where it is malformed; so for all of this module."""
    args = decode_struct(data, _ChangeArgs)
    check_conv_id(args.conv_id)
    for user in (args.actor, *args.add, *args.remove):
        check_text(user, "user", USER_BYTES_MAX)
    if not args.create:
        return Change(args.conv_id, args.actor, args.service, args.add, tuple(args.remove))
    if args.remove:
        raise InvalidError("what is created has nobody to remove")
    return Create(args.conv_id, args.actor, args.service, args.public, args.add)


def encode_roles(conv_id: str, users: Sequence[str]) -> Parts:
    """Of Method.ROLES."""
    return encode_struct(RolesArgs(conv_id, list(users)))


def decode_roles(data: memoryview) -> RolesArgs:
    """The inverse of `encode_roles`."""
    return decode_struct(data, RolesArgs)


def encode_mark_read(conv_id: str, user: str, seq: int) -> Parts:
    """Of Method.MARK_READ."""
    return encode_struct(MarkReadArgs(conv_id, user, seq))


def decode_mark_read(data: memoryview) -> MarkReadArgs:
    """The inverse of `encode_mark_read`."""
    args = decode_struct(data, MarkReadArgs)
    check_conv_id(args.conv_id)
    check_text(args.user, "user", USER_BYTES_MAX)
    return args


def encode_list_members(conv_id: str, after_user: str | None, limit: int) -> Parts:
    """Of Method.LIST_MEMBERS."""
    return encode_struct(ListMembersArgs(conv_id, after_user, limit))


def decode_list_members(data: memoryview) -> ListMembersArgs:
    """The inverse of `encode_list_members`."""
    return decode_struct(data, ListMembersArgs)


def decode_changed(data: memoryview) -> Changed | Refusal:
    """The answer to Method.CHANGE_MEMBERS: `encode_struct_answer` of it; so for the others."""
    return decode_struct_answer(data, Changed)


def decode_roles_answer(data: memoryview) -> Roles | Refusal:
    """The answer to Method.ROLES."""
    return decode_struct_answer(data, Roles)


def decode_cursor(data: memoryview) -> Cursor | Refusal:
    """The answer to Method.MARK_READ."""
    return decode_struct_answer(data, Cursor)


def decode_members_page(data: memoryview) -> MembersPage | Refusal:
    """The answer to Method.LIST_MEMBERS."""
    return decode_struct_answer(data, MembersPage)
