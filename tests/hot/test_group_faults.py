"""Faults of hot groups, placed by hand: cut off after the grant, a home shard killed with grants outstanding,
checkpoints with grants in flight, logs that were tampered with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from imray.core.errors import CorruptError
from imray.core.replies import Refusal
from imray.core.routing import log_of
from imray.core.state import ShardState
from imray.log.schema import segment_table
from imray.log.segment import GrantNote, segment_name
from imray.log.store import LocalStore
from imray.shard.recovery import become_partition_writer, become_writer, replay
from tests.hot.test_group import _hot, _m, _rows, _stable
from tests.support.batches import SEED, prepared
from tests.support.groups import Group
from tests.support.owners import figures_of, until_async


async def test_retries_by_every_way_at_every_time(tmp_path: Path) -> None:
    """Of ids accepted before the group was hot, with another K, after it cooled: the first number, or a conflict."""
    async with Group(tmp_path) as group:
        first: dict[int, int] = {}

        async def new(slot: int, n: int) -> None:
            ((status, first[n]),) = _rows(await group.send(slot, _m(n)))
            assert status == "new"

        async def all_known(slots: range) -> None:
            await _stable(group, max(first.values()))
            for slot in slots:
                assert _rows(await group.send(slot, *map(_m, first))) == [("duplicate", seq) for seq in first.values()]
                other = _rows(await group.send(slot, *(_m(n, b"other") for n in first)))
                assert other == [("conflict", seq) for seq in first.values()]

        await new(0, 1)
        for partitions in (2, 3, 1):
            await _hot(group, partitions)
            for slot in range(partitions + 1):
                await new(slot, 10 * partitions + slot)
            await all_known(range(partitions + 1))
        assert await group.home.current.hot.make_cold("room") is None  # type: ignore[union-attr]
        await new(0, 100)
        await all_known(range(1))
    async with Group(tmp_path) as group:
        await all_known(range(1))
        assert sorted(first.values()) == list(range(1, len(first) + 1)), "nothing failed, so there are no holes"


async def test_a_retry_of_an_id_in_flight_waits_for_its_grant(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _hot(group)
        blocks = group.home.current.hot.grants.blocks  # type: ignore[union-attr]
        group.links[1].lose_answers = 3
        slow = asyncio.create_task(group.send(1, _m(1)))
        await until_async(lambda: blocks.outstanding, "a grant is outstanding")
        refusal = await group.try_send(2, _m(1))
        assert isinstance(refusal, Refusal)
        assert "not settled" in refusal.detail
        assert _rows(await slow) == [("new", 1)], "the same ask had the same answer"
        assert _rows(await group.send(2, _m(1))) == [("duplicate", 1)]


async def test_cut_off_after_the_grant(tmp_path: Path) -> None:
    """Fault 13: `stable_seq` waits, is settled by fencing, and what the cut-off one wrote in time counts."""
    async with Group(tmp_path) as group:
        await _hot(group)
        assert _rows(await group.send(1, _m(1), _m(2))) == [("new", 1), ("new", 2)]
        group.links[1].cut = True  # its report is lost
        assert _rows(await group.send(2, _m(3))) == [("new", 3)]
        assert await _stable(group, 3) == 3
        state = group.home.current.hot.grants.committer.state  # type: ignore[union-attr]
        assert not group.home.current.hot.grants.voids, "what was written is no void"  # type: ignore[union-attr]
        assert state.partitions[1].segment >= 2
        group.links[1].cut = False
        assert _rows(await group.send(1, _m(1), _m(4)))[0] == ("duplicate", 1)


async def test_a_home_shard_killed_with_grants_outstanding(tmp_path: Path) -> None:
    """Fault 14: no number twice; what was granted and not written is void, with its reason."""
    async with Group(tmp_path, grant_timeout_s=60.0) as group:
        await _hot(group, 3)
        for slot in (1, 2, 3):
            group.links[slot].lose_answers = 10**6
        lost = [asyncio.create_task(group.try_send(slot, _m(slot))) for slot in (1, 2, 3)]
        blocks = group.home.current.hot.grants.blocks  # type: ignore[union-attr]
        await until_async(lambda: len(blocks.outstanding) == 3, "three grants are outstanding")
        assert _rows(await group.send(0, _m(9))) == [("new", 4)]
        await group.new_home()
        for slot in (1, 2, 3):
            group.links[slot].lose_answers = 0
        rows = await group.deliver(_m(1), _m(2), _m(3), _m(9), partitions=3)
        assert [r.status for r in rows] == ["new", "new", "new", "duplicate"]
        assert min(r.seq for r in rows[:3]) > 1 << 10, "above the ceiling"
        assert rows[3].seq == 4
        await asyncio.gather(*lost)
    state = ShardState(SEED)
    replay(LocalStore(tmp_path), 0, state)
    for slot in state.partitions:
        replay(LocalStore(tmp_path), 0, state, slot)
    group_ = state.hot[state.conversations.index("room")]
    assert group_.holes(int(state.conversations.heads[0])) == [], "every number is a message or void"


async def test_checkpoints_with_grants_in_flight(tmp_path: Path) -> None:
    """Sealed ids of all logs; recovery from the checkpoint equals recovery from nothing."""
    async with Group(tmp_path, checkpoint_ids_max=8) as group:
        await _hot(group)
        seqs: dict[int, int] = {}
        for n in range(60):
            ((_, seqs[n]),) = _rows(await group.send(n % 3, _m(n)))

        async def sealed() -> bool:
            return (await figures_of(group.home)).sealed_ids >= 16

        await until_async(sealed, "ids are sealed")
        for slot in range(3):
            assert _rows(await group.send(slot, *map(_m, range(60)))) == [("duplicate", seqs[n]) for n in range(60)]
    async with Group(tmp_path, checkpoint_ids_max=8) as group:
        assert _rows(await group.send(0, *map(_m, range(60)))) == [("duplicate", seqs[n]) for n in range(60)]


async def test_turns_by_its_rate(tmp_path: Path) -> None:
    """Hot over the threshold, cold under it; what an operator turned hot stays."""
    async with Group(tmp_path, hot_rate_per_s=20.0, cold_rate_per_s=5.0, hot_ticks=1, hot_partitions=2) as group:
        state = group.home.current.hot.grants.committer.state  # type: ignore[union-attr]
        assert await group.home.current.hot.make_hot("other", 1) is None  # type: ignore[union-attr]
        n = 0

        async def busy() -> bool:
            nonlocal n
            n += 20
            await group.deliver(*(_m(n + i) for i in range(20)), partitions=2 if group.partitions.get(2) else None)
            return len(state.hot) == 2

        await until_async(busy, "the group turns hot")
        await until_async(lambda: len(state.hot) == 1, "the group turns cold")
        assert [state.conversations.name(c) for c in state.hot] == ["other"]


async def _one_hot_block(root: Path) -> None:
    async with Group(root) as group:
        await _hot(group, 1)
        assert _rows(await group.send(1, _m(1))) == [("new", 1)]
        assert await _stable(group, 1) == 1
        group.crashes = True


@pytest.mark.parametrize(
    ("grants", "seq", "sequencer", "what"),
    [
        ([], 2, 1, "conv_seq"),
        ([GrantNote(9, "room", 2, 2)], 2, 1, "not as many"),
        ([GrantNote(9, "room", 1 << 40, 1)], 1 << 40, 1, "no valid grant"),
        ([GrantNote(9, "room", 1, 1)], 1, 1, "written before"),
        ([GrantNote(9, "room", 2, 1)], 2, 77, "no valid grant"),
    ],
)
async def test_a_segment_without_a_valid_grant(
    tmp_path: Path, grants: list[GrantNote], seq: int, sequencer: int, what: str
) -> None:
    """Recovery refuses it, and says which file."""
    import numpy as np
    import pyarrow as pa

    await _one_hot_block(tmp_path)
    store = LocalStore(tmp_path)
    _, writer = become_partition_writer(store, 0, 1, lambda: 1000)
    table = segment_table(pa.Table.from_batches([prepared([_m(5)]).batch]), None, np.array([seq]), 1000)
    encoded = writer.encode(table, 1000, grants, sequencer)
    writer.put(encoded)
    with pytest.raises(CorruptError, match=what) as error:
        become_writer(store, 0, SEED, lambda: 1000)
    assert error.value.file == segment_name(log_of(0, 1), encoded.segment)


async def test_a_damaged_log_of_a_partition(tmp_path: Path) -> None:
    await _one_hot_block(tmp_path)
    path = tmp_path / segment_name(log_of(0, 1), 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="shard=10001"):
        become_writer(LocalStore(tmp_path), 0, SEED, lambda: 1000)
