"""The order of one conversation at a gateway: whatever is published, lost or late, each number comes once, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imray.core import feed as feeds
from imray.core.feed import Action, Feed, PullHole, Stretch, Tell

Numbers = list[int]
"""Messages that are their own numbers."""


def run_of(first: int, last: int) -> Stretch[Numbers]:
    """Consecutive messages."""
    return Stretch(first, last, list(range(first, last + 1)), last - first + 1)


@dataclass
class Teller:
    """Carries out what a feed wants, and writes down what it tells."""

    feed: Feed[Numbers]
    upto: int
    now_ms: int = 0
    pull: PullHole | None = None
    messages: list[int] = field(default_factory=list)
    holes: list[int] = field(default_factory=list)

    def do(self, actions: list[Action[Numbers]]) -> None:
        for action in actions:
            if isinstance(action, PullHole):
                assert self.pull is None
                assert self.upto <= action.after < action.upto <= self.feed.stable
                self.pull = action
                continue
            assert action.after == self.upto
            assert action.upto <= self.feed.stable
            told = [n for run in action.runs for n in run.rows]
            void = [n for first, last, _ in action.holes for n in range(first, last + 1)]
            assert sorted(told + void) == list(range(action.after + 1, action.upto + 1))
            self.messages += told
            self.holes += void
            self.upto = action.upto
        assert self.upto == self.feed.position


def _answer(teller: Teller, voids: set[int], upto: int) -> None:
    pull = teller.pull
    assert pull is not None
    teller.pull = None
    wanted = range(pull.after + 1, upto + 1)
    runs = [run_of(n, n) for n in wanted if n not in voids]
    holes = [(n, n, "lost") for n in wanted if n in voids]
    teller.do(teller.feed.pulled(runs, holes, upto, teller.now_ms))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_each_number_is_told_once_in_order(data: st.DataObject) -> None:
    end = data.draw(st.integers(1, 40))
    voids = data.draw(st.sets(st.integers(1, end), max_size=5))
    start = data.draw(st.integers(0, end))
    teller = Teller(Feed(start), start)
    for _ in range(data.draw(st.integers(0, 30))):
        teller.now_ms += data.draw(st.integers(0, 40))
        what = data.draw(st.sampled_from(["publish", "publish", "mark", "tick", "answer", "fail"]))
        if what == "publish":
            first = data.draw(st.integers(1, end))
            last = data.draw(st.integers(first, min(end, first + 6)))
            if not voids & set(range(first, last + 1)):
                stable = data.draw(st.sampled_from([0, 0, last]))
                teller.do(teller.feed.published([run_of(first, last)], stable, teller.now_ms))
        elif what == "mark":
            teller.do(teller.feed.published((), data.draw(st.integers(0, end)), teller.now_ms))
        elif what == "tick":
            teller.do(teller.feed.tick(teller.now_ms))
        elif teller.pull is not None and what == "fail":
            teller.pull = None
            teller.do(teller.feed.pull_failed(teller.now_ms))
        elif teller.pull is not None and what == "answer":
            _answer(teller, voids, data.draw(st.integers(teller.pull.after + 1, teller.pull.upto)))
    teller.do(teller.feed.published((), end, teller.now_ms))
    for _ in range(200):
        if teller.pull is not None:
            _answer(teller, voids, teller.pull.upto)
        elif teller.feed.timer_at_ms is not None:
            teller.now_ms = max(teller.now_ms, teller.feed.timer_at_ms)
            teller.do(teller.feed.tick(teller.now_ms))
    assert teller.upto == end
    assert teller.messages == [n for n in range(start + 1, end + 1) if n not in voids]
    assert teller.holes == sorted(n for n in voids if n > start)
    assert teller.feed.held_bytes == 0


def test_nothing_above_stable_is_told() -> None:
    feed: Feed[Numbers] = Feed(0)
    assert feed.published([run_of(1, 5)], 3, 0) == [Tell(0, 3, [run_of(1, 3)])]
    assert feed.published((), 5, 0) == [Tell(3, 5, [run_of(4, 5)])]


def test_a_hole_below_stable_is_pulled_when_it_was_open_for_a_while() -> None:
    feed: Feed[Numbers] = Feed(0)
    assert feed.published([run_of(3, 4)], 4, 0) == []
    assert feed.tick(feeds.HOLE_MS - 1) == []
    assert feed.tick(feeds.HOLE_MS) == [PullHole(0, 2)]
    assert feed.pulled([run_of(2, 2)], [(1, 1, "lost")], 2, 60) == [
        Tell(0, 2, [run_of(2, 2)], [(1, 1, "lost")]),
        Tell(2, 4, [run_of(3, 4)]),
    ]


def test_a_hole_that_closes_by_itself_is_not_pulled() -> None:
    feed: Feed[Numbers] = Feed(0)
    feed.published([run_of(2, 2)], 2, 0)
    assert feed.published([run_of(1, 1)], 0, 10) == [Tell(0, 2, [run_of(1, 1), run_of(2, 2)])]
    assert feed.timer_at_ms is None


def test_a_pull_that_fails_is_made_again_later_and_later() -> None:
    feed: Feed[Numbers] = Feed(0)
    feed.published((), 1, 0)
    now_ms = feeds.HOLE_MS
    pauses = []
    for _ in range(7):
        assert feed.tick(now_ms) == [PullHole(0, 1)]
        feed.pull_failed(now_ms)
        assert feed.timer_at_ms is not None
        pauses.append(feed.timer_at_ms - now_ms)
        now_ms = feed.timer_at_ms
    assert pauses == [100, 200, 400, 800, 1600, 2000, 2000]


def test_more_than_may_be_held_is_dropped_from_above_and_pulled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HELD_BYTES_MAX", 4)
    feed: Feed[Numbers] = Feed(0)
    feed.published([run_of(2, 3), run_of(5, 6), run_of(8, 9)], 0, 0)
    assert feed.held_bytes == 4
    assert feed.published([run_of(1, 1)], 9, 0) == [Tell(0, 3, [run_of(1, 1), run_of(2, 3)])]
    assert feed.held_bytes == 0  # what came in below had them dropped, too
    assert feed.tick(feeds.HOLE_MS) == [PullHole(3, 9)]
