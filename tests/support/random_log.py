"""Shards that do anything they may, and what their logs and history say of them: to compare ways of recovery."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imray.core.members import Role
from imray.core.routing import log_of
from imray.core.state import ShardState
from imray.history.merging import merge_segments
from imray.history.table import Table
from imray.log import checkpoint
from imray.log.marks import LogEnd
from imray.log.schema import CursorsRecord, LogRecord, MembersRecord, RecordKind
from imray.log.store import LocalStore, Store
from imray.settings import Settings
from imray.shard import recovery
from imray.shard.recovery import replay
from tests.support.analytics_logs import HotLog
from tests.support.batches import SEED, Msg, msg_id
from tests.support.deleting import log_end, mark_and_delete

CONVS = ["room", "lobby", "plain", "ätsch"]
USERS = ["ann", "bob", "eve"]
_SMALL = Settings(merge_step_bytes_max=20_000, run_group_bytes=300)


class RandomLog:
    """A home shard and its partitions that do anything they may."""

    def __init__(self, root: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.log = HotLog(root, clock_ms=1000)
        self.ids = iter(range(1, 1 << 20))
        self.held: list[Any] = []
        self.may_restart = True

    def step(self) -> None:
        """One thing."""
        rng = self.rng
        hot = self._hot()
        what = rng.random()
        if what < 0.45:
            self.log.send(0, *self._some(rng.choice(CONVS)))
        elif what < 0.55 and (asked := sorted(set(hot) - self._created())):
            conv = rng.choice(asked)
            slot = rng.randint(1, hot[conv])
            if len(self.held) < 3:
                self.held.append(self.log.ask(slot, *self._some(conv)))
        elif what < 0.75 and self.held:
            self.log.write(*self.held.pop(0))
        elif what < 0.83:
            self._members(rng.choice(CONVS))
        elif what < 0.88:
            self.log.make_hot(rng.choice(CONVS[:2]), rng.randint(1, 3))
        elif what < 0.92 and hot:
            self.write_held()
            self.log.make_cold(rng.choice(sorted(hot)))
        elif what < 0.96 and self.may_restart:
            self.held.clear()  # what was granted and not written becomes void
            self.log.restart()
        elif hot and not self.held:
            self.log.open_partition(rng.randint(1, max(hot.values())))

    def write_held(self) -> None:
        """Write what was granted and is not written yet."""
        while self.held:
            self.log.write(*self.held.pop(0))

    def _hot(self) -> dict[str, int]:
        state = self.log.committer.state
        return {state.conversations.name(c): group.partitions for c, group in state.hot.items()}

    def _created(self) -> set[str]:
        """Conversations that have members: whoever asks for numbers there must say who sends."""
        state = self.log.committer.state
        return {conv for conv in CONVS if state.members.is_created(state.conversations.index(conv))}

    def _some(self, conv: str) -> list[Msg]:
        return [
            Msg(conv, msg_id(next(self.ids)), b"text", self.rng.choice(USERS)) for _ in range(self.rng.randint(1, 4))
        ]

    def _members(self, conv: str) -> None:
        """Members, or cursors, of a conversation."""

        def records(state: ShardState) -> list[LogRecord]:
            index = state.conversations.index(conv)
            head = int(state.conversations.heads[index]) if index >= 0 else 0
            if self.rng.random() < 0.5 or conv == "room":
                read = {user: self.rng.randint(1, 50) for user in self.rng.sample(USERS, 2)}
                return [LogRecord(conv, head, RecordKind.CURSORS, CursorsRecord(read))]
            created = not state.members.is_created(index)
            roles = {self.rng.choice(USERS[1:]): self.rng.choice(list(Role)), "ann": Role.OWNER}
            body = MembersRecord(self.rng.random() < 0.5, roles, [], created)
            return [LogRecord(conv, head, RecordKind.MEMBERS, body)]

        self.log.record(records)


def view(state: ShardState) -> dict[str, Any]:
    """A state as plain values, by names; without ids and postings."""
    c = state.conversations
    names = [c.name(i) for i in range(c.count)]
    return {
        "heads": {c.name(i): int(c.heads[i]) for i in range(c.count)},
        "stable": {c.name(i): int(c.stable[i]) for i in range(c.count)},
        "hot": {
            c.name(i): (g.partitions, g.ceiling, g.stable, g.by_rate, g.floor, list(g.done), list(g.held))
            for i, g in state.hot.items()
        },
        "members": {name: state.members.all_roles(c.index(name)) for name in names},
        "versions": {name: (state.members.version(i), state.members.is_public(i)) for i, name in enumerate(names)},
        "cursors": {name: state.members.cursors_among(c.index(name), USERS) for name in names},
        "log": state.log,
        "partitions": state.partitions,
    }


def folded(store: Store) -> ShardState:
    """The state from the whole logs."""
    state = ShardState(SEED)
    replay(store, 0, state)
    for slot in sorted(state.partitions):
        replay(store, 0, state, slot)
    return state


def remade(store: Store) -> ShardState:
    """The state from the history and what is left of the logs."""
    history = recovery._History(store, 0, SEED, [])
    state = checkpoint.restore(store, 0, SEED, [], history.recovered)
    replay(store, 0, state)
    history.add_partitions(state)
    for slot in sorted(state.partitions):
        replay(store, 0, state, slot)
    return state


def merged(store: LocalStore, cut: Mapping[int, LogEnd], settings: Settings = _SMALL) -> None:
    """Merge the logs up to a cut, in as many steps as that takes."""
    table = Table(store)
    while True:
        base = table.snapshot()
        files, ends = merge_segments(store, 0, {log: base.end(log) for log in cut}, cut, settings)
        if not ends:
            return
        moves = {log: (base.merged.get(log, 0), end.segment) for log, end in ends.items()}
        table.commit(base, files, [], moves, "WRITE", 1)


def cut_anywhere(store: Store, rng: random.Random, slots: list[int]) -> dict[int, LogEnd]:
    """Any place of each log."""
    cut = {}
    for log in [0, *(log_of(0, slot) for slot in slots)]:
        last = log_end(store, log).segment
        if last and (end := log_end(store, log, rng.randint(1, last))).segment:
            cut[log] = end
    return cut


def delete_merged(store: LocalStore) -> None:
    """Delete all that is merged."""
    snapshot = Table(store).snapshot()
    for log, last in snapshot.merged.items():
        mark_and_delete(store, log, last, version=snapshot.version)
