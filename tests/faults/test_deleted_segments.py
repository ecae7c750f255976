"""Following names where segments were deleted: a reader, and a checkpoint, behind the mark begin anew; nothing is
called corrupt that is only gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imray.core.errors import CorruptError, StaleError
from imray.core.log_progress import LogProgress
from imray.log import checkpoint
from imray.log.reader import read_log
from imray.log.segment import segment_name
from imray.log.store import Store
from imray.shard import recovery
from imray.shard.committer import Committer
from tests.support.analytics_logs import FastStore, writer_of
from tests.support.batches import SEED, Msg, commit, msg_id, open_committer, seal
from tests.support.deleting import log_end, mark_and_delete

ROOM = "room"


def _merged(committer: Committer) -> list[int]:
    """The live writer goes on, makes two checkpoints, and what they cover is merged and deleted."""
    for i in range(3):
        commit(committer, [Msg(ROOM, msg_id(100 + i))])
    seal(committer)
    commit(committer, [Msg(ROOM, msg_id(200))])
    seal(committer)
    return mark_and_delete(committer.store, 0, committer.state.log.segment - 1)


# Following names


def _read(store: Store, progress: LogProgress) -> Callable[[], list[int]]:
    return lambda: [s.meta.segment for s in read_log(store, 0, progress)]


def test_who_follows_names_over_deleted_segments_begins_anew(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    committer = open_committer(store)
    for n in range(4):
        commit(committer, [Msg(ROOM, msg_id(n))])
    old = log_end(store, 0, 2).progress()
    assert mark_and_delete(store, 0, 4) == [2, 3, 4]
    with pytest.raises(StaleError):
        _read(store, old)()
    with pytest.raises(StaleError):
        list(read_log(store, 0, old, last=5))
    assert _read(store, log_end(store, 0, 4).progress())() == [5]
    store.delete(segment_name(0, 5))
    with pytest.raises(CorruptError, match="not there"):
        list(read_log(store, 0, log_end(store, 0, 4).progress(), last=5))


def test_the_end_of_the_log_is_none_where_it_was_deleted(tmp_path: Path) -> None:
    """All that follows is merged and gone: nothing but the mark tells that from the log's end."""
    store = FastStore(tmp_path)
    committer = open_committer(store)
    commit(committer, [Msg(ROOM, msg_id(1))])
    old = log_end(store, 0).progress()
    commit(committer, [Msg(ROOM, msg_id(2))])
    mark_and_delete(store, 0)
    with pytest.raises(StaleError):
        _read(store, old)()


def test_a_stray_fence_is_no_corruption(tmp_path: Path) -> None:
    """It chains to what was there once, or does not: either way it lies below the mark."""
    store = FastStore(tmp_path)
    committer = open_committer(store)
    commit(committer, [Msg(ROOM, msg_id(1))])
    old = log_end(store, 0, 1).progress()
    mark_and_delete(store, 0)
    for message in (2, 3):
        commit(committer, [Msg(ROOM, msg_id(message))])
    stray = recovery.Writer(store, 0, old)
    assert stray.fence(1)
    with pytest.raises(StaleError):
        _read(store, old)()
    with pytest.raises(StaleError):
        _read(store, LogProgress(segment=1, epoch=1, digest=b"another digest!!"))()


def test_what_was_recovered_without_a_fence_is_not_current_where_more_was_merged(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    committer = open_committer(store)
    seal(committer)
    readable = recovery.Readable(checkpoint.restore(store, 0, SEED), True)
    assert readable.is_current(store, 0)
    commit(committer, [Msg(ROOM, msg_id(1))])
    mark_and_delete(store, 0)
    assert not readable.is_current(store, 0)


# Checkpoints


def test_the_segment_that_a_checkpoint_names_may_be_deleted(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    committer = open_committer(store)
    commit(committer, [Msg(ROOM, msg_id(1))])
    seal(committer)
    mark_and_delete(store, 0)
    assert not store.exists(segment_name(0, 2))
    notes: list[str] = []
    assert checkpoint.restore(store, 0, SEED, notes).log.segment == 2
    assert notes == []
    stray = recovery.Writer(store, 0, LogProgress(segment=1))
    assert stray.fence(1)
    assert checkpoint.restore(store, 0, SEED, notes).log.segment == 2, "what stands there now is no part of the log"
    assert notes == []


def test_a_checkpoint_below_the_mark_serves_nobody(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    committer = open_committer(store)
    seal(committer)
    _merged(committer)
    newest = checkpoint.checkpoints(store, 0)[-2:]
    notes: list[str] = []
    assert checkpoint.restore(store, 0, SEED, notes).log.segment == committer.state.log.segment
    for name in newest:
        store.delete(name)
    with pytest.raises(StaleError):
        recovery.replay(store, 0, checkpoint.restore(store, 0, SEED, notes))
    assert "is deleted" in notes[0]


def test_a_later_writer_reads_over_nothing_that_is_gone(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    _merged(open_committer(store))
    writer = writer_of(tmp_path, 0)
    assert (writer.segment, writer.epoch) == (6, 2)
