"""Who is in which conversation, in which role, and how far each has read: as values.

Owns what is said of it, in the log and to callers. Does not own the state of a shard (`imray.core.member_state`), nor
who may change it (`imray.core.membership`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

USER_BYTES_MAX = 128
"""Of a user's name: what a token's subject and a sender may have."""


class Role(StrEnum):
    """What a member may do; each may what those before it may."""

    READER = "reader"
    """Pull and listen."""
    MEMBER = "member"
    """Send, too."""
    OWNER = "owner"
    """Add and remove members, too."""


@dataclass(frozen=True)
class MembersChange:
    """A record of members: in a conversation (its index), between the numbers `after` and `after` + 1."""

    conv: int
    after: int
    created: bool
    """It is created by this."""
    public: bool
    """Whether it is public from here on."""
    roles: dict[str, Role]
    """Who is in a role from here on."""
    removed: tuple[str, ...]


@dataclass(frozen=True)
class CursorsChange:
    """A record of cursors: up to where some users have read a conversation (its index)."""

    conv: int
    seqs: dict[str, int] = field(default_factory=dict)


class Roles(msgspec.Struct, frozen=True):
    """What some users may do in a conversation, as it is durable."""

    created: bool
    public: bool
    version: int
    """Changes with each change of the members; 0: nobody created it."""
    epoch: int
    """The incarnation of the shard that says so."""
    roles: dict[str, Role | None]

    def may_listen(self, user: str, service: bool, open_to_all: bool) -> bool:
        """Whether a user may pull and listen. `open_to_all`: so are conversations that nobody created."""
        if service:
            return True
        if not self.created:
            return open_to_all
        return self.public or self.roles[user] is not None

    def may_send(self, user: str, service: bool, open_to_all: bool) -> bool:
        """Whether a user may send, and signal. As the shard judges senders, but for services, which a gateway knows
        and the shard does not: there a service needs a role, too."""
        if service:
            return True
        if not self.created:
            return open_to_all
        return self.roles[user] in (Role.OWNER, Role.MEMBER)


class MemberEntry(msgspec.Struct, frozen=True):
    """One member."""

    user: str
    role: Role


class MembersPage(msgspec.Struct, frozen=True):
    """Some of a conversation's members, in an order that does not change."""

    created: bool
    public: bool
    version: int
    epoch: int
    total: int
    members: list[MemberEntry]
    next: str | None
    """The user after whom it goes on; None: there are no more."""


class Cursor(msgspec.Struct, frozen=True):
    """Up to where a user has read, which is durable."""

    seq: int
    """0: it has not said."""
    epoch: int


class Changed(msgspec.Struct, frozen=True):
    """Members are as they were asked to be, and that is durable."""

    after: int
    """The change stands between this number and the next. Where it was so already nothing was changed: this is the
    last number given out, and what has made it so stands at or below it. A call may be repeated after a lost answer, so
    all that may be built upon is that nothing of it stands above. 0, with no `members`: told to who leaves and is none,
    and says nothing."""
    version: int
    members: int
    """How many there are."""
    created: bool = False
    """This call has created the conversation."""


@dataclass(frozen=True)
class MembersChanged:
    """A durable change, for who publishes it."""

    conv_id: str
    after: int
    version: int
    removed: tuple[str, ...]
    public: bool
    created: bool = True
