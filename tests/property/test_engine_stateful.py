"""Random lives of a shard against a model of a few lines: sends, retries, crashes, checkpoints, take-overs.

After every step: the live state, the log folded from nothing and the log folded from the checkpoint all give the
model's numbers, and the same answer for every id ever sent. IMRAY_TEST_EXAMPLES makes it longer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from imray.core.errors import FencedError
from imray.core.sequencer import locate, plan
from imray.core.state import ShardState
from imray.log import checkpoint, confirm, sealed
from imray.log.sealed_filter import grown
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard import recovery
from imray.shard.committer import Committer
from tests.support.batches import (
    CONFLICT,
    DUPLICATE,
    NEW,
    SEED,
    Msg,
    Row,
    answers_of,
    collect,
    merge_all,
    msg_id,
    prepared,
    rows_of,
)

_EXAMPLES = int(os.environ.get("IMRAY_TEST_EXAMPLES", "20"))
_CONVS = ["a", "bb", "gruppe-ä", "xxh3_128:", "e" * 128]

_messages = st.builds(
    lambda conv, n, other: Msg(conv, msg_id(n), b"%d" % n + b"!" * other, topic="t" if n % 3 else None),
    st.sampled_from(_CONVS),
    st.integers(0, 60),
    st.sampled_from([0] * 9 + [1]),
)
_requests = st.lists(st.lists(_messages, min_size=1, max_size=8), min_size=1, max_size=3)


class Crash(Exception):
    """The process ended here."""


class CrashStore(LocalStore):
    """Ends the process before or after the n-th put. Does not fsync: no power is cut here."""

    crash_before = crash_after = -1

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        self.crash_before -= 1
        self.crash_after -= 1
        if self.crash_before == 0:
            raise Crash
        done = super().put_if_absent(name, parts)
        if self.crash_after == 0:
            raise Crash
        return done

    def _sync_file(self, fd: int) -> None:
        pass

    def _sync_folder(self, folder: Any) -> None:
        pass


class Model:
    """What is promised: one number per conversation and id, in the order of the log, without holes."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, bytes], tuple[Msg, Row]] = {}
        self.heads: dict[str, int] = {}
        self.spans: dict[str, list[tuple[int, int, int]]] = {}

    def commit(self, messages: Sequence[Msg], segment: int, epoch: int, ts: int) -> list[Row]:
        """What the messages are answered once they are durable in `segment`."""
        rows, n = [], 0
        for m in messages:
            known = self.first.get((m.conv, m.id))
            if known is None:
                seq = self.heads[m.conv] = self.heads.get(m.conv, 0) + 1
                row = Row(NEW, seq, segment, n, epoch, ts)
                self.first[m.conv, m.id] = m, row
                spans = self.spans.setdefault(m.conv, [])
                low = spans.pop()[1] if spans and spans[-1][0] == segment else seq
                spans.append((segment, low, seq))
                n += 1
            else:
                row = known[1]
                status = DUPLICATE if known[0].payload == m.payload else CONFLICT
                row = Row(status, row.seq, row.segment, row.row, row.epoch, row.server_ts)
            rows.append(row)
        return rows

    def fresh(self, messages: Sequence[Msg]) -> bool:
        """Whether any of them is new."""
        return any((m.conv, m.id) not in self.first for m in messages)


class ShardMachine(RuleBasedStateMachine):
    """One shard's life."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="imray-stateful-")
        self.store = CrashStore(self.root)
        self.model = Model()
        self.ts = 1000
        self.epochs: set[int] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def _clock(self) -> int:
        return self.ts

    def _open(self) -> Committer:
        self.store.crash_before = self.store.crash_after = -1
        committer = Committer.open(self.store, 0, SEED, Settings(), self._clock)
        assert committer.state.log.epoch not in self.epochs, "an epoch is given once"
        self.epochs.add(committer.state.log.epoch)
        return committer

    @initialize()
    def begin(self) -> None:
        """A new data folder."""
        self.committer = self._open()

    def _predict(self, requests: list[list[Msg]]) -> list[Row]:
        writer = self.committer.writer
        return self.model.commit([m for r in requests for m in r], writer.segment + 1, writer.epoch, self.ts)

    @rule(requests=_requests, jump=st.sampled_from([1, 5, 3_600_000, -3_600_000]))
    def send(self, requests: list[list[Msg]], jump: int) -> None:
        """A commit, the clock anywhere."""
        self.ts += jump
        expected = self._predict(requests)
        answers = self.committer.commit([prepared(r) for r in requests])
        assert [row for a in answers for row in answers_of(a)] == expected
        stables = [int(s) for a in answers for s in a.stables()]
        assert stables == [self.model.heads[m.conv] for r in requests for m in r]

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """Old and recent ids again: the first numbers, and nothing is written."""
        if not self.model.first:
            return
        again = data.draw(st.lists(st.sampled_from(sorted(self.model.first)), min_size=1, max_size=20))
        before = self.committer.writer.segment
        self._resend([self.model.first[k][0] for k in again])
        assert self.committer.writer.segment == before

    def _resend(self, messages: list[Msg]) -> None:
        expected = self._predict([messages])
        (answer,) = self.committer.commit([prepared(messages)])
        assert answers_of(answer) == expected

    @rule(requests=_requests, landed=st.booleans())
    def crash_in_commit(self, requests: list[list[Msg]], landed: bool) -> None:
        """The process ends just before or just after the put."""
        messages = [m for r in requests for m in r]
        self.store.crash_before, self.store.crash_after = (-1, 1) if landed else (1, -1)
        if self.model.fresh(messages):
            if landed:
                self._predict(requests)
            with pytest.raises(Crash):
                self.committer.commit([prepared(r) for r in requests])
        self.committer = self._open()

    @rule()
    def restart(self) -> None:
        """The process ends between commits."""
        self.committer = self._open()

    @rule(requests=_requests)
    def take_over(self, requests: list[list[Msg]]) -> None:
        """A second writer starts; the old one can write nothing any more."""
        old, self.committer = self.committer, self._open()
        if self.model.fresh([m for r in requests for m in r]):
            for _ in range(2):
                with pytest.raises(FencedError):
                    old.commit([prepared(r) for r in requests])

    @precondition(lambda self: self.committer.state.recent.count)
    @rule()
    def freeze(self) -> None:
        """A checkpoint begins; commits go on."""
        self.committer.freeze()

    @precondition(lambda self: self.committer.state.frozen is not None)
    @rule(crash_at=st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4, 5, 6]), dies=st.booleans())
    def seal(self, crash_at: int, dies: bool) -> None:
        """A checkpoint is written, or fails between two of its files (`dies`: and the process with it)."""
        committer = self.committer
        self.store.crash_before = crash_at or -1
        try:
            files = checkpoint.write(self.store, committer.freeze(), committer.intervals)
        except Crash:
            self.store.crash_before = -1
            if dies:
                self.committer = self._open()
            return
        self.store.crash_before = -1
        committer.sealed(files, grown(committer.state.sealed_filter, files))
        if (table := committer.clear_used()) is not None:
            committer.recycle(table)
        collect(committer)
        merge_all(committer)

    @invariant()
    def all_views_agree(self) -> None:
        """Live state, log from nothing, log from the checkpoint: the model."""
        folded, resumed = ShardState(SEED), checkpoint.restore(self.store, 0, SEED)
        live = self.committer.state
        for state in (folded, resumed):
            recovery.replay(self.store, 0, state)
            assert state.log == live.log
        for state in (live, folded, resumed):
            names = {state.conversations.name(i): int(h) for i, h in enumerate(state.conversations.copy_columns()[2])}
            assert names == self.model.heads
            self._answers_agree(state)
            self._postings_agree(state)

    def _answers_agree(self, state: ShardState) -> None:
        if not self.model.first:
            return
        messages = [m for m, _ in self.model.first.values()]
        rows = rows_of(messages)
        located = locate(state, rows)
        planned = plan(state, rows, located, confirm.Confirmer(self.store, 0, SEED).confirm(rows, located))
        assert (planned.status == 1).all()
        assert planned.log_position is not None
        assert planned.epoch is not None
        assert planned.server_ts is not None
        columns = (planned.seq, planned.log_position, planned.row_in_segment, planned.epoch, planned.server_ts)
        got = list(zip(*(c.tolist() for c in columns), strict=True))
        first = [row for _, row in self.model.first.values()]
        assert got == [(r.seq, r.segment, r.row, r.epoch, r.server_ts) for r in first]

    def _postings_agree(self, state: ShardState) -> None:
        found: dict[str, list[tuple[int, int, int]]] = {}
        for interval in state.sealed:
            assert isinstance(interval, sealed.SealedInterval)
            for r in interval.postings().to_pylist():
                found.setdefault(r["conv_id"], []).append((r["place"], r["first"], r["last"]))
        for conv, head in self.model.heads.items():
            index = state.conversations.index(conv)
            spans = state.frozen_postings.spans(index, 1, head) + state.postings.spans(index, 1, head)
            assert found.get(conv, []) + spans == self.model.spans[conv]


@pytest.mark.timeout(120 + 6 * _EXAMPLES)
def test_random_lives_of_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small fan-out and caches, so that sealing, merging and eviction happen often."""
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 3)
    profile = settings(
        max_examples=_EXAMPLES,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(ShardMachine, settings=profile)
