"""Grants, settled numbers and heat against models of a few lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imray.core.blocks import OUTSTANDING_MAX, ranges_of
from imray.core.errors import InvalidError
from imray.core.grants import Declined, Granted, Report
from imray.core.hot_detector import HotDetector
from imray.core.sequencer import locate, plan
from imray.core.state import HotGroup
from tests.support.batches import rows_of
from tests.unit.test_blocks import HomeShard, _m

_ranges = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 6)), max_size=30)


@given(st.integers(0, 20), _ranges, st.integers(0, 70))
def test_settled_numbers_are_a_set(start: int, ranges: list[tuple[int, int]], to: int) -> None:
    group, settled = HotGroup(1, 100, start), set(range(1, start + 1))
    for first, more in ranges:
        numbers = set(range(first, first + more + 1))
        stable = group.stable
        if max(numbers) <= start:
            group.mark_final(first, first + more)
        elif numbers & settled:
            with pytest.raises(InvalidError):
                group.mark_final(first, first + more)
        else:
            group.mark_final(first, first + more)
            settled |= numbers
        assert stable <= group.stable == next(n for n in range(100) if n + 1 not in settled)
    assert group.done == sorted(group.done)
    to = max([to, *(last for _, last in group.done)])  # nobody asks below what is settled
    holes = {n for first, last in group.holes(to) for n in range(first, last + 1)}
    assert holes == {n for n in range(group.stable + 1, to + 1) if n not in settled}
    assert all(b[0] > a[1] + 1 for a, b in zip(group.holes(to), group.holes(to)[1:], strict=False))


@given(st.permutations(range(1, 25)), st.integers(0, 23))
def test_the_order_of_settlement_does_not_matter(order: list[int], stop: int) -> None:
    group = HotGroup(1, 100, 0)
    for n in order[:stop]:
        group.mark_final(n, n)
    missing = set(order[stop:])
    assert group.stable == min(missing) - 1
    for n in order[stop:]:
        group.mark_final(n, n)
    assert (group.stable, group.done) == (24, [])


class BlocksMachine(RuleBasedStateMachine):
    """Two partitions and the shard itself, against a model: who has which number, and what became of it."""

    @initialize()
    def begin(self) -> None:
        """A hot conversation with numbers 1 and 2."""
        self.home = HomeShard(ceiling=10**6)
        self.settled = {1, 2}
        self.numbers: dict[int, int] = {1: 1, 2: 2}
        """Of ids that are messages."""
        self.open: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        """Grants: their slot, their ids with numbers."""
        self.head, self.asks, self.epochs = 2, {1: 0, 2: 0}, {1: 1, 2: 1}
        self.stable = 2

    @rule(
        slot=st.sampled_from([1, 2]),
        ids=st.lists(st.integers(1, 40), min_size=1, max_size=5),
        twice=st.booleans(),
        at_once=st.booleans(),
    )
    def ask(self, slot: int, ids: list[int], twice: bool, at_once: bool) -> None:
        """A batch, with retries in it."""
        self.asks[slot] += 1
        full = sum(s == slot for s, _ in self.open.values()) >= OUTSTANDING_MAX
        messages = [_m(n) for n in ids]
        answer = self.home.ask(slot, self.asks[slot], *messages, epoch=self.epochs[slot], at_once=at_once)
        if full:
            assert isinstance(answer, Declined)
            assert answer.why == "wait"
            return
        assert isinstance(answer, Granted)
        flying = {n: seq for _, given in self.open.values() for n, seq in given}
        new = [n for n in dict.fromkeys(ids) if n not in self.numbers and n not in flying]
        given = [(n, self.head + 1 + i) for i, n in enumerate(new)]
        known = {**self.numbers, **flying, **dict(given)}
        assert answer.expanded().seq.tolist() == [known[n] for n in ids]
        assert bool(answer.grant) == bool(new)
        self.head += len(new)
        if new:
            self.open[answer.grant] = slot, given
        if twice:
            assert self.home.ask(slot, self.asks[slot], *messages, epoch=self.epochs[slot]) is answer

    @rule(ids=st.lists(st.integers(41, 60), min_size=1, max_size=3, unique=True))
    def own(self, ids: list[int]) -> None:
        """The shard writes by itself."""
        new = [n for n in ids if n not in self.numbers]
        self.home.own(*(_m(n) for n in ids))
        for n in new:
            self.head += 1
            self.numbers[n] = self.head
            self.settled.add(self.head)

    @precondition(lambda self: self.open)
    @rule(slot=st.sampled_from([1, 2]), times=st.integers(1, 2))
    def report(self, slot: int, times: int) -> None:
        """The oldest grant of a partition is durable."""
        mine = [g for g, (s, _) in self.open.items() if s == slot]
        if not mine:
            return
        report = Report(mine[0], self.home.state.partitions[slot].segment + 1, 9, bytes(16))
        for _ in range(times):
            self.home.blocks.committed(slot, self.epochs[slot], report)
        self._written(mine[0])

    def _written(self, grant: int) -> None:
        for n, seq in self.open.pop(grant)[1]:
            self.numbers[n] = seq
            self.settled.add(seq)

    @rule(slot=st.sampled_from([1, 2]), landed=st.integers(0, 2), void_now=st.booleans())
    def dies(self, slot: int, landed: int, void_now: bool) -> None:
        """A partition's successor: what landed counts, the rest is void."""
        mine = [g for g, (s, _) in self.open.items() if s == slot]
        for grant in mine[:landed]:
            segment = self.home.state.partitions[slot].segment + 1
            self.home.blocks.follow(slot, self.epochs[slot], 1, Report(grant, segment, 9, bytes(16)))
            self._written(grant)
        self.epochs[slot] += 1
        self.asks[slot] = 0
        self.home.fence(slot, self.epochs[slot])
        lost = self.home.blocks.lost(slot, self.epochs[slot])
        assert [b.number for b in lost] == mine[landed:]
        if lost:
            self.home.record(voids=tuple(ranges_of(lost)))
        self.home.blocks.voided(lost)
        for grant in mine[landed:]:
            self.settled |= {seq for _, seq in self.open.pop(grant)[1]}

    @invariant()
    def stable_is_below_the_lowest_outstanding_grant(self) -> None:
        """And never goes back."""
        state = self.home.state
        lowest = min((seq for _, given in self.open.values() for _, seq in given), default=self.head + 1)
        assert self.home.stable == lowest - 1 >= self.stable
        assert state.hot[0].holes(self.head) == [] or self.open
        self.stable = self.home.stable
        assert int(state.conversations.heads[0]) == self.head
        assert set(self.home.blocks.outstanding) == set(self.open)

    @invariant()
    def every_message_is_a_duplicate(self) -> None:
        """With its first number, for the shard itself."""
        ids = sorted(self.numbers)
        rows = rows_of([_m(n) for n in ids])
        planned = plan(self.home.state, rows, locate(self.home.state, rows), {})
        assert planned.status.tolist() == [1] * len(ids)
        assert planned.seq.tolist() == [self.numbers[n] for n in ids]


TestBlocks: Any = BlocksMachine.TestCase
TestBlocks.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

_ticks = st.lists(st.dictionaries(st.integers(0, 3), st.integers(0, 30), max_size=4), max_size=20)


@given(_ticks, st.integers(1, 3))
def test_heat_needs_consecutive_ticks(ticks: list[dict[int, int]], needed: int) -> None:
    make_hot, hot = HotDetector(20.0, 5.0, needed), set[int]()
    make_hot.tick(0.0, hot)
    over, under = dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0)
    for now, counts in enumerate(ticks, 1):
        for c, n in counts.items():
            make_hot.add(np.array([c, c], np.int32), np.array([n, 0], np.int64))
        for c in range(4):
            over[c] = over[c] + 1 if counts.get(c, 0) >= 20 and c not in hot else 0
            under[c] = under[c] + 1 if counts.get(c, 0) < 5 and c in hot else 0
        found = make_hot.tick(float(now), hot)
        assert found == ([c for c in range(4) if over[c] >= needed], [c for c in range(4) if under[c] >= needed])
        hot = (hot | set(found[0])) - set(found[1])
