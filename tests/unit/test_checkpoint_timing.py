"""Checkpoints by time: a shard that is written slowly, or not at all any more, ends with two that cover its log."""

from __future__ import annotations

from pathlib import Path

from imray.log import checkpoint
from imray.log.checkpoint_meta import CheckpointMeta
from imray.log.store import Store
from imray.settings import Settings
from imray.shard.checkpoint_timing import CheckpointTiming
from imray.shard.shard_writer import ShardWriter
from tests.support.analytics_logs import FastStore
from tests.support.batches import SEED, Msg, collect, commit, ipc_of, msg_id, open_committer, seal
from tests.support.groups import Group
from tests.support.owners import until_async

_SETTINGS = Settings(checkpoint_wait_s=20.0, checkpoint_segments_min=3)


def _metas(store: Store) -> list[CheckpointMeta]:
    return [checkpoint.checkpoint_meta(store, name) for name in checkpoint.checkpoints(store, 0)]


def test_a_checkpoint_by_time(tmp_path: Path) -> None:
    now = 100.0
    committer = open_committer(FastStore(tmp_path))
    timing = CheckpointTiming(committer, _SETTINGS, lambda: now)
    commit(committer, [Msg("c", msg_id(1))])
    commit(committer, [Msg("c", msg_id(2))])
    now += 19.9
    timing.look()
    assert not timing.due, "three segments wait, but not for long"
    now += 0.1
    timing.look()
    assert timing.due
    seal(committer)
    timing.made()
    assert not timing.due
    commit(committer, [Msg("c", msg_id(3))])
    for _ in range(6):
        now += 10.0
        timing.look()
        assert not timing.due, "a single one waits until nothing more comes"
    now += 10.0
    timing.look()
    assert timing.due
    seal(committer)
    timing.made()
    now += 1000.0
    timing.look()
    assert not timing.due, "nothing is uncovered"


def test_a_twin_by_time(tmp_path: Path) -> None:
    now = 100.0
    timing = CheckpointTiming(open_committer(FastStore(tmp_path)), _SETTINGS, lambda: now)
    timing.made()
    now += 9.9
    assert not timing.twin_due
    now += 0.1
    assert timing.twin_due
    timing.twin_made()
    assert not timing.twin_due
    timing.made()
    now += 10.0
    assert timing.twin_due, "the next one, too"


def test_what_only_partitions_wrote_needs_a_hot_group(tmp_path: Path) -> None:
    """A checkpoint is called after a segment of the shard's own log, and there is a reason to write one only then."""
    now = 0.0
    committer = open_committer(FastStore(tmp_path))
    seal(committer)
    timing = CheckpointTiming(committer, _SETTINGS, lambda: now)
    committer.state.partitions[1] = checkpoint.LogProgress(segment=10)
    now = 1000.0
    timing.look()
    assert not timing.due
    committer.state.hot[0] = checkpoint.HotGroup(1, 1, 1)
    timing.look()
    assert timing.due


def test_a_twin_counts_as_one_of_the_two_newest(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    committer = open_committer(store)
    assert not checkpoint.write_twin(store, 0), "there is none to make one of"
    for n in range(2):
        commit(committer, [Msg("c", msg_id(n))])
        seal(committer)
    assert checkpoint.write_twin(store, 0)
    assert not checkpoint.write_twin(store, 0), "it is there"
    collect(committer)
    twin, newest = checkpoint.checkpoints(store, 0)
    assert "-twin" in twin, "it sorts before, so whoever looks for a newer one is not misled"
    first, second = _metas(store)
    assert first == second
    for lost, left in ((newest, twin), (twin, newest)):
        data = store.get(lost)
        assert data is not None
        store.delete(lost)
        assert checkpoint.restore(store, 0, SEED).log.segment == first.segment
        store.put_if_absent(lost, [data[:-1] + b"x"])
        assert checkpoint.restore(store, 0, SEED).log.segment == first.segment
        assert checkpoint.write_twin(store, 0), f"anew, from {left}"
        assert store.get(lost) == data


async def test_a_quiet_shard_ends_with_two_that_cover_all(tmp_path: Path) -> None:
    settings = Settings(checkpoint_wait_s=0.04, checkpoint_segments_min=3)
    store = FastStore(tmp_path)
    shard = ShardWriter(store, 0, SEED, settings)
    await shard.start()
    for n in range(5):
        await shard.append(ipc_of([Msg("c", msg_id(n))]))

    def covered() -> bool:
        assert shard.current is not None
        return [m.segment for m in _metas(store)] == [shard.current.committer.state.log.segment] * 2

    await until_async(covered, "both cover the whole log")
    names = checkpoint.checkpoints(store, 0)
    await shard.append(ipc_of([Msg("c", msg_id(9))]))
    await until_async(lambda: covered() and checkpoint.checkpoints(store, 0) != names, "one more segment, too")
    await shard.stop()


async def test_a_quiet_group_ends_with_two_that_cover_all(tmp_path: Path) -> None:
    store = FastStore(tmp_path)
    async with Group(store, checkpoint_wait_s=0.04, checkpoint_segments_min=3) as group:
        assert await group.home.make_hot("room", 1) is None
        for n in range(5):
            await group.send(1, Msg("room", msg_id(n)))

        def covered() -> bool:
            state = group.home.current.committer.state  # type: ignore[union-attr]
            metas = _metas(store)
            return len(metas) == 2 and all(
                m.segment == state.log.segment and m.partitions[0].segment == state.partitions[1].segment for m in metas
            )

        await until_async(covered, "both cover both logs")
