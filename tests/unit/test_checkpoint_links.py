"""What checkpoints build on is damaged: a link's twin stays, nothing is built on what is broken, nothing whole goes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from analytics import audit
from imray.core import checkpoint_chain
from imray.history.cut import cut_of
from imray.log import checkpoint
from imray.log.checkpoint_file import other_name, read_checkpoint
from imray.log.manifest import create_or_open
from imray.shard.committer import Committer
from tests.support.analytics_logs import FastStore
from tests.support.batches import SEED, Msg, collect, commit, msg_id, open_committer, seal


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_chain, "ALWAYS_BASE_ROWS", 0)


def _chain(root: Path, twin_of_base: bool = True) -> tuple[FastStore, Committer, str]:
    """A base, its twin, a delta and its twin."""
    store = FastStore(root)
    create_or_open(store, 1)
    committer = open_committer(store)
    commit(committer, [Msg(f"conv-{i}", msg_id(i)) for i in range(20)])
    seal(committer)
    if twin_of_base:
        assert checkpoint.write_twin(store, 0)
    commit(committer, [Msg("conv-3", msg_id(100))])
    seal(committer)
    assert checkpoint.write_twin(store, 0)
    return store, committer, committer.state.checkpoints.links[0].name


def _damage(store: FastStore, name: str, how: str) -> None:
    if how == "lost":
        store.delete(name)
        return
    data = bytearray((store.root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (store.root / name).write_bytes(data)


def _send(committer: Committer, n: int) -> None:
    commit(committer, [Msg("conv-3", msg_id(n))])
    seal(committer)
    collect(committer)


@pytest.mark.parametrize("how", ["lost", "flipped"])
def test_the_twin_that_stands_in_for_a_link_stays(tmp_path: Path, how: str) -> None:
    store, committer, base = _chain(tmp_path)
    _damage(store, base, how)
    collect(committer)
    assert other_name(base) in checkpoint.checkpoints(store, 0)
    assert checkpoint.restore(store, 0, SEED).log.segment == committer.state.log.segment
    _send(committer, 101)
    assert cut_of(store, 0)[0].segment == committer.state.log.segment, "it serves, by the twin"
    assert not committer.state.checkpoints.links, "and one file of two is not enough to build on"
    _send(committer, 102)
    newest = read_checkpoint(store, checkpoint.checkpoints(store, 0)[-1])
    assert not newest.meta.chain


@pytest.mark.parametrize("how", ["lost", "flipped"])
def test_nothing_is_built_on_a_base_that_is_broken(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    store, committer, base = _chain(tmp_path, twin_of_base=False)
    before = checkpoint.checkpoints(store, 0)
    _damage(store, base, how)
    with caplog.at_level(logging.WARNING):
        _send(committer, 101)
    assert base in caplog.text
    assert set(checkpoint.checkpoints(store, 0)) == set(before) - ({base} if how == "lost" else set()), (
        "no further file, and none goes before there is one that serves"
    )
    _send(committer, 102)
    (name,) = checkpoint.checkpoints(store, 0)
    assert not read_checkpoint(store, name).meta.chain, "all again"
    assert checkpoint.restore(store, 0, SEED).log.segment == committer.state.log.segment
    _send(committer, 103)
    assert len(read_checkpoint(store, checkpoint.checkpoints(store, 0)[-1]).meta.chain) == 1


def test_older_ones_stay_while_newer_ones_build_on_what_is_broken(tmp_path: Path) -> None:
    """Two newer ones are there by name, and serve nobody."""
    store, committer, first = _chain(tmp_path, twin_of_base=False)
    committer.state.checkpoints.made((), 0)
    _send(committer, 101)  # a base of its own
    second = committer.state.checkpoints.links[0].name
    commit(committer, [Msg("conv-3", msg_id(102))])
    seal(committer)
    commit(committer, [Msg("conv-3", msg_id(103))])
    seal(committer)
    _damage(store, second, "flipped")
    collect(committer)
    assert first in checkpoint.checkpoints(store, 0)
    assert checkpoint.restore(store, 0, SEED).log.segment >= read_checkpoint(store, first).meta.segment > 0


def test_no_twin_is_made_of_what_serves_nobody(tmp_path: Path) -> None:
    store, _, base = _chain(tmp_path, twin_of_base=False)
    store.delete(other_name(checkpoint.checkpoints(store, 0)[-1]))
    _damage(store, base, "flipped")
    assert not checkpoint.write_twin(store, 0)


@pytest.mark.parametrize("how", ["lost", "flipped"])
def test_the_audit_says_that_a_base_is_damaged(tmp_path: Path, how: str) -> None:
    store, committer, base = _chain(tmp_path)
    committer.writer.close()

    assert _corrupt(tmp_path) == []
    _damage(store, base, how)
    assert _corrupt(tmp_path) == [base]


def test_the_audit_looks_at_the_two_newest(tmp_path: Path) -> None:
    store, committer, _ = _chain(tmp_path)
    committer.writer.close()
    names = checkpoint.checkpoints(store, 0)
    _damage(store, names[-2], "flipped")
    assert _corrupt(tmp_path) == [names[-2]]
    _damage(store, names[-1], "flipped")
    assert _corrupt(tmp_path) == names[-2:]


def _corrupt(root: Path) -> list[object]:
    """The files that the audit finds damaged."""
    (found,) = [f for f in audit.run(root).findings if f.name == "corrupt"]
    return [row[0] for row in found.rows]
