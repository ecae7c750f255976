"""Whatever is delayed, repeated, reordered or dropped: a prefix of the truth, in order, each number once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imray.core.reorder import Action, Deliver, Pull, Reorder, ReorderConfig, SetTimer, Skip, Void

CONFIG = ReorderConfig(gap_timeout_ms=10, retry_ms_min=5, retry_ms_max=40, buffer_messages_max=3)
STEPS_MAX = 10_000
VOID = "void"


class Reordering(RuleBasedStateMachine):
    """A server (the truth), a network that does what it likes, and one client."""

    @initialize(first=st.integers(0, 3))
    def start(self, first: int) -> None:
        self.truth: list[str] = ["message"] * first  # truth[n - 1]: what number n is
        self.stable_seq = first
        self.cursor = first
        self.machine: Reorder[str] = Reorder(CONFIG, last_shown=first)
        self.now_ms = 0
        self.wire: list[int] = []
        self.shown: list[str] = []
        self.pull: Pull | None = None
        self.timer_at_ms: int | None = None
        self.carry_out(self.machine.subscribed(0))

    def carry_out(self, actions: list[Action[str]]) -> None:
        for action in actions:
            match action:
                case Deliver(messages):
                    for seq, message in messages:
                        assert seq == self.cursor + 1
                        self.cursor = seq
                        self.shown.append(message)
                case Skip(void):
                    assert void.from_seq == self.cursor + 1 <= void.to_seq
                    assert void.reason == VOID
                    self.cursor = void.to_seq
                case Pull(after, upto):
                    assert self.pull is None, "one pull in flight"
                    assert upto is None or after < upto
                    self.pull = action
                case SetTimer(at_ms):
                    self.timer_at_ms = at_ms

    @rule(kinds=st.lists(st.sampled_from(["message", "message", VOID]), min_size=1, max_size=5))
    def commit(self, kinds: list[str]) -> None:
        for kind in kinds:
            self.truth.append(VOID if kind == VOID else f"message {len(self.truth) + 1}")
            if kind != VOID:
                self.wire.append(len(self.truth))

    @rule(data=st.data())
    def become_stable(self, data: st.DataObject) -> None:
        self.stable_seq = data.draw(st.integers(self.stable_seq, len(self.truth)))

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.wire), min_size=1, max_size=6))
        if not again:
            self.wire = [seq for seq in self.wire if seq not in chosen]
        self.carry_out(self.machine.live([(seq, self.truth[seq - 1]) for seq in chosen], self.now_ms))

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.wire.remove(data.draw(st.sampled_from(self.wire)))

    @precondition(lambda self: self.pull is not None)
    @rule(limit=st.integers(1, 4))
    def answer(self, limit: int) -> None:
        assert self.pull is not None
        after, upto, self.pull = self.pull.after, self.pull.upto, None
        end = self.stable_seq if upto is None else min(upto, self.stable_seq)
        page_next = after + limit if after + limit < end else None
        numbers = range(after + 1, (end if page_next is None else page_next) + 1)
        messages = [(n, self.truth[n - 1]) for n in numbers if self.truth[n - 1] != VOID]
        holes = [Void(n, n, VOID) for n in numbers if self.truth[n - 1] == VOID]
        self.carry_out(self.machine.pulled(messages, holes, self.stable_seq, page_next, self.now_ms))

    @precondition(lambda self: self.pull is not None)
    @rule()
    def fail(self) -> None:
        self.pull = None
        self.carry_out(self.machine.pull_failed(self.now_ms))

    @rule(ms=st.integers(0, 50))
    def wait(self, ms: int) -> None:
        self.now_ms += ms
        if self.timer_at_ms is not None:
            self.fire()

    @rule()
    def reconnect(self) -> None:
        self.carry_out(self.machine.subscribed(self.now_ms))

    @rule()
    def heartbeat(self) -> None:
        self.carry_out(self.machine.head(self.stable_seq, self.now_ms))

    def fire(self) -> None:
        self.timer_at_ms = None
        self.carry_out(self.machine.tick(self.now_ms))

    @invariant()
    def a_prefix_of_the_truth(self) -> None:
        if not hasattr(self, "truth"):
            return
        start = self.cursor - self.machine.next_seq + 1
        assert start == 0, "the machine and its listener agree where they are"
        upto = [message for message in self.truth[: self.cursor] if message not in (VOID, "message")]
        assert self.shown == upto

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "machine"):
            assert len(self.machine.buffered) <= CONFIG.buffer_messages_max
            assert all(seq > self.machine.next_seq for seq in self.machine.buffered)

    @invariant()
    def something_is_due_while_anything_is_missing(self) -> None:
        if hasattr(self, "machine") and self.machine.buffered:
            assert self.pull is not None or self.timer_at_ms is not None
            assert self.timer_at_ms == self.machine.timer_at_ms

    def teardown(self) -> None:
        """Pulls are answered from now on, nothing is pushed any more: everything stable is shown."""
        if not hasattr(self, "machine"):
            return
        self.carry_out(self.machine.head(self.stable_seq, self.now_ms))
        for _ in range(STEPS_MAX):
            if self.cursor >= self.stable_seq:
                break
            if self.pull is not None:
                self.answer(limit=3)
            else:
                assert self.timer_at_ms is not None, "a gap is open, and nothing will ever close it"
                self.now_ms = max(self.now_ms, self.timer_at_ms)
                self.fire()
        assert self.cursor >= self.stable_seq
        self.a_prefix_of_the_truth()


TestReordering = Reordering.TestCase
TestReordering.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
