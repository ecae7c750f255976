"""Members and cursors, as they are asked of a shard: judged at their turn, logged, answered when durable.

Owns what waits for it, and the merging of cursors. Does not own the rules (`imray.core.membership`), nor the state
(`imray.core.member_state`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from imray.core.errors import InvalidError, StorageError
from imray.core.members import Changed, Cursor, MembersChange, MembersPage, Roles
from imray.core.membership import Change, Create, judge
from imray.core.replies import Refusal, Refused
from imray.core.state import ShardState
from imray.log.schema import CursorsRecord, LogRecord, MembersRecord, RecordKind
from imray.shard.jobs import Records
from imray.shard.runtime import StateThread

T = TypeVar("T")

_CHANGES_WAITING_MAX = 1000
"""Each is a commit of its own: more would be answered too late for their callers."""
_MARKS_MAX = 20_000
"""In one commit: planned in about 50 ms."""


@dataclass
class _Mark:
    """Somebody has read up to a number."""

    conv_id: str
    user: str
    seq: int
    outcome: Cursor | Refusal | None = None
    """True once what was planned is durable."""


class _ChangeRecords:
    """One call that changes members, as `imray.shard.jobs.Records`."""

    def __init__(self, ask: Create | Change) -> None:
        self._ask = ask
        self.outcome: Changed | Refusal | None = None
        """True once what was planned is durable."""

    def __call__(self, state: ShardState) -> list[LogRecord]:
        members = state.members
        conv = state.conversations.index(self._ask.conv_id)
        head = int(state.conversations.heads[conv]) if conv >= 0 else 0
        is_leave = isinstance(self._ask, Change) and self._ask.is_leave
        if is_leave and not members.roles_among(conv, [self._ask.actor]):
            self.outcome = Changed(0, 0, 0)  # it is so; more a stranger must not learn, nor whether there is such one
            return []
        found = judge(members, conv, head, self._ask)
        if isinstance(found, Refusal):
            self.outcome = found
            return []
        total = members.count(conv)
        if found is None:
            self.outcome = Changed(head, members.version(conv), total)
            return []
        total += len(found.roles) - len(members.roles_among(conv, found.roles)) - len(found.removed)
        self.outcome = Changed(head, members.version(conv) + 1, total, found.created)
        return [record_of(self._ask.conv_id, found)]


def record_of(conv_id: str, change: MembersChange) -> LogRecord:
    """A change as it stands in the log."""
    body = MembersRecord(public=change.public, set=change.roles, removed=list(change.removed), created=change.created)
    return LogRecord(conv_id, change.after, RecordKind.MEMBERS, body)


class _CursorRecords:
    """All marks that came while a commit was on its way, as `imray.shard.jobs.Records`: one record a conversation.

    Marks are added in the event loop, its turn comes in the thread of the state: each is in it, or was not added."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # for a moment only: the event loop waits for it
        self._marks: list[_Mark] = []
        self._closed = False
        self.done: asyncio.Task[Refusal | None] | None = None

    def add(self, mark: _Mark) -> bool:
        """False: it takes no more."""
        with self._lock:
            if self._closed:
                return False
            self._marks.append(mark)
            return True

    def close(self) -> list[_Mark]:
        """Take no more: all that were added."""
        with self._lock:
            self._closed = True
            return self._marks

    @property
    def is_full(self) -> bool:
        """Whether so many wait for its turn that there is no room for more."""
        return len(self._marks) >= _MARKS_MAX and not self._closed

    def __call__(self, state: ShardState) -> list[LogRecord]:
        by_conversation: dict[str, list[_Mark]] = {}
        for mark in self.close():
            by_conversation.setdefault(mark.conv_id, []).append(mark)
        records = (self._record(state, conv_id, marks) for conv_id, marks in by_conversation.items())
        return [record for record in records if record is not None]

    def _record(self, state: ShardState, conv_id: str, marks: list[_Mark]) -> LogRecord | None:
        conv = state.conversations.index(conv_id)
        head = int(state.conversations.heads[conv]) if conv >= 0 else 0
        seqs: dict[str, int] = {}
        for mark in marks:
            if mark.seq > head:
                detail = f"seq={mark.seq}: the conversation goes to {head}, nobody can have read further"
                mark.outcome = Refusal(Refused.INVALID, detail)
            else:
                seqs[mark.user] = max(mark.seq, seqs.get(mark.user, 0))
        before = state.members.cursors_among(conv, seqs)
        for mark in marks:
            if mark.outcome is None:
                mark.outcome = Cursor(max(seqs[mark.user], before[mark.user]), state.log.epoch)
        higher = {user: seq for user, seq in seqs.items() if seq > before[user]}
        return LogRecord(conv_id, head, RecordKind.CURSORS, CursorsRecord(higher)) if higher else None


def roles_of(state: ShardState, conv_id: str, users: list[str]) -> Roles:
    """What some users may do, as a state has it; in the thread of the state."""
    return state.members.roles(state.conversations.index(conv_id), users, state.log.epoch)


class ShardMembers:
    """What may be asked of one shard."""

    def __init__(
        self,
        record: Callable[[Records], Awaitable[Refusal | None]],
        state: StateThread,
        readable: Callable[[], ShardState | None],
        not_ready: Callable[[], Refusal],
    ) -> None:
        """`record` makes records durable, in the log's order. `readable`: the state that may be read, called in its
        thread; None, and StorageError: none may, for a reason that `not_ready` gives."""
        self._record = record
        self._state = state
        self._readable = readable
        self._not_ready = not_ready
        self._changes = 0
        self._cursors: _CursorRecords | None = None

    async def change(self, ask: Create | Change) -> Changed | Refusal:
        """Create a conversation, or change its members: judged when its turn comes, after all that came before.

        Changed: it is so, and durable. Refusal: nothing was written, but where it is UNAVAILABLE, then that is not
        known: ask again."""
        if self._changes >= _CHANGES_WAITING_MAX:
            return Refusal(Refused.BUSY, "too many changes of members wait: retry later")
        records = _ChangeRecords(ask)
        self._changes += 1
        try:
            refusal = await self._record(records)
        finally:
            self._changes -= 1
        if refusal is not None:
            return refusal
        assert records.outcome is not None
        return records.outcome

    async def mark_read(self, conv_id: str, user: str, seq: int) -> Cursor | Refusal:
        """A user has read up to a number. Cursor: how far it has read, durably; at least so far."""
        mark = _Mark(conv_id, user, seq)
        cursors = self._cursors
        if cursors is not None and cursors.is_full:
            return Refusal(Refused.BUSY, "too many read cursors wait: retry later")
        if cursors is None or not cursors.add(mark):
            cursors = _CursorRecords()
            cursors.add(mark)
            cursors.done = asyncio.create_task(self._record_cursors(cursors))
            self._cursors = cursors
        assert cursors.done is not None
        # whoever goes away takes nobody's mark along
        refusal = await asyncio.shield(cursors.done)
        if refusal is not None:
            return refusal
        assert mark.outcome is not None
        return mark.outcome

    async def _record_cursors(self, cursors: _CursorRecords) -> Refusal | None:
        try:
            return await self._record(cursors)
        finally:
            cursors.close()  # refused, or failed, before its turn: the next mark begins another

    async def cursor(self, conv_id: str, user: str) -> Cursor | Refusal:
        """Up to where a user has read; 0: it has not said."""

        def look(state: ShardState) -> Cursor:
            return Cursor(state.members.cursor(state.conversations.index(conv_id), user), state.log.epoch)

        return await self._read(look)

    async def roles(self, conv_id: str, users: list[str]) -> Roles | Refusal:
        """What some users may do. Works while the shard cannot write."""
        return await self._read(lambda state: roles_of(state, conv_id, users))

    async def page(self, conv_id: str, after_user: str | None, limit: int) -> MembersPage | Refusal:
        """Some of a conversation's members."""

        def look(state: ShardState) -> MembersPage | Refusal:
            try:
                return state.members.page(state.conversations.index(conv_id), after_user, limit, state.log.epoch)
            except InvalidError as e:
                return Refusal(Refused.ABSENT, str(e))

        return await self._read(look)

    async def _read(self, look: Callable[[ShardState], T]) -> T | Refusal:
        def in_thread() -> T | None:
            state = self._readable()
            return None if state is None else look(state)

        try:
            found = await self._state.run(in_thread)
        except StorageError as e:
            return Refusal(Refused.UNAVAILABLE, str(e))
        return self._not_ready() if found is None else found
