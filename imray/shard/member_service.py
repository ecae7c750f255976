"""What a shard answers over RPC about members and cursors: each method decoded, called, and its answer encoded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from imray.core.errors import InvalidError
from imray.core.members import Changed, Cursor, MembersPage, Roles
from imray.core.membership import Change, Create
from imray.core.replies import Refusal, Refused
from imray.rpc import members as forms
from imray.rpc.endpoint import Parts
from imray.rpc.messages import encode_struct_answer
from imray.rpc.methods import Method
from imray.rpc.server import Handler, ServerConnection
from imray.shard.members import ShardMembers

ArgsT = TypeVar("ArgsT")


def member_handlers(members: ShardMembers) -> dict[Method, Handler]:
    """The methods about members."""

    async def change(ask: Create | Change) -> Changed | Refusal:
        return await members.change(ask)

    async def mark_read(args: forms.MarkReadArgs) -> Cursor | Refusal:
        return await (members.mark_read(*args) if args.seq else members.cursor(args.conv_id, args.user))

    async def roles(args: forms.RolesArgs) -> Roles | Refusal:
        return await members.roles(*args)

    async def page(args: forms.ListMembersArgs) -> MembersPage | Refusal:
        return await members.page(*args)

    return {
        Method.CHANGE_MEMBERS: _handler(forms.decode_change_members, change),
        Method.ROLES: _handler(forms.decode_roles, roles),
        Method.MARK_READ: _handler(forms.decode_mark_read, mark_read),
        Method.LIST_MEMBERS: _handler(forms.decode_list_members, page),
    }


def _handler(
    decode: Callable[[memoryview], ArgsT],
    call: Callable[[ArgsT], Awaitable[Changed | Roles | Cursor | MembersPage | Refusal]],
) -> Handler:
    async def handle(content: memoryview, _caller: ServerConnection) -> Parts:
        answer: msgspec.Struct | Refusal
        try:
            args = decode(content)
        except InvalidError as e:
            answer = Refusal(Refused.INVALID, str(e))
        else:
            answer = await call(args)
        return encode_struct_answer(answer)

    return handle
