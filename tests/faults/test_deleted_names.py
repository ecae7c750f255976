"""Faults 8 and 22: a writer that slept while what it was about to take, or to follow, was merged and deleted.

Each interleaving is made by hand, and made once more without the rule that it is about: what the rule prevents happens
then."""

from __future__ import annotations

from pathlib import Path

import pytest

from imray.core.errors import CorruptError, FencedError, StaleError
from imray.core.log_progress import LogProgress
from imray.core.routing import log_of
from imray.log import checkpoint, reader
from imray.log.marks import marked
from imray.log.reader import read_log
from imray.log.schema import segment_table
from imray.log.segment import segment_name
from imray.log.store import Store
from imray.shard import recovery
from imray.shard.committer import Committer
from imray.shard.recovery import become_partition_writer
from tests.support.analytics_logs import FastStore, HotLog
from tests.support.batches import Msg, commit, msg_id, open_committer, prepared, seal
from tests.support.deleting import SleepyStore, log_end, mark_and_delete
from tests.support.groups import Group
from tests.support.owners import until_async

ROOM = "room"


def _no_look(_store: Store, _log: int, _segment: int) -> None:
    """The rule that is left out."""


def _merged(committer: Committer, n: int = 3) -> list[int]:
    """The live writer goes on, makes two checkpoints, and what they cover is merged and deleted."""
    for i in range(n):
        commit(committer, [Msg(ROOM, msg_id(100 + i))])
    seal(committer)
    commit(committer, [Msg(ROOM, msg_id(200))])
    seal(committer)
    return mark_and_delete(committer.store, 0, committer.state.log.segment - 1)


# Fault 22: asleep between reading and fencing


def _own_log(root: Path) -> tuple[Committer, SleepyStore]:
    """A writer that lives, and the store of a successor that will fall asleep before its fence."""
    old = open_committer(FastStore(root))
    commit(old, [Msg(ROOM, msg_id(1))])
    return old, SleepyStore(root, 0, lambda: _merged(old))


def test_a_shards_fence_under_a_deleted_name_is_none(tmp_path: Path) -> None:
    old, store = _own_log(tmp_path)
    new = open_committer(store)
    assert marked(store, 0) == 5
    assert store.exists(segment_name(0, 3)), "its stray fence stays, and is no part of the log"
    assert (new.writer.segment, new.state.log.epoch) == (7, 2)
    assert [r.seq for r in commit(new, [Msg(ROOM, msg_id(2))])] == [6]
    with pytest.raises(FencedError):
        commit(old, [Msg(ROOM, msg_id(3))])
    again = commit(open_committer(FastStore(tmp_path)), [Msg(ROOM, msg_id(n)) for n in (2, 4)])
    assert [(r.status, r.seq) for r in again] == [("duplicate", 6), ("new", 7)]


def test_without_the_look_a_message_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, store = _own_log(tmp_path)
    monkeypatch.setattr(recovery, "check_not_deleted", _no_look)
    monkeypatch.setattr(reader, "check_not_deleted", _no_look)
    monkeypatch.setattr(checkpoint, "checkpoints", lambda *_: [])  # a newer one says the same
    lost = commit(open_committer(store), [Msg(ROOM, msg_id(2))])
    assert [r.seq for r in lost] == [2], "acked, under a number of another message, and a name that was deleted"
    assert [r.status for r in commit(old, [Msg(ROOM, msg_id(2))])] == ["new"], "the log does not have it"


def test_a_partitions_fence_under_a_deleted_name_is_none(tmp_path: Path) -> None:
    log, store = _partition_log(tmp_path)
    with pytest.raises(StaleError, match="log 10001 is merged up to segment 5"):
        become_partition_writer(store, 0, 1, lambda: 1)
    assert store.exists(segment_name(10_001, 3)), "its stray fence"
    progress, late = become_partition_writer(store, 0, 1, lambda: 1)
    assert (progress.segment, late.epoch) == (6, 2)
    assert log.grants.register(1, late.epoch, late.segment) == []


def test_without_the_look_its_home_still_registers_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home shard has read past that name: the second of two rules for the same."""
    log, store = _partition_log(tmp_path)
    monkeypatch.setattr(recovery, "check_not_deleted", _no_look)
    monkeypatch.setattr(reader, "check_not_deleted", _no_look)
    _, slow = become_partition_writer(store, 0, 1, lambda: 1)
    assert slow.segment == 3, "it believes in its fence"
    assert log.grants.register(1, slow.epoch, slow.segment) is None


def _partition_log(root: Path) -> tuple[HotLog, SleepyStore]:
    """A partition's writer that lives, and the store of a successor that will fall asleep before its fence."""
    log = HotLog(root)
    log.make_hot(ROOM, 1)
    log.send(1, Msg(ROOM, msg_id(1)))

    def meanwhile() -> None:
        for n in range(2, 5):
            log.send(1, Msg(ROOM, msg_id(n)))
        log.send(0, Msg(ROOM, msg_id(50)))
        seal(log.committer)
        assert mark_and_delete(log.committer.store, log_of(0, 1)) == [2, 3, 4, 5]

    return log, SleepyStore(root, log_of(0, 1), meanwhile)


def _zombie_home(root: Path) -> HotLog:
    """A home shard that falls asleep before it fences a partition, whose writer has written a block meanwhile; its
    successor reads that, and it is merged and deleted."""
    log = HotLog(root)
    log.make_hot(ROOM, 1)
    log.send(1, Msg(ROOM, msg_id(1)))
    held = log.ask(1, Msg(ROOM, msg_id(2)))

    def meanwhile() -> None:
        table, granted, notes, slot = held
        writer = log.slots[slot]
        numbered = segment_table(table, None, granted.expanded().seq, 1)
        encoded = writer.encode(numbered, 1, notes, granted.sequencer)
        writer.put(encoded)  # and its report is lost
        successor = HotLog(root)
        successor.send(0, Msg(ROOM, msg_id(60)))
        seal(successor.committer)
        assert 3 in mark_and_delete(successor.committer.store, log_of(0, 1))

    log.committer.store = SleepyStore(root, log_of(0, 1), meanwhile)
    return log


def test_a_home_shards_fence_under_a_deleted_name_says_nothing(tmp_path: Path) -> None:
    log = _zombie_home(tmp_path)
    with pytest.raises(StaleError):
        log.grants.fence(1)
    assert [b.lost for b in log.grants.blocks.outstanding.values()] == [False], "nothing is concluded from it"


def test_without_the_look_a_log_is_called_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stray fence is read as a part of the log, and what its successor wrote does not follow that."""
    log = _zombie_home(tmp_path)
    monkeypatch.setattr(recovery, "check_not_deleted", _no_look)
    monkeypatch.setattr(reader, "check_not_deleted", _no_look)
    with pytest.raises(CorruptError):
        log.grants.fence(1)


def test_nobody_fences_after_a_stray_fence(tmp_path: Path) -> None:
    """A second sleeper finds the first one's fence, which chains to all that it has read: its own, after that, would
    stand where the log goes on, and nothing would follow it."""
    old, store = _own_log(tmp_path)
    known = log_end(store, 0).progress()
    _merged(old)
    mark_and_delete(store, 0)
    assert recovery.Writer(store, 0, known).fence(1)

    def read_on() -> None:
        for segment in read_log(store, 0, known):
            recovery.step(known, segment)

    with pytest.raises(StaleError):
        recovery.fence_log(store, 0, known, None, read_on, lambda: 1)
    assert [r.status for r in commit(old, [Msg(ROOM, msg_id(9))])] == ["new"], "the log's writer noticed nothing"


def test_a_name_that_was_taken_and_deleted_at_once_is_no_full_disk(tmp_path: Path) -> None:
    """Its fence found the name taken, and looked at who had it when that was gone."""
    old, _ = _own_log(tmp_path)
    known = log_end(FastStore(tmp_path), 0).progress()

    class Slow(FastStore):
        def get(self, name: str) -> bytes | None:
            if name == segment_name(0, 3) and self.exists(name):
                _merged(old)
                assert not self.exists(name)
            return super().get(name)

    commit(old, [Msg(ROOM, msg_id(2))])
    assert not recovery.Writer(Slow(tmp_path), 0, known).fence(1), "as any other writer's"


def test_a_foreign_file_among_marks_is_told(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    store.put_if_absent("merged/log=00000/readme", [b"x"])
    with pytest.raises(CorruptError, match="foreign"):
        marked(store, 0)


async def test_a_home_shard_that_finds_its_successors_deletions_stops_for_good(tmp_path: Path) -> None:
    """It is not the one that should open the log anew: that would fence its successor."""
    async with Group(FastStore(tmp_path)) as group:
        assert await group.home.make_hot(ROOM, 1) is None
        await group.send(1, Msg(ROOM, msg_id(1)))
        current = group.home.current
        assert current is not None
        mark_and_delete(group.store, log_of(0, 1))
        # as if it had slept since before that: what it knows ends where the log began
        current.hot.grants.committer.state.partitions[1] = LogProgress()
        group.new_partition(1)
        await until_async(lambda: group.home.loop.replaced, "it stops")


# Fault 8: asleep, fenced, and what followed is deleted


@pytest.mark.parametrize("fences_go", [False, True])
def test_a_fence_stays_where_a_former_writer_will_put(tmp_path: Path, fences_go: bool) -> None:
    old = open_committer(FastStore(tmp_path))
    commit(old, [Msg(ROOM, msg_id(1))])
    new = open_committer(FastStore(tmp_path))
    commit(new, [Msg(ROOM, msg_id(2))])
    seal(new)
    commit(new, [Msg(ROOM, msg_id(3))])
    seal(new)
    mark_and_delete(new.store, 0, fences=fences_go)
    if not fences_go:
        with pytest.raises(FencedError):
            commit(old, [Msg(ROOM, msg_id(9))])
        return
    assert [r.seq for r in commit(old, [Msg(ROOM, msg_id(9))])] == [2], "acked into nowhere: so fences are kept"
    assert [r.seq for r in commit(open_committer(FastStore(tmp_path)), [Msg(ROOM, msg_id(9))])] == [4]


def test_a_writer_that_was_replaced_is_not_the_last_though_its_own_segment_is_gone(tmp_path: Path) -> None:
    """Its last put has landed, was taken over by its successor, merged and deleted before it heard of it."""
    old = open_committer(FastStore(tmp_path))
    job = old.plan([prepared([Msg(ROOM, msg_id(1))])])
    assert job.encoded is not None
    old.writer._put(job.encoded.segment, job.encoded.parts, job.encoded.digest)
    assert old.writer.is_last()
    new = open_committer(FastStore(tmp_path))
    seal(new)
    mark_and_delete(new.store, 0)
    assert not old.writer.is_last()
    assert not old.writer.is_last(or_own_process=True)
    assert new.writer.is_last()


def test_a_partition_without_a_checkpoint_begins_at_the_mark(tmp_path: Path) -> None:
    log, store = _partition_log(tmp_path)
    store.wake()
    for name in checkpoint.checkpoints(store, 0):
        store.delete(name)
    assert checkpoint.partition_progress(store, 0, 1).segment == 5
    assert become_partition_writer(store, 0, 1, lambda: 1)[1].segment == 6
    log.close()
