"""The members and read cursors of one shard's conversations, which are named by their index.

Owns the state. Does not own who may change it (`imray.core.membership`), nor when a change is logged
(`imray.shard.members`). Pure: no I/O, no clock.

Two views: what was planned counts for what is planned next, as with numbers; readers are told what is durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from imray.core.columns import Senders
from imray.core.errors import InvalidError
from imray.core.member_columns import MembersColumns
from imray.core.members import CursorsChange, MemberEntry, MembersChange, MembersChanged, MembersPage, Role, Roles
from imray.core.user_lists import UserLists, Users, text_columns
from imray.kernels.arrays import I8, I32, I64, Bools
from imray.kernels.senders import judge_senders

CODES: dict[str, int] = {Role.READER: 1, Role.MEMBER: 2, Role.OWNER: 3}
"""Roles as they stand in columns and checkpoints; 0: none."""
_ROLES = {code: Role(role) for role, code in CODES.items()}
_CREATED = 1
_PUBLIC = 2


@dataclass(frozen=True)
class _Former:
    """What a change that is not durable yet has replaced."""

    conv: int
    after: int
    flags: int
    version: int
    total: int
    codes: dict[int, int]
    """By user; 0: no member."""


class MemberState:
    """The members and cursors of a shard's conversations, which are named by their index."""

    def __init__(self) -> None:
        self.users = Users()
        self._roles = UserLists(np.int8)
        self._cursors = UserLists(np.int64)
        self._flags: I8 = np.zeros(0, np.int8)
        self._versions: I64 = np.zeros(0, np.int64)
        self.created = 0
        """How many conversations were created."""
        self._changed: set[int] = set()
        self._users_taken = 0
        self._in_flight: deque[_Former] = deque()
        """Of changes that are planned and not durable, oldest first: almost always empty."""

    # Changes

    def check(self, change: MembersChange, head: int | None) -> None:
        """InvalidError where a change does not follow what is there. `head`: the number that it must stand after."""
        if head is not None and change.after != head:
            raise InvalidError(f"a record of members is after {change.after}, the log before it goes to {head}")
        if change.created == self.is_created(change.conv):
            said = "creates a conversation that is there" if change.created else "changes one that is not there"
            raise InvalidError(f"a record of members {said}")
        if not self.owners_after(change.conv, change.roles, change.removed):
            raise InvalidError("a record of members leaves no owner")

    def reserve(self, changes: Sequence[MembersChange], cursors: Sequence[CursorsChange]) -> None:
        """A commit is planned: what is planned next finds its changes. Users get their indices now, in the order of the
        log."""
        for change in changes:
            self._reserve(change)
        for read in cursors:
            self.users.add(read.seqs)

    def _reserve(self, change: MembersChange) -> None:
        conv = change.conv
        users = self.users.add([*change.roles, *change.removed])
        codes = dict(zip(users.tolist(), self._roles.values_of(conv, users).tolist(), strict=True))
        self._in_flight.append(
            _Former(conv, change.after, self._flag(conv), self.version(conv), self._roles.count(conv), codes)
        )
        self._changed.add(conv)
        self._room_for(conv)
        self.created += self._flags[conv] == 0
        self._flags[conv] = _CREATED | (_PUBLIC if change.public else 0)
        self._versions[conv] += 1
        k = len(change.roles)
        if k:
            self._roles.put(conv, users[:k], np.array([CODES[r] for r in change.roles.values()], np.int8))
        if len(users) > k:
            self._roles.remove(conv, users[k:])

    def mark_durable(self, changes: Sequence[MembersChange], cursors: Sequence[CursorsChange]) -> None:
        """The oldest planned commit is durable: readers may be told. No cursor goes back."""
        for change in changes:
            former = self._in_flight.popleft()
            assert former.conv == change.conv
        for read in cursors:
            self._changed.add(read.conv)
            users = self.users.add(read.seqs)
            seqs = np.array(list(read.seqs.values()), np.int64)
            self._cursors.put(read.conv, users, np.maximum(seqs, self._cursors.values_of(read.conv, users)))

    def _room_for(self, conv: int) -> None:
        n = len(self._flags)
        if conv >= n:
            size = max(conv + 1, n + n // 4)
            self._flags = np.concatenate([self._flags, np.zeros(size - n, np.int8)])
            self._versions = np.concatenate([self._versions, np.zeros(size - n, np.int64)])

    def told(self, conv_id: str, change: MembersChange) -> MembersChanged:
        """What is said of a change that was just planned, once it is durable."""
        version = self.version(change.conv)
        return MembersChanged(conv_id, change.after, version, change.removed, change.public)

    # What was planned

    def is_created(self, conv: int) -> bool:
        """Whether somebody created a conversation (-1: one that is not known)."""
        return bool(self._flag(conv))

    def is_public(self, conv: int) -> bool:
        """Whether anybody may listen to it."""
        return bool(self._flag(conv) & _PUBLIC)

    def _flag(self, conv: int) -> int:
        return int(self._flags[conv]) if 0 <= conv < len(self._flags) else 0

    def version(self, conv: int) -> int:
        """How often its members were changed."""
        return int(self._versions[conv]) if 0 <= conv < len(self._versions) else 0

    def count(self, conv: int) -> int:
        """How many members it has."""
        return self._roles.count(conv)

    def roles_among(self, conv: int, users: Collection[str]) -> dict[str, Role]:
        """The roles of those users who have one."""
        if not users:
            return {}
        codes = self._roles.values_of(conv, self.users.find(*text_columns(users))).tolist()
        return {user: _ROLES[code] for user, code in zip(users, codes, strict=True) if code}

    def all_roles(self, conv: int) -> dict[str, Role]:
        """Every member with its role."""
        users, codes = self._roles.of(conv)
        return {name: _ROLES[code] for name, code in zip(self.users.names(users), codes.tolist(), strict=True)}

    def owners_after(self, conv: int, roles: dict[str, Role], removed: tuple[str, ...]) -> int:
        """How many owners there will be."""
        before = self.roles_among(conv, [*roles, *removed])
        _, codes = self._roles.of(conv)
        owners = int(np.count_nonzero(codes == CODES[Role.OWNER]))
        owners -= sum(role is Role.OWNER for role in before.values())
        return owners + sum(role is Role.OWNER for role in roles.values())

    def forbidden(self, conv: I32, senders: Callable[[], Senders], open_to_all: bool) -> Bools | None:
        """True for each row whose sender may not send; None where all may. `senders` is not called where every
        conversation is open."""
        if not self.created and open_to_all:
            return None
        named = senders()
        out = np.empty(len(conv), np.bool_)
        roles = self._roles
        roles.reserve(len(self._flags))
        sender = self.users.find(named.names_data, named.names_offsets)[named.of_row]
        some = judge_senders(
            conv, sender, self._flags, roles.begins, roles.counts, roles.users, roles.values,
            CODES[Role.MEMBER], not open_to_all, out,
        )  # fmt: skip
        return out if some else None

    # What is durable

    def version_told(self, conv: int) -> int:
        """How often its members were changed, durably; -1: nobody created it."""
        former = self._former(conv)[0] if self._in_flight else None
        version = self.version(conv) if former is None else former.version
        return version or -1

    def afters_in_flight(self, conv: int) -> list[int]:
        """The numbers after which changes stand that are planned and not durable, oldest first."""
        return [former.after for former in self._in_flight if former.conv == conv]

    def _former(self, conv: int) -> tuple[_Former | None, dict[int, int]]:
        """What the oldest change of a conversation that is not durable has replaced, and the roles before all such
        changes of those whom they name."""
        first: _Former | None = None
        codes: dict[int, int] = {}
        for former in self._in_flight:
            if former.conv == conv:
                first = first or former
                codes = {**former.codes, **codes}
        return first, codes

    def roles(self, conv: int, users: list[str], epoch: int) -> Roles:
        """What some users may do."""
        former, before = self._former(conv)
        flags = self._flag(conv) if former is None else former.flags
        index = self.users.find(*text_columns(users)) if users else np.empty(0, np.int32)
        codes = self._roles.values_of(conv, index).tolist()
        found = [before.get(i, code) for i, code in zip(index.tolist(), codes, strict=True)]
        return Roles(
            created=bool(flags),
            public=bool(flags & _PUBLIC),
            version=self.version(conv) if former is None else former.version,
            epoch=epoch,
            roles={user: _ROLES.get(code) for user, code in zip(users, found, strict=True)},
        )

    def page(self, conv: int, after_user: str | None, limit: int, epoch: int) -> MembersPage:
        """The members after a user (None: from the first). InvalidError where nobody knows that one."""
        former, before = self._former(conv)
        after = -1 if after_user is None else self.users.index(after_user)
        if after_user is not None and after < 0:
            raise InvalidError(f"after={after_user!r}: no such member")
        users, codes = self._roles.of(conv)
        begin = int(np.searchsorted(users, after, "right"))
        end = begin + limit + len(before) + 1
        found = dict(zip(users[begin:end].tolist(), codes[begin:end].tolist(), strict=True))
        found |= {user: code for user, code in before.items() if user > after}
        there = sorted(user for user, code in found.items() if code)
        entries = [MemberEntry(self.users.name(u), _ROLES[found[u]]) for u in there[:limit]]
        flags = self._flag(conv) if former is None else former.flags
        return MembersPage(
            created=bool(flags),
            public=bool(flags & _PUBLIC),
            version=self.version(conv) if former is None else former.version,
            epoch=epoch,
            total=self.count(conv) if former is None else former.total,
            members=entries,
            next=entries[-1].user if len(there) > limit else None,
        )

    def cursor(self, conv: int, user: str) -> int:
        """Up to where a user has read; 0: it has not said."""
        return self.cursors_among(conv, [user])[user]

    def cursors_among(self, conv: int, users: Collection[str]) -> dict[str, int]:
        """The same of many."""
        if not users:
            return {}
        seqs = self._cursors.values_of(conv, self.users.find(*text_columns(users))).tolist()
        return dict(zip(users, seqs, strict=True))

    # Checkpoints

    @property
    def is_empty(self) -> bool:
        """Whether there was never a member, nor a cursor."""
        return not self.users.count

    def take_changed(self) -> tuple[I64, int]:
        """Conversations whose members or cursors changed since the last time, ascending, and how many users there were
        then."""
        changed = np.array(sorted(self._changed), np.int64)
        before = self._users_taken
        self._changed = set()
        self._users_taken = self.users.count
        return changed, before

    def columns(self, conversations: I64, users_from: int = 0) -> MembersColumns:
        """A snapshot of some conversations, and of the users from an index on, while nothing is in flight."""
        assert not self._in_flight
        known = conversations < len(self._flags)
        flags = np.zeros(len(conversations), np.int8)
        versions = np.zeros(len(conversations), np.int64)
        flags[known] = self._flags[conversations[known]]
        versions[known] = self._versions[conversations[known]]
        roles = self._roles.columns(conversations)
        return MembersColumns(
            *self.users.columns(users_from), flags, versions, roles, self._cursors.columns(conversations)
        )

    def restore(self, names: list[str], conversations: I64, columns: MembersColumns) -> None:
        """Put a snapshot over what is here: further users, and some conversations. InvalidError where its lists do not
        fit together."""
        before = self.users.count
        self.users.add(names)
        roles = columns.roles
        cursors = columns.cursors
        for _, its, _ in (roles, cursors):
            if len(its) and not 0 <= its.min() <= its.max() < before + len(names):
                raise InvalidError("it names a user who is not there")
        if self.users.count != before + len(names) or (
            len(roles[2]) and not 1 <= roles[2].min() <= roles[2].max() <= len(CODES)
        ):
            raise InvalidError("it names a user twice, or a role that there is not")
        if len(conversations):
            self._room_for(int(conversations.max()))
        self._flags[conversations] = columns.flags
        self._versions[conversations] = columns.versions
        self.created = int(np.count_nonzero(self._flags))
        self._roles.restore(conversations, *roles)
        self._cursors.restore(conversations, *cursors)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        lists_bytes = self._roles.nbytes + self._cursors.nbytes
        return self.users.nbytes + lists_bytes + self._flags.nbytes + self._versions.nbytes
