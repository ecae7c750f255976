"""Base and delta checkpoints: what changed is written, all of it comes back, and a broken chain serves nobody."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from imray.core import checkpoint_chain
from imray.core.checkpoint_chain import ChainLink, CheckpointChain
from imray.core.members import Role
from imray.log import checkpoint
from imray.log.checkpoint_file import other_name, read_checkpoint
from imray.log.store import LocalStore
from imray.shard.committer import Committer
from tests.support.analytics_logs import FastStore, HotLog
from tests.support.batches import SEED, Msg, collect, commit, msg_id, open_committer, seal
from tests.support.membership import create, known, mark_read

CONVS = [f"conv-{i}-ä" for i in range(20)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_chain, "ALWAYS_BASE_ROWS", 0)


def _heads(state: Any) -> dict[str, tuple[int, int]]:
    c = state.conversations
    return {c.name(i): (int(c.heads[i]), int(c.stable[i])) for i in range(c.count)}


def _files(store: LocalStore) -> list[tuple[int, int]]:
    """Of each checkpoint: how many files it builds on, and how many rows it has."""
    files = [read_checkpoint(store, name) for name in checkpoint.checkpoints(store, 0)]
    return [(len(f.meta.chain), f.meta.rows_in_file) for f in files]


def _base(root: Path) -> tuple[FastStore, Committer]:
    store = FastStore(root)
    committer = open_committer(store)
    commit(committer, [Msg(conv, msg_id(i)) for i, conv in enumerate(CONVS)])
    seal(committer)
    return store, committer


def test_a_delta_has_what_changed(tmp_path: Path) -> None:
    store, committer = _base(tmp_path)
    commit(committer, [Msg(CONVS[3], msg_id(100)), Msg("new", msg_id(1)), Msg(CONVS[19], msg_id(2))])
    seal(committer)
    seal(committer)
    assert _files(store) == [(0, 20), (1, 3)], "and a checkpoint after the same segment is the same"
    file = read_checkpoint(store, checkpoint.checkpoints(store, 0)[-1])
    assert file.table().to_pydict() == {"row": [3, 19, 20], "conv_id": [None, None, "new"], "head": [2, 2, 1]}
    restored = checkpoint.restore(store, 0, SEED)
    assert _heads(restored) == _heads(committer.state)
    again = open_committer(store)
    commit(again, [Msg("new", msg_id(7))])
    seal(again)
    assert _files(store)[-1] == (2, 1), "a successor goes on with the chain"
    assert _heads(checkpoint.restore(store, 0, SEED)) == _heads(again.state)


def test_when_the_next_one_has_all_again() -> None:
    chain = CheckpointChain()
    assert chain.next_is_base(100, 1)
    links = (ChainLink("base", "", 100),)
    chain.made(links, 100)
    assert not chain.next_is_base(100, 50)
    assert chain.next_is_base(100, 51), "more than half of it"
    chain.made((*links, ChainLink("a", "", 30)), 100)
    assert not chain.next_is_base(100, 20)
    assert chain.next_is_base(100, 21), "half of it, with those before"
    chain.made((*links, *(ChainLink("a", "", 1) for _ in range(checkpoint_chain.DELTAS_MAX))), 100)
    assert chain.next_is_base(100, 0), "too many files"


def test_few_conversations_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_chain, "ALWAYS_BASE_ROWS", 20)
    store, committer = _base(tmp_path)
    commit(committer, [Msg(CONVS[3], msg_id(100))])
    seal(committer)
    assert _files(store) == [(0, 20), (0, 20)]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_changed_comes_back(tmp_path: Path, seed: int) -> None:
    """Heads, members, cursors and hot groups, over restarts, and with chains that end."""
    rng = random.Random(seed)
    store = FastStore(tmp_path)
    log = HotLog(tmp_path)
    n = 0
    chains = set()
    for step in range(60):
        conv = rng.choice(CONVS[: 4 + step // 3])
        what = rng.random()
        if what < 0.4:
            log.send(0, *(Msg(conv, msg_id(n := n + 1), sender="ann") for _ in range(3)))
        elif what < 0.5 and not log.committer.state.members.is_created(log.committer.state.conversations.index(conv)):
            create(log.committer, conv, ann=Role.OWNER, **{f"user{rng.randrange(9)}": Role.READER})
        elif what < 0.6 and log.committer.state.conversations.index(conv) >= 0:
            mark_read(log.committer, conv, **{f"user{rng.randrange(30)}": step})
        elif what < 0.65:
            log.make_hot("room", 2)
        elif what < 0.75 and log.committer.state.hot:
            log.send(rng.choice([1, 2]), Msg("room", msg_id(n := n + 1)))
        elif what < 0.8:
            log.restart()
        elif log.committer.log_moved:
            seal(log.committer)
            collect(log.committer)
            restored = checkpoint.restore(store, 0, SEED)
            assert _heads(restored) == _heads(log.committer.state)
            assert known(restored) == known(log.committer.state)
            chains.add(_files(store)[-1][0])
            assert len(checkpoint.checkpoints(store, 0)) <= 2 + checkpoint_chain.DELTAS_MAX
    assert 0 in chains
    assert max(chains) > 0


def _damage(root: Path, name: str) -> None:
    data = bytearray((root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (root / name).write_bytes(data)


@pytest.mark.parametrize("damage", ["lost", "flipped", "another"])
def test_a_broken_chain_serves_nobody(tmp_path: Path, damage: str) -> None:
    store, committer = _base(tmp_path)
    first = checkpoint.checkpoints(store, 0)[0]
    for n in range(2):
        commit(committer, [Msg(CONVS[n], msg_id(100 + n))])
        seal(committer)
    _, delta, newest = checkpoint.checkpoints(store, 0)
    if damage == "lost":
        store.delete(delta)
    elif damage == "flipped":
        _damage(tmp_path, delta)
    else:
        data = store.get(first)
        assert data is not None
        store.delete(delta)
        store.put_if_absent(delta, [data])
    notes: list[str] = []
    restored = checkpoint.restore(store, 0, SEED, notes)
    assert restored.log.segment == read_checkpoint(store, first).meta.segment, "the base alone is an older checkpoint"
    assert delta in notes[0]
    with pytest.raises(checkpoint.DerivedError):
        checkpoint.whole_checkpoint_meta(store, newest)
    again = open_committer(store)
    assert _heads(again.state) == _heads(committer.state), "the log has the rest"


def test_a_twin_stands_in_for_a_link(tmp_path: Path) -> None:
    store, committer = _base(tmp_path)
    assert checkpoint.write_twin(store, 0)
    commit(committer, [Msg(CONVS[1], msg_id(100))])
    seal(committer)
    twin, base, newest = checkpoint.checkpoints(store, 0)
    assert twin == other_name(base)
    _damage(tmp_path, base)
    restored = checkpoint.restore(store, 0, SEED)
    assert _heads(restored) == _heads(committer.state)
    assert checkpoint.whole_checkpoint_meta(store, newest).segment == restored.log.segment


def test_what_the_two_newest_build_on_stays(tmp_path: Path) -> None:
    store, committer = _base(tmp_path)
    first = checkpoint.checkpoints(store, 0)[0]
    for n in range(5):
        commit(committer, [Msg(CONVS[0], msg_id(100 + n))])
        seal(committer)
        collect(committer)
    assert len(checkpoint.checkpoints(store, 0)) == 6
    store.delete(first)
    commit(committer, [Msg(CONVS[0], msg_id(200))])
    seal(committer)
    collect(committer)
    assert len(checkpoint.checkpoints(store, 0)) == 5, (
        "nothing of a chain without its base serves, and nothing is added"
    )
    commit(committer, [Msg(CONVS[0], msg_id(201))])
    seal(committer)
    collect(committer)
    assert _files(store) == [(0, 20)], "so the next one has all again"


def test_a_delta_that_failed_is_written_again(tmp_path: Path) -> None:
    store, committer = _base(tmp_path)
    commit(committer, [Msg(CONVS[0], msg_id(100))])
    snap = committer.freeze()
    commit(committer, [Msg(CONVS[1], msg_id(101))])
    checkpoint.write(store, snap, committer.intervals)
    store.delete(checkpoint.checkpoints(store, 0)[-1])
    files = checkpoint.write(store, committer.freeze(), committer.intervals)
    committer.sealed(files)
    seal(committer)
    assert _files(store) == [(0, 20), (1, 1), (2, 1)]
    assert _heads(checkpoint.restore(store, 0, SEED)) == _heads(committer.state)
