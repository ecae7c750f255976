"""The rules of membership: what may be asked, and the change that it makes. Pure: asked for at a record's turn.

Owns who may change what. Does not own the state (`imray.core.member_state`). What is so already is no change: a
repeated call is told how it is now, so its `after` may be higher than that of the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from imray.core.member_state import MemberState
from imray.core.members import MembersChange, Role
from imray.core.replies import Refusal, Refused

MEMBERS_MAX = 1_000_000
"""Of one conversation: its list is copied for each change, which takes a few milliseconds then."""

_NOT_OWNER = "only an owner, or a token with the role `service`, may change the members"


@dataclass(frozen=True)
class Create:
    """Create a conversation."""

    conv_id: str
    actor: str
    service: bool
    """The actor may do everything, and is no member by itself."""
    public: bool
    members: dict[str, Role]


@dataclass(frozen=True)
class Change:
    """Add members (or change their roles) and remove some."""

    conv_id: str
    actor: str
    service: bool
    add: dict[str, Role]
    remove: tuple[str, ...]

    @property
    def is_leave(self) -> bool:
        """Somebody wants out, and nothing else."""
        return not self.service and not self.add and set(self.remove) == {self.actor}


def judge(state: MemberState, conv: int, head: int, ask: Create | Change) -> MembersChange | Refusal | None:
    """What a call changes; None: it is so already. `conv`: the conversation's index (-1: not known), `head`: the
    highest number given out."""
    if isinstance(ask, Create):
        return _created(state, conv, head, ask)
    return _changed(state, conv, head, ask)


def _created(state: MemberState, conv: int, head: int, ask: Create) -> MembersChange | Refusal | None:
    roles = dict(ask.members)
    if not ask.service and roles.setdefault(ask.actor, Role.OWNER) is not Role.OWNER:
        return Refusal(Refused.INVALID, "who creates a conversation is its owner: name yourself so, or not at all")
    if Role.OWNER not in roles.values():
        return Refusal(Refused.INVALID, "a conversation has an owner: name one among the members")
    if state.is_created(conv):
        same = state.count(conv) == len(roles) and state.roles_among(conv, roles) == roles
        if same and state.is_public(conv) == ask.public:
            return None
        return Refusal(Refused.EXISTS, "the conversation is there, with other members or another `public`")
    if head and not ask.service:
        # whoever wrote there would be locked out by the first who asks
        detail = "there are messages of others in it already: only a token with the role `service` may create it"
        return Refusal(Refused.FORBIDDEN, detail)
    return MembersChange(conv=conv, after=head, created=True, public=ask.public, roles=roles, removed=())


def _changed(state: MemberState, conv: int, head: int, ask: Change) -> MembersChange | Refusal | None:
    if not state.is_created(conv):
        return Refusal(Refused.ABSENT, "nobody created this conversation: it has no members")
    if not ask.add.keys().isdisjoint(ask.remove):
        return Refusal(Refused.INVALID, "a user cannot be added and removed in one call")
    before = state.roles_among(conv, dict.fromkeys([ask.actor, *ask.add, *ask.remove]))
    roles = {user: role for user, role in ask.add.items() if before.get(user) is not role}
    removed = tuple(user for user in dict.fromkeys(ask.remove) if user in before)
    if not ask.service and not _may(before.get(ask.actor), ask, changes=bool(roles or removed)):
        return Refusal(Refused.FORBIDDEN, _NOT_OWNER)
    if not roles and not removed:
        return None
    if not state.owners_after(conv, roles, removed):
        return Refusal(Refused.INVALID, "the last owner cannot be removed, or lowered: name another one first")
    if state.count(conv) + len(roles) > MEMBERS_MAX:
        return Refusal(Refused.INVALID, f"a conversation has at most {MEMBERS_MAX} members")
    public = state.is_public(conv)
    return MembersChange(conv=conv, after=head, created=False, public=public, roles=roles, removed=removed)


def _may(role: Role | None, ask: Change, changes: bool) -> bool:
    if role is Role.OWNER:
        return True
    if not ask.add and set(ask.remove) <= {ask.actor}:
        return True  # oneself needs no right
    return role is not None and not changes  # an owner that lowered itself, and asks again
