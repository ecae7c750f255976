"""Checkpoints: what they hold comes back, old ones go, a half-written one does no harm."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from imray.core.errors import CorruptError, InvalidError
from imray.core.fold import freeze
from imray.core.postings import Postings
from imray.log import checkpoint, sealed
from imray.log.store import LocalStore
from imray.shard.recovery import replay
from tests.support.batches import SEED, Msg, collect, commit, merge_all, msg_id, open_committer, seal


def _fold(root: Path) -> checkpoint.ShardState:
    state = checkpoint.restore(LocalStore(root), 0, SEED)
    replay(LocalStore(root), 0, state)
    return state


def test_of_an_empty_log(tmp_path: Path) -> None:
    assert checkpoint.restore(LocalStore(tmp_path), 0, SEED).log.segment == 0
    assert checkpoint.partition_progress(LocalStore(tmp_path), 0, 1).segment == 0


def test_state_comes_back(tmp_path: Path) -> None:
    store, committer = LocalStore(tmp_path), open_committer(tmp_path)
    commit(committer, [Msg(f"conv-{i % 100}-ä", msg_id(i)) for i in range(1000)])
    snap = committer.freeze()
    commit(committer, [Msg("conv-1-ä", msg_id(5000)), Msg("after the freeze", msg_id(1))])
    committer.sealed(checkpoint.write(store, snap, []))
    restored = checkpoint.restore(store, 0, SEED)
    assert (restored.log.segment, restored.log.epoch, restored.conversations.count) == (2, 1, 100)
    assert [restored.conversations.name(i) for i in (0, 99)] == ["conv-0-ä", "conv-99-ä"]
    assert set(restored.conversations.heads[:100].tolist()) == {10}
    folded, live = _fold(tmp_path), committer.state
    assert (folded.log.segment, folded.log.digest, folded.recent.count) == (
        live.log.segment,
        live.log.digest,
        live.recent.count,
    )
    assert folded.conversations.copy_columns()[2].tolist() == live.conversations.copy_columns()[2].tolist()
    again = open_committer(tmp_path)
    rows = commit(again, [Msg("conv-7-ä", msg_id(7)), Msg("conv-1-ä", msg_id(5000)), Msg("conv-7-ä", msg_id(8), b"x")])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", 1), ("duplicate", 11), ("new", 11)]


def test_one_freeze_at_a_time(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    snap = committer.freeze()
    assert committer.freeze() is snap, "again after a failure: the same"
    with pytest.raises(InvalidError):
        freeze(committer.state)


def test_collect_keeps_two_and_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    store, committer = LocalStore(tmp_path), open_committer(tmp_path)
    for n in range(9):
        commit(committer, [Msg("c", msg_id(n))])
        seal(committer)
        collect(committer)
        merge_all(committer)
        names = store.list("checkpoint/shard=0000/")
        assert len(names) == min(2, n + 1)
        there = set(store.list("sealed/shard=0000/"))
        for name in names:
            assert {file for i in checkpoint.checkpoint_meta(store, name).intervals for file in i.names} <= there
        assert len(there) <= 3 * 10
    rows = commit(open_committer(tmp_path), [Msg("c", msg_id(n)) for n in range(9)])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", n + 1) for n in range(9)]


def test_what_dead_writers_left_goes_after_the_successors_checkpoint(tmp_path: Path) -> None:
    store, committer = LocalStore(tmp_path), open_committer(tmp_path)
    for n in range(3):
        commit(committer, [Msg("c", msg_id(n))])
        seal(committer)
    commit(committer, [Msg("c", msg_id(9))])
    table = committer.freeze().table
    last = committer.state.log.segment
    left = sealed.seal(store, 0, SEED, table, Postings(), last, pa.array(["c"], pa.large_string()), lambda _: (1, 1))
    successor = open_committer(tmp_path)
    commit(successor, [Msg("c", msg_id(10))])
    seal(successor)
    collect(successor)
    assert not any(store.exists(name) for name in left.interval.names)
    assert len(store.list("checkpoint/shard=0000/")) == 2


def test_files_of_a_try_that_failed_are_used_again(tmp_path: Path) -> None:
    store, committer = LocalStore(tmp_path), open_committer(tmp_path)
    commit(committer, [Msg("c", msg_id(1))])
    snap = committer.freeze()
    checkpoint.write(store, snap, [])
    store.delete("checkpoint/shard=0000/00000000000000000002.parquet")
    committer.sealed(checkpoint.write(store, snap, []))
    assert _fold(tmp_path).log.segment == 2


def test_the_log_below_a_checkpoint_must_be_there(tmp_path: Path) -> None:
    store, committer = LocalStore(tmp_path), open_committer(tmp_path)
    commit(committer, [Msg("c", msg_id(1))])
    seal(committer)
    store.delete("wal/shard=0000/00000000000000000002.parquet")
    with pytest.raises(CorruptError, match="not there"):
        checkpoint.restore(store, 0, SEED)


def test_of_another_shard(tmp_path: Path) -> None:
    store, committer = LocalStore(tmp_path), open_committer(tmp_path)
    seal(committer)
    (name,) = store.list("checkpoint/shard=0000/")
    data = store.get(name)
    assert data is not None
    store.put_if_absent(name.replace("shard=0000", "shard=0001"), [data])
    notes: list[str] = []
    assert checkpoint.restore(store, 1, SEED, notes).log.segment == 0
    assert "of shard 0" in notes[0]
