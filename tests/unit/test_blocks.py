"""Grants, case by case: asked, repeated, declined, settled, lost, void."""

from __future__ import annotations

import numpy as np
import pytest

from imray.core import ceilings as module
from imray.core.blocks import OUTSTANDING_MAX, Block, Blocks, ranges_of
from imray.core.ceilings import next_ceiling, unexplained
from imray.core.columns import Control, RowStatus
from imray.core.errors import FencedError, InvalidError
from imray.core.fold import ReadBack, apply, commit_read_back, freeze
from imray.core.grants import Declined, Granted, Report
from imray.core.routing import log_position_of
from imray.core.sequencer import commit_of, locate, plan
from imray.core.state import HotGroup, ShardState
from tests.support.batches import SEED, Msg, msg_id, rows_of

_ROOM = "room"


def _m(n: int, body: bytes = b"x", conv: str = _ROOM) -> Msg:
    return Msg(conv, msg_id(n), body)


class HomeShard:
    """A home shard with one hot conversation and two registered partitions of epoch 1."""

    def __init__(self, ceiling: int = 1000) -> None:
        self.state = ShardState(SEED)
        self.own(_m(1), _m(2))
        self.record(controls=(Control(0, 2, 2, ceiling),))
        self.blocks = Blocks(self.state, self.state.log.epoch)
        self.digests = 0
        for slot in (1, 2):
            self.fence(slot, 1)

    def fence(self, slot: int, epoch: int, sequencer: int = 0) -> None:
        """A new writer of a partition's log."""
        segment = self.state.partitions[slot].segment + 1
        self.blocks.follow(slot, epoch, sequencer, Report(0, segment, 0, bytes(16)))
        self.blocks.register(slot, epoch)

    def own(self, *messages: Msg) -> list[int]:
        """A commit of the shard itself."""
        rows = rows_of(messages)
        planned = plan(self.state, rows, locate(self.state, rows), {})
        apply(self.state, commit_of(planned, rows, self.state.log.segment + 1, 1, 5), bytes(16))
        return planned.seq.tolist()

    def record(self, voids: tuple[tuple[int, int, int], ...] = (), controls: tuple[Control, ...] = ()) -> None:
        """Records in the shard's own log."""
        rows = rows_of([_m(0)])
        none = np.empty(0, np.uint64)
        rows = type(rows)(
            rows.names_data, rows.names_offsets, np.empty(0, np.int32), none.reshape(0, 2), none, none
        )  # fmt: skip
        back = ReadBack(rows, np.empty(0, np.int64), np.empty(0, np.uint32), voids, controls)
        log_position = self.state.log.segment + 1
        apply(self.state, commit_read_back(self.state, log_position, 1, 0, back), bytes(16))

    def ask(
        self, slot: int, ask: int, *messages: Msg, epoch: int = 1, now: float = 0.0, at_once: bool = True
    ) -> Granted | Declined:
        """As `Grants.ask`; without `at_once` by the columns' way, whatever the rows are."""
        known = self.blocks.answered(slot, epoch, ask)
        if known is not None:
            return known
        rows = rows_of(messages)
        if at_once and (granted := self.blocks.grant_at_once(slot, ask, rows, now)) is not None:
            return granted
        return self.blocks.grant(slot, ask, rows, locate(self.state, rows), {}, now)

    def granted(self, slot: int, ask: int, *messages: Msg, epoch: int = 1) -> Granted:
        """The same where there is a grant."""
        answer = self.ask(slot, ask, *messages, epoch=epoch)
        assert isinstance(answer, Granted), answer
        return answer

    def report(self, slot: int, grant: int, epoch: int = 1) -> None:
        """The grant's segment is durable."""
        segment = self.state.partitions[slot].segment + 1
        self.blocks.committed(slot, epoch, Report(grant, segment, 9, bytes([grant]) * 16))

    @property
    def stable(self) -> int:
        """Of the hot conversation."""
        return int(self.state.conversations.stable[0])


def _why(answer: Granted | Declined) -> str:
    assert isinstance(answer, Declined)
    return answer.why


def test_numbers_go_on_over_all_ways() -> None:
    home = HomeShard()
    assert home.granted(1, 1, _m(3), _m(4)).expanded().seq.tolist() == [3, 4]
    assert home.granted(2, 1, _m(5)).first == 5
    assert home.own(_m(6)) == [6]
    assert home.stable == 2
    home.report(2, 2)
    assert home.stable == 2
    home.report(1, 1)
    assert home.stable == 6
    assert not home.blocks.outstanding


def test_a_repeated_ask_gets_the_same_answer() -> None:
    home = HomeShard()
    first = home.granted(1, 1, _m(3))
    assert home.ask(1, 1, _m(3)) is first
    assert len(home.blocks.outstanding) == 1
    home.report(1, 1)
    assert home.ask(1, 1, _m(3)) is first


def test_an_ask_that_was_overtaken_is_not_looked_at() -> None:
    home = HomeShard()
    for ask in range(2, 9):
        home.granted(1, ask, _m(1))
    assert _why(home.ask(1, 1, _m(99))) == "wait"
    assert int(home.state.conversations.heads[0]) == 2


@pytest.mark.parametrize(("slot", "epoch"), [(1, 0), (1, 2), (3, 1)])
def test_only_the_registered_writer_gets_numbers(slot: int, epoch: int) -> None:
    assert _why(HomeShard().ask(slot, 1, _m(3), epoch=epoch)) == "fenced"


def test_registration_goes_up_only() -> None:
    home = HomeShard()
    assert home.blocks.register(1, 3)
    assert home.blocks.slot_epoch(1) == 3
    assert not home.blocks.register(1, 2)
    first = home.granted(1, 1, _m(3), epoch=3)
    assert home.blocks.register(1, 3)
    assert home.ask(1, 1, _m(3), epoch=3) is first, "the same writer again keeps its answers"
    assert home.blocks.slot_epoch(7) == 0


def test_what_is_not_hot_has_moved() -> None:
    home = HomeShard()
    assert _why(home.ask(1, 1, _m(1, conv="other"))) == "moved"
    home.own(_m(1, conv="other"))
    assert _why(home.ask(1, 2, _m(3), _m(2, conv="other"))) == "moved"
    home.blocks.cooling.add(0)
    assert _why(home.ask(1, 3, _m(3))) == "moved"
    home.blocks.cooling.discard(0)
    assert _why(home.ask(1, 3, _m(3))) == "moved", "whoever asked has had this answer: nobody would use a grant"
    assert home.granted(1, 4, _m(3)).first == 3


def test_outstanding_grants_are_bounded_for_each_partition() -> None:
    home = HomeShard()
    for n in range(OUTSTANDING_MAX):
        home.granted(1, n + 1, _m(10 + n))
    assert _why(home.ask(1, 9, _m(20))) == "wait"
    assert home.granted(2, 1, _m(20)).first == 3 + OUTSTANDING_MAX
    home.report(1, 1)
    assert home.granted(1, 9, _m(21)).grant


def test_nothing_is_granted_above_the_ceiling() -> None:
    home = HomeShard(ceiling=4)
    assert _why(home.ask(1, 1, _m(3), _m(4), _m(5))) == "wait"
    assert home.granted(1, 1, _m(3), _m(4)).first == 3
    assert _why(home.ask(1, 2, _m(5))) == "wait"
    home.record(controls=(Control(0, 2, 4, 5),))
    assert home.granted(1, 2, _m(5)).first == 5


def test_duplicates_and_conflicts_need_no_grant() -> None:
    home = HomeShard()
    answer = home.granted(1, 1, _m(1), _m(2, b"other"))
    planned = answer.expanded()
    assert (answer.grant, planned.status.tolist(), planned.seq.tolist()) == (
        0,
        [RowStatus.DUPLICATE, RowStatus.CONFLICT],
        [1, 2],
    )
    assert not home.blocks.outstanding


def test_an_id_in_flight_waits_for_its_grant() -> None:
    home = HomeShard()
    home.granted(1, 1, _m(3))
    planned = home.granted(2, 1, _m(3), _m(4)).expanded()
    assert planned.status.tolist() == [RowStatus.IN_FLIGHT, RowStatus.NEW]
    assert home.granted(1, 2, _m(3)).expanded().status.tolist() == [RowStatus.IN_FLIGHT]
    home.report(1, 1)
    planned = home.granted(2, 2, _m(3)).expanded()
    assert (planned.status.tolist(), planned.seq.tolist()) == ([RowStatus.DUPLICATE], [3])
    assert planned.log_position is not None
    assert planned.log_position.tolist() == [log_position_of(1, 2)]


def test_a_second_report_changes_nothing() -> None:
    home = HomeShard()
    home.granted(1, 1, _m(3))
    home.report(1, 1, epoch=9)
    assert home.stable == 2, "another writer's"
    home.report(2, 1)
    assert home.stable == 2, "another partition's"
    home.report(1, 1)
    home.report(1, 1)
    assert (home.stable, home.state.partitions[1].segment) == (3, 2)


def test_lost_grants_are_void_and_their_ids_free() -> None:
    home = HomeShard()
    home.granted(1, 1, _m(3), _m(4))
    home.granted(2, 1, _m(5))
    home.report(2, 2)
    home.fence(1, 2)
    lost = home.blocks.lost(1, 2)
    assert ranges_of(lost) == [(0, 3, 4)]
    assert home.blocks.lost(1, 2) == [], "once: two void records of a number make the log unreadable"
    assert home.blocks.oldest() is None
    assert home.blocks.in_flight(0), "until the record is durable"
    assert home.granted(2, 2, _m(3)).expanded().status.tolist() == [RowStatus.IN_FLIGHT]
    home.record(voids=((0, 3, 4),))
    home.blocks.voided(lost)
    home.blocks.voided(lost)
    assert (home.stable, home.blocks.in_flight(0)) == (5, False)
    assert home.granted(1, 1, _m(3), epoch=2).first == 6


def test_what_a_fenced_writer_did_write_is_no_loss() -> None:
    home = HomeShard()
    home.granted(1, 1, _m(3))
    home.granted(1, 2, _m(4))
    home.blocks.follow(1, 1, 1, Report(1, 2, 0, bytes(16)))
    home.fence(1, 2)
    assert ranges_of(home.blocks.lost(1, 2)) == [(0, 4, 4)]
    assert home.stable == 3


def test_the_tail_must_use_outstanding_grants() -> None:
    home = HomeShard()
    home.granted(1, 1, _m(3))
    with pytest.raises(InvalidError, match="grant 7 of epoch 1"):
        home.blocks.follow(1, 1, 1, Report(7, 2, 0, bytes(16)))
    with pytest.raises(InvalidError, match="grant 1 of epoch 0"):
        home.blocks.follow(1, 1, 0, Report(1, 2, 0, bytes(16)))
    assert len(home.blocks.outstanding) == 1


@pytest.mark.parametrize("grant", [0, 1])
def test_a_newer_home_shard_ends_this_one(grant: int) -> None:
    home = HomeShard()
    home.granted(1, 1, _m(3))
    with pytest.raises(FencedError, match="epoch 2 of the home shard"):
        home.blocks.follow(1, 2, 2, Report(grant, 2, 0, bytes(16)))
    assert home.state.partitions[1].segment == 1


def test_a_fence_names_the_epoch_that_it_knows() -> None:
    home = HomeShard()
    assert home.state.partitions[1].sequencer == 0
    home.fence(1, 2, sequencer=1)
    assert home.state.partitions[1].sequencer == 1


def test_frozen_ids_wait_for_their_grants() -> None:
    home = HomeShard()
    home.granted(1, 1, _m(3))
    freeze(home.state)
    home.granted(1, 2, _m(4))
    assert home.blocks.frozen_in_flight
    assert home.state.frozen_partitions[1].segment == 1
    home.report(1, 1)
    assert not home.blocks.frozen_in_flight
    assert home.state.frozen_partitions[1].segment == 2
    home.report(1, 2)
    assert home.state.frozen_partitions[1].segment == 2
    assert home.state.partitions[1].segment == 3


def test_the_oldest_is_the_one_that_waits_longest() -> None:
    home = HomeShard()
    assert home.blocks.oldest() is None
    home.ask(1, 1, _m(3), now=5.0)
    home.ask(2, 1, _m(4), now=4.0)
    oldest = home.blocks.oldest()
    assert isinstance(oldest, Block)
    assert (oldest.slot, oldest.number) == (2, 2)


def test_ceilings_are_logged_well_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP_MIN", 100)
    monkeypatch.setattr(module, "_STEP_BLOCKS", 10)
    assert next_ceiling(HotGroup(1, 150, 0), 100, 1, 0.0) is None
    assert next_ceiling(HotGroup(1, 149, 0), 100, 1, 0.0) == 200
    assert next_ceiling(HotGroup(1, 199, 0), 100, 20, 0.0) == 300, "large blocks need more"
    assert next_ceiling(HotGroup(2, 199, 0), 100, 20, 0.0) == 500, "so do more partitions"
    monkeypatch.setattr(module, "_STEP_S", 0.25)
    assert next_ceiling(HotGroup(1, 199, 0), 100, 1, 4000.0) == 1100, "and a high rate: no record for every block"


def test_a_successor_explains_all_up_to_the_ceiling() -> None:
    home = HomeShard(ceiling=10)
    home.granted(1, 1, _m(3))
    home.granted(2, 1, _m(4))
    home.report(2, 2)
    home.own(_m(5))
    assert unexplained(home.state) == [(0, 3, 3), (0, 6, 10)]
    assert unexplained(ShardState(SEED)) == []
