"""Whatever a server and its network do (delay, repeat, drop, cut, be behind): a prefix of the log, whole in the end.

The model keeps one log for each conversation, and connections that each carry a queue of items. Items reach the client
in their order, unless a rule drops or repeats one; those of a connection that was cut may still come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from imray.core import delivery_items as items
from imray.core.delivery import Delivery
from imray.core.delivery_conversation import DeliveryConfig
from imray.core.delivery_link import LinkPhase
from imray.core.reorder import Void
from tests.support import delivery_mutations
from tests.support.delivery_mutations import RemovedRule, removed

CONFIG = DeliveryConfig(
    connect_timeout_ms=100,
    backoff_ms_min=10,
    backoff_ms_max=80,
    hold_ms=50,
    ping_interval_ms=200,
    ping_interval_ms_min=200,
    answer_timeout_ms=60,
    stall_timeout_ms=60,
    retry_ms_min=5,
    retry_ms_max=40,
)
CONVERSATIONS = ("tea", "coffee")
VOID = "void"
ROUNDS_MAX = 2_000
conversations = st.sampled_from(CONVERSATIONS)
seldom = st.integers(0, 5).map(lambda n: n == 0)
"""For what sets the client back: otherwise it would hardly ever be where it can be set back from."""


@dataclass
class Wire:
    """A connection as the server and the network see it."""

    conn: int
    cut: bool = False
    """The client knows that it is gone."""
    dead: bool = False
    """Nothing goes through any more, and nobody was told."""
    welcomed: bool = False
    told: dict[str, int] = field(default_factory=dict)
    """Up to where each subscription was told."""
    queue: deque[items.HeardItem[str] | None] = field(default_factory=deque)
    """None is a pong."""
    last: items.HeardItem[str] | None = None


class Delivering(RuleBasedStateMachine):
    """Logs, a server, a network that does what it likes, and one client."""

    @initialize(after=st.integers(0, 3))
    def start(self, after: int) -> None:
        self.log: dict[str, list[str]] = {conv_id: ["message"] * 3 for conv_id in CONVERSATIONS}
        self.began = {"tea": after, "coffee": 0}
        self.shown: dict[str, list[Any]] = {conv_id: [] for conv_id in CONVERSATIONS}
        self.cursor = dict(self.began)
        self.epoch = 5
        self.now_ms = 0
        self.wires: list[Wire] = []
        self.session: Delivery[str] = Delivery(CONFIG, lambda: 0.5)
        for conv_id, first in self.began.items():
            self.carry_out(self.session.follow(conv_id, first, False, 0))
        self.carry_out(self.session.start(0))
        self.work()

    def carry_out(self, actions: list[items.DeliveryAction[str]]) -> None:
        for action in actions:
            match action:
                case items.Connect(conn):
                    assert all(wire.cut for wire in self.wires), "one connection at a time"
                    self.wires.append(Wire(conn))
                case items.Close(conn):
                    self.wire(conn).cut = True
                case items.Subscribe(conn, ref, conv_id, after, passive):
                    assert (after, passive) == (self.cursor[conv_id], False), "from the last number shown"
                    self.subscribe(self.wire(conn), ref, conv_id, self.cursor[conv_id])
                case items.Unsubscribe(conn, _, conv_id):
                    self.wire(conn).told.pop(conv_id, None)
                case items.Ping(conn):
                    assert not self.wire(conn).cut
                    if not self.wire(conn).dead:
                        self.wire(conn).queue.append(None)
                case items.Show(conv_id, parts):
                    self.show(conv_id, parts)
                case _:
                    raise AssertionError(f"nothing leads to {action}")

    def wire(self, conn: int) -> Wire:
        return next(wire for wire in self.wires if wire.conn == conn)

    def subscribe(self, wire: Wire, ref: int, conv_id: str, after: int) -> None:
        assert not wire.cut, "nothing is sent over a connection that is gone"
        if wire.dead:
            return
        wire.told[conv_id] = after
        wire.queue.append(items.SubscribedHeard(ref, conv_id, after, len(self.log[conv_id]), self.epoch))

    def show(self, conv_id: str, parts: list[tuple[int, str] | Void]) -> None:
        for part in parts:
            first, last = (part.from_seq, part.to_seq) if isinstance(part, Void) else (part[0], part[0])
            assert first == self.cursor[conv_id] + 1 <= last + 1, "in order, each once"
            kinds = self.log[conv_id][first - 1 : last]
            assert len(kinds) == last - first + 1, "nothing that is not in the log"
            assert all((kind == VOID) == isinstance(part, Void) for kind in kinds)
            self.shown[conv_id].append(part)
            self.cursor[conv_id] = last

    def range_of(self, conv_id: str, after: int, upto: int) -> items.MessagesHeard[str]:
        numbers = range(after + 1, upto + 1)
        log = self.log[conv_id]
        messages = [(n, log[n - 1]) for n in numbers if log[n - 1] != VOID]
        holes = [Void(n, n, VOID) for n in numbers if log[n - 1] == VOID]
        return items.MessagesHeard(conv_id, after, upto, len(log), messages, holes)

    @property
    def open_wires(self) -> list[Wire]:
        """Over which something comes."""
        return [wire for wire in self.wires if not wire.cut and not wire.dead]

    @rule(conv_id=conversations, kinds=st.lists(st.sampled_from(["message", "message", VOID]), min_size=1, max_size=4))
    def commit(self, conv_id: str, kinds: list[str]) -> None:
        self.log[conv_id].extend(kinds)

    @precondition(lambda self: self.open_wires)
    @rule()
    def welcome(self) -> None:
        for wire in self.open_wires:
            if not wire.welcomed:
                wire.welcomed = True
                wire.queue.append(items.WelcomeHeard(200))

    @precondition(lambda self: self.open_wires)
    @rule(conv_id=conversations, most=st.integers(1, 4))
    def push(self, conv_id: str, most: int) -> None:
        for wire in self.open_wires:
            if conv_id in wire.told:
                after = wire.told[conv_id]
                upto = min(len(self.log[conv_id]), after + most)
                if upto > after:
                    wire.told[conv_id] = upto
                    wire.queue.append(self.range_of(conv_id, after, upto))

    @precondition(lambda self: self.open_wires)
    @rule(conv_id=conversations, now=seldom)
    def fall_behind(self, conv_id: str, now: bool) -> None:
        if not now:
            return
        for wire in self.open_wires:
            if conv_id in wire.told:
                head = len(self.log[conv_id])
                wire.queue.append(items.BehindHeard(conv_id, wire.told[conv_id], head))
                wire.told[conv_id] = head

    @precondition(lambda self: self.open_wires)
    @rule(conv_id=conversations, now=seldom)
    def become_unavailable(self, conv_id: str, now: bool) -> None:
        if not now:
            return
        for wire in self.open_wires:
            if conv_id in wire.told:
                wire.queue.append(items.EndedHeard(conv_id, wire.told.pop(conv_id), "unavailable"))

    @precondition(lambda self: any(wire.queue for wire in self.wires))
    @rule(data=st.data(), count=st.integers(1, 5))
    def deliver(self, data: st.DataObject, count: int) -> None:
        wire = data.draw(st.sampled_from([wire for wire in self.wires if wire.queue]))
        for _ in range(min(count, len(wire.queue))):
            self.hand_over(wire)

    def hand_over(self, wire: Wire) -> None:
        wire.last = wire.queue.popleft()
        if wire.last is None:
            self.session.heard(wire.conn, self.now_ms)
        else:
            self.carry_out(self.session.item(wire.conn, wire.last, self.now_ms))

    @precondition(lambda self: any(wire.queue for wire in self.wires))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Any item but `ended`: after that nothing is told that could show the loss."""
        wire = data.draw(st.sampled_from([wire for wire in self.wires if wire.queue]))
        if not isinstance(wire.queue[0], items.EndedHeard):
            wire.queue.popleft()

    @precondition(lambda self: any(wire.last for wire in self.wires))
    @rule(data=st.data(), at_once=st.booleans())
    def repeat(self, data: st.DataObject, at_once: bool) -> None:
        wire = data.draw(st.sampled_from([wire for wire in self.wires if wire.last]))
        assert wire.last is not None
        if at_once:
            self.carry_out(self.session.item(wire.conn, wire.last, self.now_ms))
        else:
            wire.queue.append(wire.last)

    @precondition(lambda self: self.open_wires)
    @rule(told=st.booleans(), code=st.sampled_from([None, 1001, 1006, 4401, 4429]), now=seldom)
    def cut(self, told: bool, code: int | None, now: bool) -> None:
        """`told`: the client notices at once; else it must find out by itself."""
        if not now:
            return
        wire = self.open_wires[0]
        if told and (code != 4401 or self.session.link.phase is LinkPhase.OPEN):
            wire.cut = True
            self.carry_out(self.session.closed(wire.conn, code, "", self.now_ms))
        elif not told:
            wire.dead = True
            wire.queue.clear()
            wire.told.clear()

    @precondition(lambda self: self.open_wires)
    @rule(in_ms=st.integers(0, 100), now=seldom)
    def drain(self, in_ms: int, now: bool) -> None:
        if not now:
            return
        self.open_wires[0].queue.append(items.DrainHeard(in_ms))

    @rule(conv_id=conversations, now=seldom)
    def hold(self, conv_id: str, now: bool) -> None:
        if not now:
            return
        self.carry_out(self.session.hold(conv_id))

    @rule(conv_id=conversations)
    def resume(self, conv_id: str) -> None:
        self.carry_out(self.session.resume(conv_id, self.now_ms))

    @rule(ms=st.integers(0, 60))
    def wait(self, ms: int) -> None:
        self.now_ms += ms
        if self.session.timer_at_ms is not None and self.session.timer_at_ms <= self.now_ms:
            self.carry_out(self.session.tick(self.now_ms))

    @invariant()
    def both_agree_where_they_are(self) -> None:
        if hasattr(self, "session"):
            assert {c: self.session.last_shown(c) for c in CONVERSATIONS} == self.cursor
            assert self.session.timer_at_ms is not None, "a session that is not over always waits for some moment"

    def teardown(self) -> None:
        """The network and the server do what they should from now on: all of the logs is shown."""
        if not hasattr(self, "session"):
            return
        for conv_id in CONVERSATIONS:
            self.log[conv_id].append("message")  # what is told next shows what was lost before
            self.carry_out(self.session.resume(conv_id, self.now_ms))
        for _ in range(ROUNDS_MAX):
            if all(self.cursor[conv_id] == len(self.log[conv_id]) for conv_id in CONVERSATIONS):
                return
            self.work()
            at_ms = self.session.timer_at_ms
            assert at_ms is not None
            self.now_ms = max(self.now_ms, at_ms)
            self.carry_out(self.session.tick(self.now_ms))
        raise AssertionError(f"shown up to {self.cursor}, of { ({c: len(self.log[c]) for c in CONVERSATIONS}) }")

    def work(self) -> None:
        """Everything that is under way arrives."""
        for _ in range(ROUNDS_MAX):
            self.welcome()
            for conv_id in CONVERSATIONS:
                self.push(conv_id, 3)
            if not any(wire.queue for wire in self.wires):
                return
            for wire in self.wires:
                while wire.queue:
                    self.hand_over(wire)
        raise AssertionError("items without end")


TestDelivering = Delivering.TestCase
TestDelivering.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("gone", [r for r in delivery_mutations.ALL if r.shows], ids=lambda gone: gone.rule)
def test_the_model_notices_when_a_rule_is_gone(gone: RemovedRule) -> None:
    quick = settings(
        max_examples=400,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with removed(gone), pytest.raises((AssertionError, TypeError)):
        run_state_machine_as_test(Delivering, settings=quick)
