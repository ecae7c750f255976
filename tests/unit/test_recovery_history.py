"""Recovery where no checkpoint serves and the log's beginning is gone: history and log give what the whole log gave."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from imray.core.errors import CorruptError, StaleError
from imray.core.members import Role
from imray.core.replies import Appended
from imray.core.routing import log_of
from imray.core.state import ShardState
from imray.history.merging import merge_segments
from imray.history.table import Table
from imray.log import checkpoint
from imray.log.marks import LogEnd, MergeMark, newest_mark, put_mark
from imray.log.schema import CursorsRecord, LogRecord, MembersRecord, RecordKind
from imray.log.segment import segment_prefix
from imray.log.store import LocalStore, Store
from imray.settings import Settings
from imray.shard import recovery
from imray.shard.recovery import replay
from imray.shard.shard_writer import ShardWriter
from tests.support.analytics_logs import FastStore, HotLog
from tests.support.batches import SEED, Msg, answers_of, ipc_of, msg_id, seal
from tests.support.deleting import log_end, mark_and_delete
from tests.support.owners import until_async

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
            self._settled()
            self.log.make_cold(rng.choice(sorted(hot)))
        elif what < 0.96 and self.may_restart:
            self.held.clear()  # what was granted and not written becomes void
            self.log.restart()
        elif hot and not self.held:
            self.log.open_partition(rng.randint(1, max(hot.values())))

    def _settled(self) -> None:
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


@pytest.mark.parametrize("seed", range(6))
def test_history_and_log_give_what_the_whole_log_gave(tmp_path: Path, seed: int) -> None:
    store = FastStore(tmp_path)
    made = RandomLog(tmp_path, seed)
    for _ in range(50):
        made.step()
    made._settled()
    expected = folded(store)
    live = made.log.committer.state
    assert view(expected) | {"hot": {}} == view(live) | {"hot": {}}, "the log itself"
    merged(store, cut_anywhere(store, made.rng, sorted(expected.partitions)))
    delete_merged(store)
    before = len(store.list(segment_prefix(0)))
    assert view(remade(store)) == view(expected)
    made.may_restart = False  # there are no ids before upkeep has made them
    for _ in range(20):
        made.step()
    made._settled()
    assert len(store.list(segment_prefix(0))) > before
    expected = live
    merged(store, {log: log_end(store, log) for log in (0, *(log_of(0, s) for s in expected.partitions))})
    delete_merged(store)
    assert view(remade(store)) == view(expected), "once more, with what came since"


def _plain(root: Path, messages: int = 6) -> tuple[FastStore, HotLog]:
    store = FastStore(root)
    log = HotLog(root)
    for n in range(messages):
        log.send(0, Msg("plain", msg_id(n)))
    return store, log


def _merge_all(store: LocalStore) -> None:
    merged(store, {0: log_end(store, 0)})
    delete_merged(store)


def test_a_shard_opens_from_the_history_alone(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    _merge_all(store)
    log.restart()
    assert log.committer.state.log.epoch == 2
    assert any("from the history" in note for note in log.committer.notes)
    covers = [(s.interval.first, s.interval.last, s.interval.ids) for s in log.committer.intervals]
    assert (covers[0][0], covers[-1][1]) == (1, 7)
    assert all(a[1] + 1 == b[0] for a, b in pairwise(covers)), "adjacent"
    assert sum(ids for *_, ids in covers) == 6


def test_a_partition_is_opened_by_the_table_where_its_mark_is_damaged(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    log.make_hot("room", 1)
    log.send(1, Msg("room", msg_id(100)))
    end = log_end(store, log_of(0, 1))
    merged(store, {0: log_end(store, 0), log_of(0, 1): end})
    delete_merged(store)
    assert recovery.become_partition_writer(store, 0, 1, lambda: 1)[0].segment == end.segment + 1
    name = store.list("merged/log=10001/")[-1]
    data = store.get(name)
    assert data is not None
    store.delete(name)
    store.put_if_absent(name, [data.replace(b"epoch", b"ep0ch")])
    assert recovery.become_partition_writer(store, 0, 1, lambda: 1)[0].segment == end.segment + 2


def test_a_table_that_lost_commits_is_corruption(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    _merge_all(store)
    mark = newest_mark(store, 0)
    assert mark is not None
    store.delete(store.list("merged/log=00000/")[-1])
    put_mark(store, MergeMark(mark.end, mark.version + 1))
    with pytest.raises(CorruptError, match="version"):
        log.restart()


def test_a_damaged_run_is_corruption(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    _merge_all(store)
    name = store.list("history/shard=0000/")[0]
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorruptError, match=r"history/shard=0000"):
        log.restart()


def test_without_deleted_segments_the_log_alone_serves(tmp_path: Path) -> None:
    """The history may be damaged, or not be there at all."""
    store, log = _plain(tmp_path)
    merged(store, {0: log_end(store, 0)})
    for name in store.list("history/shard=0000/"):
        store.delete(name)
    log.restart()
    assert int(log.committer.state.conversations.heads[0]) == 6


def test_a_checkpoint_that_serves_needs_no_history(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    seal(log.committer)
    _merge_all(store)
    for name in store.list("history/shard=0000/"):
        store.delete(name)
    log.restart()
    assert int(log.committer.state.conversations.heads[0]) == 6


def test_a_run_that_was_replaced_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    store, _ = _plain(tmp_path)
    _merge_all(store)
    history = recovery.HistoryState(store, 0, SEED)
    table = Table(store)
    base = table.snapshot()
    gone = base.runs[0][0].files[0]
    for name in base.files:
        store.delete(name)

    class Newer(Table):
        def snapshot(self, known: Any = None) -> Any:
            return type(base)()

    history._table = Newer(store)
    with pytest.raises(StaleError, match=gone.run):
        history.recovered()


@pytest.mark.parametrize("damage", ["no checkpoint yet", "lost", "flipped"])
async def test_old_ids_are_known_again(tmp_path: Path, damage: str) -> None:
    """Their intervals are made from the history, beside the commits; until then who may be known comes back. Fault 24:
    every derived file at once."""
    store, log = _plain(tmp_path)
    log.make_hot("room", 1)
    for n in range(3):
        log.send(1, Msg("room", msg_id(100 + n)))
    if damage != "no checkpoint yet":
        seal(log.committer)
        assert checkpoint.write_twin(store, 0)
    merged(store, {0: log_end(store, 0), log_of(0, 1): log_end(store, log_of(0, 1))})
    delete_merged(store)
    log.close()
    for name in [*store.list("checkpoint/shard=0000/"), *store.list("sealed/shard=0000/")]:
        data = bytearray((tmp_path / name).read_bytes())
        store.delete(name)
        if damage == "flipped":
            data[len(data) // 2] ^= 1
            (tmp_path / name).write_bytes(data)
    shard = ShardWriter(store, 0, SEED, Settings())
    await shard.start()
    assert shard.current is not None
    upkeep = shard.current.upkeep
    await until_async(lambda: not upkeep.at_work, "the ids are there")
    old = [Msg("plain", msg_id(n)) for n in range(6)] + [Msg("room", msg_id(100 + n)) for n in range(3)]
    answer = await shard.append(ipc_of([*old, Msg("plain", msg_id(7))]))
    assert isinstance(answer, Appended)
    rows = [(row.status, row.seq) for row in answers_of(answer)]
    assert rows == [*(("duplicate", n + 1) for n in range(6)), *(("duplicate", n + 1) for n in range(3)), ("new", 7)]
    assert checkpoint.checkpoint_meta(store, checkpoint.checkpoints(store, 0)[-1]).segment > 8, "made, as none served"
    await shard.stop()
