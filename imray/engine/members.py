"""Members and cursors, as a gateway asks for them.

Owns the calls. Does not own retries and deadlines (`imray.engine.clients`), nor what a role may do
(`imray.core.members`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from imray.core.members import Changed, Cursor, MembersPage, Role, Roles
from imray.core.membership import Change, Create
from imray.core.replies import Refusal
from imray.engine.clients import HasEpoch, ShardClient
from imray.rpc import members as forms
from imray.rpc.endpoint import Parts
from imray.rpc.methods import Method
from imray.settings import Settings

ReadT = TypeVar("ReadT", bound=HasEpoch)


@dataclass(frozen=True)
class RightsIn:
    """What some users may do in a conversation: `imray.engine.rights.Rights`."""

    roles: Roles
    open_to_all: bool

    def may_listen(self, user: str, service: bool) -> bool:
        """Pull and listen."""
        return self.roles.may_listen(user, service, self.open_to_all)

    def may_send(self, user: str, service: bool) -> bool:
        """Send and signal."""
        return self.roles.may_send(user, service, self.open_to_all)


class MembersClient:
    """The members of all conversations. A Refusal says what the caller must do."""

    def __init__(self, clients: Sequence[ShardClient], shard_of: Callable[[str], int], settings: Settings) -> None:
        self._clients = clients
        self._shard_of = shard_of
        self._settings = settings

    @property
    def open_to_all(self) -> bool:
        """Whether anybody may use a conversation that nobody created."""
        return self._settings.conversations_open

    async def create(
        self, conv_id: str, actor: str, service: bool, public: bool, members: dict[str, Role]
    ) -> Changed | Refusal:
        """Create a conversation; `actor` becomes an owner, but for a service, which names one. Changed: it is so, and
        durable; again: the same, not `created`. EXISTS: it is there, and different."""
        return await self._write(Create(conv_id, actor, service, public, members))

    async def change(
        self, conv_id: str, actor: str, service: bool, add: dict[str, Role], remove: Sequence[str]
    ) -> Changed | Refusal:
        """Put members into roles, and remove some. Changed: it is so, and durable. FORBIDDEN: `actor` may not. ABSENT:
        nobody created it."""
        return await self._write(Change(conv_id, actor, service, add, tuple(remove)))

    async def _write(self, ask: Create | Change) -> Changed | Refusal:
        content = forms.encode_change_members(ask)
        client = self._clients[self._shard_of(ask.conv_id)]
        return await client.call(Method.CHANGE_MEMBERS, content, forms.decode_changed, self._deadline())

    async def roles(self, conv_id: str, users: Sequence[str]) -> Roles | Refusal:
        """What some users may do in a conversation."""
        return await self._read(Method.ROLES, conv_id, forms.encode_roles(conv_id, users), forms.decode_roles_answer)

    async def rights(self, conv_id: str, users: Sequence[str]) -> RightsIn | Refusal:
        """The same, with what holds where nobody created it."""
        roles = await self.roles(conv_id, users)
        return roles if isinstance(roles, Refusal) else RightsIn(roles, self.open_to_all)

    async def page(self, conv_id: str, after_user: str | None, limit: int) -> MembersPage | Refusal:
        """Some members, after a user (None: from the first). ABSENT: nobody knows that one."""
        content = forms.encode_list_members(conv_id, after_user, limit)
        return await self._read(Method.LIST_MEMBERS, conv_id, content, forms.decode_members_page)

    async def mark_read(self, conv_id: str, user: str, seq: int) -> Cursor | Refusal:
        """A user has read up to a number. Cursor: how far it has read, which is durable and never goes back. INVALID:
        there is no such number. Whether the user may read there is not asked."""
        content = forms.encode_mark_read(conv_id, user, seq)
        return await self._read(Method.MARK_READ, conv_id, content, forms.decode_cursor)

    async def cursor(self, conv_id: str, user: str) -> Cursor | Refusal:
        """Up to where a user has read; 0: it has not said."""
        return await self.mark_read(conv_id, user, 0)

    async def _read(
        self, method: Method, conv_id: str, content: Parts, decode: Callable[[memoryview], ReadT | Refusal]
    ) -> ReadT | Refusal:
        return await self._clients[self._shard_of(conv_id)].read(method, content, decode, self._deadline())

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.send_deadline_s
