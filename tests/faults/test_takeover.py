"""Two writers at once: a successor beside a live predecessor, however busy it is and however large the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from imray.core.errors import CorruptError, FencedError
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from imray.shard import recovery
from imray.shard.committer import Committer
from imray.shard.grants import Grants
from imray.shard.recovery import become_partition_writer
from tests.support.batches import Msg, commit, msg_id, open_committer


class LargeFolder(LocalStore):
    """A folder so large that a busy predecessor writes several segments while it is listed, and one at every look."""

    def __init__(self, root: Path, predecessor: Committer) -> None:
        super().__init__(root)
        self._predecessor = predecessor
        self.sent = 0
        self.lists = 0

    def _send(self, n: int) -> None:
        for _ in range(n):
            commit(self._predecessor, [Msg("c", msg_id(self.sent))])
            self.sent += 1

    def list(self, prefix: str, after: str = "") -> list[str]:
        found = super().list(prefix, after)
        if prefix.startswith("wal/"):
            self.lists += 1
            self._send(5)
        return found


def test_a_busy_predecessor_is_fenced_in_a_large_folder(tmp_path: Path) -> None:
    old = open_committer(tmp_path)
    store = LargeFolder(tmp_path, old)
    new = open_committer(store)
    assert store.lists == 1, "once, to know what must be there; never between a look at the end and a fence"
    with pytest.raises(FencedError):
        commit(old, [Msg("c", msg_id(1000))])
    rows = commit(new, [Msg("c", msg_id(n)) for n in range(store.sent)])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", n + 1) for n in range(store.sent)]


@pytest.mark.parametrize("lost", [2, 4])
def test_a_lost_segment_is_no_end_of_the_log(tmp_path: Path, lost: int) -> None:
    committer = open_committer(tmp_path)
    for n in range(4):
        commit(committer, [Msg("c", msg_id(n))])
    (tmp_path / segment_name(0, lost)).unlink()
    with pytest.raises(CorruptError, match="not there") as e:
        open_committer(tmp_path)
    assert e.value.file == segment_name(0, lost)


def _hot(root: Path) -> tuple[Committer, Grants]:
    committer = open_committer(root)
    grants = Grants.open(committer)
    commit(committer, [Msg("c", msg_id(1))])
    job = committer.record(grants.make_hot("c", 2))
    committer.put(job)
    committer.mark_durable(job)
    return committer, grants


def test_two_home_shards_that_open_at_once_are_no_corruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has fenced its own log and comes to the partitions' when a third has fenced all of them."""
    _hot(tmp_path)
    real = recovery.fence_partition
    done = []

    def fence_partition(*args: object) -> None:
        if not done:
            done.append(1)
            open_committer(tmp_path)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(recovery, "fence_partition", fence_partition)
    with pytest.raises(FencedError, match="took over"):
        open_committer(tmp_path)
    monkeypatch.setattr(recovery, "fence_partition", real)
    assert commit(open_committer(tmp_path), [Msg("c", msg_id(1))])[0].seq == 1


def test_a_fence_that_was_read_past_registers_nobody(tmp_path: Path) -> None:
    """The home shard has fenced the log after it: what it let go of may be granted to others by now."""
    _, grants = _hot(tmp_path)
    store = LocalStore(tmp_path)
    _, slow = become_partition_writer(store, 0, 1, lambda: 1)
    grants.fence(1)
    assert grants.register(1, slow.epoch, slow.segment) is None
    _, late = become_partition_writer(store, 0, 1, lambda: 1)
    assert grants.register(1, late.epoch, late.segment) == []
    assert grants.register(1, late.epoch, late.segment) == [], "asked again"
    committer = open_committer(tmp_path)  # reads and fences both logs
    again = Grants.open(committer)
    assert again.register(1, late.epoch, late.segment) is None, "it was fenced by the new home shard"
    _, newest = become_partition_writer(store, 0, 1, lambda: 1)
    assert again.register(1, newest.epoch, newest.segment) == []
    assert again.register(2, 1, 1) is None
