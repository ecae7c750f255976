"""Members and cursors in tests: changes logged through a committer, and all that a state knows as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from imray.core.member_state import CODES
from imray.core.members import MembersChange, Role
from imray.core.membership import Change, Create, judge
from imray.core.replies import Refusal
from imray.core.state import ShardState
from imray.log.schema import CursorsRecord, LogRecord, RecordKind
from imray.shard.committer import Committer
from imray.shard.jobs import Job
from imray.shard.members import record_of


def planned(committer: Committer, ask: Create | Change) -> Job:
    """A change of members at its turn; nothing where it is refused, or so already."""

    def records(state: ShardState) -> list[LogRecord]:
        conv = state.conversations.index(ask.conv_id)
        head = int(state.conversations.heads[conv]) if conv >= 0 else 0
        found: MembersChange | Refusal | None = judge(state.members, conv, head, ask)
        return [record_of(ask.conv_id, found)] if isinstance(found, MembersChange) else []

    return committer.record(records)


def put(committer: Committer, job: Job) -> Job:
    """Make a job durable."""
    committer.put(job)
    committer.mark_durable(job)
    return job


def change(committer: Committer, ask: Create | Change) -> Job:
    """A change of members, durable."""
    return put(committer, planned(committer, ask))


def create(committer: Committer, conv_id: str, public: bool = False, **roles: Role) -> Job:
    """A conversation with members, created by a service."""
    return change(committer, Create(conv_id, "root", True, public, roles))


def mark_read(committer: Committer, conv_id: str, **seqs: int) -> Job:
    """Cursors, durable."""

    def records(state: ShardState) -> list[LogRecord]:
        head = int(state.conversations.heads[state.conversations.index(conv_id)])
        return [LogRecord(conv_id, head, RecordKind.CURSORS, CursorsRecord(seqs))]

    return put(committer, committer.record(records))


def known(state: ShardState) -> dict[str, Any]:
    """All that a state knows of members and cursors, by name."""
    members = state.members
    columns = members.columns(np.arange(state.conversations.count))
    found: dict[str, Any] = {}
    for conv in range(state.conversations.count):
        cursors = {}
        offsets, users, values = columns.cursors
        for i in range(int(offsets[conv]), int(offsets[conv + 1])):
            cursors[members.users.name(int(users[i]))] = int(values[i])
        found[state.conversations.name(conv)] = (
            members.is_created(conv),
            members.is_public(conv),
            members.version(conv),
            {user: CODES[role] for user, role in members.all_roles(conv).items()},
            cursors,
        )
    return {name: what for name, what in found.items() if what != (False, False, 0, {}, {})} | {
        "created": members.created
    }
