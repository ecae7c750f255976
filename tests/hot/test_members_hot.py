"""Members of a hot group: its home shard judges who sends through partitions, and its order stays that of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imray.core.columns import Control, Rows, RowStatus
from imray.core.grants import Report
from imray.core.members import Changed, MembersChange, Role, Roles
from imray.core.membership import Change, Create
from imray.core.replies import Appended, Refusal, Refused
from imray.core.state import HotGroup
from imray.shard.partition_writer import PartitionWriter
from imray.shard.shard_writer import ShardWriter
from tests.support.batches import Msg, ipc_of, msg_id
from tests.support.groups import Group, Link
from tests.support.owners import GatedStore, until_async
from tests.unit.test_blocks import HomeShard
from tests.unit.test_blocks import _m as _in_room

OWNER, MEMBER = Role.OWNER, Role.MEMBER


def _m(n: int, sender: str = "mia", conv: str = "room") -> Msg:
    return Msg(conv, msg_id(n), b"x", sender)


async def _send(group: Group, slot: int, *messages: Msg) -> list[tuple[str, int]]:
    """(status, number) of each message, through one partition (0: the home shard)."""
    owner: ShardWriter | PartitionWriter = group.partitions[slot] if slot else group.home
    answer = await owner.append(ipc_of(messages))
    assert isinstance(answer, Appended), answer
    names = ["new"] * answer.rows
    if answer.firsts is not None:
        for at, status in zip(answer.firsts.at.tolist(), answer.firsts.status.tolist(), strict=True):
            names[at] = RowStatus(status).name.lower()
    return list(zip(names, answer.seqs().tolist(), strict=True))


async def _hot(group: Group, conv: str = "room") -> None:
    assert await group.home.make_hot(conv, 2) is None
    for slot in (1, 2):
        await until_async(lambda: group.partitions[slot].state == "serving", "it serves")  # noqa: B023


async def _room(group: Group) -> None:
    made = await group.home.members.change(Create("room", "olga", False, False, {"mia": MEMBER}))
    assert isinstance(made, Changed)
    await _hot(group)


async def _remove(group: Group, user: str) -> Changed:
    found = await group.home.members.change(Change("room", "olga", False, {}, (user,)))
    assert isinstance(found, Changed)
    return found


async def _stable(group: Group) -> int:
    located = await group.home.locate("room", 1, 1 << 60)
    assert not isinstance(located, Refusal)
    return located.stable


class _Watched:
    """Notes of each ask whether it said who sends."""

    def __init__(self, link: Link) -> None:
        self.with_senders: list[bool] = []
        self._ask = link.ask
        link.ask = self.ask  # type: ignore[method-assign]

    async def ask(self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]) -> Any:
        self.with_senders.append(rows.senders is not None)
        return await self._ask(slot, epoch, ask, rows, reports)


async def test_who_is_no_member_cannot_send_through_a_partition(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _room(group)
        assert await _send(group, 1, _m(1), _m(2, "eve"), _m(3, "olga")) == [("new", 1), ("forbidden", 0), ("new", 2)]
        assert await _send(group, 2, _m(4, "eve")) == [("forbidden", 0)]
        assert await _send(group, 0, _m(5, "eve"), _m(6)) == [("forbidden", 0), ("new", 3)]
        await until_async(lambda: _is_stable(group, 3), "all is settled, and what was forbidden left no gap")
        assert (await _remove(group, "mia")).after == 3
        assert await _send(group, 1, _m(7), _m(1), _m(8, "olga")) == [("forbidden", 0), ("duplicate", 1), ("new", 4)]
        assert await _send(group, 2, _m(2, "olga")) == [("new", 5)], "the id of what was forbidden is free"
    async with Group(tmp_path) as group:
        await until_async(lambda: group.partitions[1].state == "serving", "it serves again")
        assert await _send(group, 1, _m(9), _m(10, "olga")) == [("forbidden", 0), ("new", 6)]


async def test_after_a_crash_members_and_numbers_are_what_was_told(tmp_path: Path) -> None:
    """The home shard's log is read alone first: the numbers before a change may stand in logs that are read later."""
    async with Group(tmp_path) as group:
        group.crashes = True
        await _room(group)
        sent = await _send(group, 1, _m(1), _m(2, "olga")) + await _send(group, 2, _m(3))
        assert [seq for _, seq in sent] == [1, 2, 3]
        assert (await _remove(group, "mia")).after == 3
        assert await _send(group, 2, _m(4, "olga"), _m(5)) == [("new", 4), ("forbidden", 0)]
        assert await group.home.make_hot("room", 0) is None
        assert await _send(group, 0, _m(6, "olga")) == [("new", 5)]
        added = await group.home.members.change(Change("room", "olga", False, {"nina": MEMBER}, ()))
        assert isinstance(added, Changed)
        assert (added.after, added.members) == (5, 2)
        await _hot(group)
        assert await _send(group, 1, _m(7, "nina")) == [("new", 6)]
        assert (await _remove(group, "nina")).after == 6
    async with Group(tmp_path) as group:
        told = await group.home.members.roles("room", ["olga", "mia", "nina"])
        assert isinstance(told, Roles)
        assert told.roles == {"olga": OWNER, "mia": None, "nina": None}
        assert told.version == 4
        ((status, seq),) = await _send(group, 0, _m(8, "olga"))
        assert status == "new"
        assert seq > 6
        assert await _send(group, 0, _m(7, "nina"), _m(9, "nina")) == [("duplicate", 6), ("forbidden", 0)]
        await until_async(lambda: _is_stable(group, seq), "all is settled")


async def _is_stable(group: Group, number: int) -> bool:
    return await _stable(group) == number


async def test_a_home_shard_that_was_replaced_forbids_nothing_through_a_partition(tmp_path: Path) -> None:
    """The partition hears of no successor: it still asks the old one, which lives on."""
    async with Group(tmp_path) as group:
        group.crashes = True
        await _room(group)
        assert await _send(group, 1, _m(1), _m(2, "zoe")) == [("new", 1), ("forbidden", 0)]
        await until_async(lambda: _is_stable(group, 1), "the old one has heard all and logs no more")
        old = group.home
        group.links[1].cut = True
        await group.new_home()
        added = await group.home.members.change(Change("room", "olga", False, {"zoe": MEMBER}, ()))
        assert isinstance(added, Changed)
        new = group.home
        group.home = old
        group.links[1].cut = False
        answer = await group.partitions[1].append(ipc_of([_m(2, "zoe")]))
        assert isinstance(answer, Refusal), answer
        assert answer.why is Refused.UNAVAILABLE
        group.home = new
        await until_async(lambda: group.partitions[1].state == "serving", "it serves again")
        assert isinstance(await group.send(1, _m(2, "zoe")), list)


async def test_asks_say_who_sends_only_where_the_home_shard_wanted_it_once(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _hot(group, "open")
        await _room(group)
        watched = _Watched(group.links[1])
        await _send(group, 1, _m(1, conv="open"))
        assert watched.with_senders == [False]
        await _send(group, 1, _m(2))
        assert watched.with_senders == [False, False, True], "declined once"
        await _send(group, 1, _m(3))
        await _send(group, 1, _m(4, conv="open"))
        assert watched.with_senders[3:] == [True, False]


async def test_a_conversation_that_is_created_while_it_is_hot_is_judged_from_then_on(tmp_path: Path) -> None:
    async with Group(tmp_path) as group:
        await _hot(group)
        assert await _send(group, 1, _m(1, "eve")) == [("new", 1)]
        made = await group.home.members.change(Create("room", "root", True, False, {"mia": OWNER}))
        assert isinstance(made, Changed)
        assert made.after == 1
        assert await _send(group, 1, _m(2, "eve"), _m(3)) == [("forbidden", 0), ("new", 2)]


async def test_where_conversations_are_not_open_a_hot_one_is_judged_too(tmp_path: Path) -> None:
    async with Group(tmp_path, conversations_open=False) as group:
        await _hot(group)
        assert await _send(group, 1, _m(1)) == [("forbidden", 0)]


async def test_stable_seq_waits_for_a_change_that_is_not_durable(tmp_path: Path) -> None:
    store = GatedStore(tmp_path, "wal/shard=0000/")
    async with Group(store) as group:
        await _room(group)
        assert await _send(group, 1, _m(1)) == [("new", 1)]
        await until_async(lambda: _is_stable(group, 1), "the first is settled")
        store.gate.clear()
        removing = asyncio.create_task(_remove(group, "mia"))
        await until_async(store.holding.is_set, "the change is on its way")
        assert await _send(group, 1, _m(2), _m(3, "olga")) == [("forbidden", 0), ("new", 2)]
        assert await _send(group, 2, _m(4, "olga")) == [("new", 3)]
        state = group.home.current.committer.state  # type: ignore[union-attr]
        (hot,) = state.hot.values()
        await until_async(lambda: hot.done, "the numbers after it are durable")
        assert await _stable(group) == 1
        store.gate.set()
        assert (await removing).after == 1
        await until_async(lambda: _is_stable(group, 3), "all is settled")
        assert not hot.held


def test_a_held_group_goes_up_to_the_number_before_the_change_and_no_further() -> None:
    group = HotGroup(2, 100, 0)
    group.held = [3, 5]
    group.mark_final(4, 4)
    assert group.stable == 0
    group.mark_final(1, 3)
    assert (group.stable, group.holes(7)) == (3, [(5, 7)])
    group.mark_final(5, 7)
    assert group.stable == 3
    del group.held[0]
    group.advance()
    assert (group.stable, group.holes(7)) == (5, [])
    del group.held[0]
    group.advance()
    assert (group.stable, group.done) == (7, [])


def test_a_change_that_was_planned_before_the_group_turned_hot_holds_it_too() -> None:
    """The record that turns it hot is durable first, and partitions are quicker than the next commit."""
    home = HomeShard()
    state = home.state
    home.record(controls=(Control(0, 0, 2, 2),))
    assert not state.hot
    change = MembersChange(0, 2, True, False, {"ada": OWNER, "alice": MEMBER}, ())
    state.reserve_members([change], [])
    home.record(controls=(Control(0, 2, 2, 1000),))
    group = state.hot[0]
    group.mark_final(3, 4)
    assert group.stable == 2
    state.mark_members_durable([change], [])
    assert (group.stable, int(state.conversations.stable[0])) == (4, 4)
    assert home.ask(1, 1, _in_room(9)) is not None
