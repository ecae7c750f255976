"""One incarnation of a shard's writer: plan, put, settle. Synchronous.

Everything that touches the state (all but `put`) is called from one thread, so one batch is planned and encoded while
another is on its way to the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from imray.cluster.answers import Written, answers_of
from imray.cluster.replies import Appended, Located, Refusal
from imray.core.blocks import Blocks
from imray.core.columns import Commit, Plan
from imray.core.dedup import IdTable
from imray.core.fold import are_hot, commit_read_back, freeze, reserve, sealed, settle
from imray.core.heat import Heat
from imray.core.routing import place_of
from imray.core.sequencer import NEW, commit_of, locate, plan
from imray.core.state import ShardState
from imray.log.checkpoint import Snapshot, snapshot
from imray.log.confirm import Confirmer
from imray.log.recovery import become_writer
from imray.log.rows import Prepared, gather, read_back
from imray.log.schema import Record, record_table, segment_table
from imray.log.sealed import SealedInterval
from imray.log.store import Store
from imray.log.writer import Encoded, Writer
from imray.settings import Settings

_OVERDUE = 4
"""Past so many times the ids of a checkpoint without one (a full disk, say) senders must wait: memory is bounded."""


Records = Callable[[ShardState], list[Record]]
"""Makes records from the state as it is when their turn comes."""


@dataclass
class Job:
    """What was planned and encoded; its answers are true once it is durable."""

    answers: list[Appended | Refusal]
    commit: Commit | None
    """None: nothing in it is new."""
    encoded: Encoded | None


class Committer:
    """The state of a shard and its one writer."""

    def __init__(
        self,
        store: Store,
        shard: int,
        state: ShardState,
        writer: Writer,
        settings: Settings,
        clock_ms: Callable[[], int],
    ) -> None:
        self.state, self.writer = state, writer
        self.intervals: list[SealedInterval] = list(state.sealed)  # type: ignore[arg-type]
        self._settings, self.clock_ms = settings, clock_ms
        self.blocks: Blocks | None = None
        self.confirmer = Confirmer(store, shard)
        self.shard, self.store = shard, store
        self.heat = Heat(
            settings.hot_rate_per_s, settings.cold_rate_per_s or settings.hot_rate_per_s / 4, settings.hot_ticks
        )
        self._snapshot: Snapshot | None = None
        self._used: IdTable | None = None
        self._covered = intervals_end(self.intervals)

    @classmethod
    def open(cls, store: Store, shard: int, seed: int, settings: Settings, clock_ms: Callable[[], int]) -> Committer:
        """Recover the shard and fence off every earlier writer; errors as `become_writer`."""
        state, writer = become_writer(store, shard, seed, clock_ms)
        return cls(store, shard, state, writer, settings, clock_ms)

    def plan(self, requests: Sequence[Prepared]) -> Job:
        """Number the requests' rows and encode the new ones as the next segment. They are reserved now: if `put` does
        not succeed, this incarnation is over and its state worthless."""
        table, rows = gather(requests)
        located = locate(self.state, rows)
        old = self.confirmer.confirm(rows, located) if located.maybe else {}
        planned = plan(self.state, rows, located, old)
        now = self.clock_ms()
        segment, epoch = self.writer.segment, self.writer.epoch
        commit = encoded = None
        if len(planned.touched):
            keep = None if planned.new_rows is None else planned.status == NEW
            new_seq = planned.seq if planned.new_rows is None else planned.seq[planned.new_rows]
            encoded = self.writer.encode(segment_table(table, keep, new_seq, now), now)
            segment = encoded.segment
            commit = commit_of(planned, rows, place_of(0, segment), epoch, now)
            reserve(self.state, commit)
            self.heat.add(planned.touched, planned.touched_last - planned.touched_first + 1)
        hot = {self.state.conversations.name(c): self.state.hot[c].topics for c in self._hot_of(planned)}
        written = Written(epoch, place_of(0, segment), now, self._stables(planned), hot)
        return Job(answers_of(requests, planned, written), commit, encoded)

    def _hot_of(self, planned: Plan) -> list[int]:
        hot = self.state.hot
        return [c for c in np.unique(planned.conv).tolist() if c in hot] if hot else []

    def _stables(self, planned: Plan) -> np.ndarray:
        """`stable_seq` of each row's conversation once the plan is durable. What the shard alone writes is durable in
        its order; of a hot group it is known what was settled when the batch was planned."""
        conversations = self.state.conversations
        stable = conversations.heads[planned.conv]
        if self.state.hot:
            is_hot = are_hot(self.state, planned.conv)
            stable[is_hot] = conversations.stable[planned.conv[is_hot]]
        return stable

    def record(self, records: Records) -> Job:
        """Encode records about conversations (`imray.log.schema.record_table`) as the next segment."""
        now = self.clock_ms()
        made = records(self.state)
        if not made:
            return Job([], None, None)
        table = record_table(made, now).combine_chunks()
        encoded = self.writer.encode(table, now)
        found = read_back(table, self.state.seed)
        commit = commit_read_back(self.state, place_of(0, encoded.segment), self.writer.epoch, now, found)
        reserve(self.state, commit)
        return Job([], commit, encoded)

    def put(self, job: Job) -> None:
        """Make a job durable; in the order of the jobs. FencedError, StorageError: this incarnation is over."""
        self.writer.check()  # duplicates of what was never written are not durable
        if job.encoded is not None:
            self.writer.put(job.encoded)

    def settle(self, job: Job) -> None:
        """The job is durable: readers may see it."""
        if job.commit is not None and job.encoded is not None:
            settle(self.state, job.commit, job.encoded.digest)

    def commit(self, requests: Sequence[Prepared]) -> list[Appended | Refusal]:
        """Plan, put and settle: an answer for each request."""
        job = self.plan(requests)
        self.put(job)
        self.settle(job)
        return job.answers

    def locate(self, conv_id: str, low: int, high: int) -> Located:
        """Where numbers low..high of a conversation are."""
        state = self.state
        index = state.conversations.index(conv_id)
        head = int(state.conversations.stable[index]) if index >= 0 else 0
        spans: list[tuple[int, int, int]] = []
        if index >= 0 and low <= min(high, head):
            spans = state.frozen_postings.spans(index, low, high) + state.postings.spans(index, low, high)
        intervals = [(i.interval.first, i.interval.last, i.interval.ids) for i in self.intervals]
        given = int(state.conversations.heads[index]) if index in state.hot else head
        return Located(given, head, state.log.epoch, self._covered, intervals, spans)

    @property
    def checkpoint_due(self) -> bool:
        """Whether enough came since the last checkpoint."""
        state = self.state
        if state.log.segment <= self._covered:
            return False  # an interval is called after the shard's own segments; ceilings are among them
        return (
            state.frozen is not None
            or state.recent.count >= self._settings.checkpoint_ids_max
            or len(state.postings.entries) >= self._settings.checkpoint_segments_max
        )

    @property
    def checkpoint_overdue(self) -> bool:
        """Whether so much came since that memory must be protected."""
        return self.state.recent.count >= _OVERDUE * self._settings.checkpoint_ids_max

    def freeze(self) -> Snapshot:
        """Set aside what the next checkpoint covers; again after a failed one: the same."""
        if self._snapshot is None:
            freeze(self.state)
            self._snapshot = snapshot(self.state, self.shard)
        return self._snapshot

    def frozen_settled(self) -> bool:
        """Whether what was set aside can be sealed: no grant of it is outstanding."""
        return self.blocks is None or not self.blocks.frozen_in_flight

    def sealed(self, files: list[SealedInterval]) -> None:
        """The checkpoint of the last freeze is durable."""
        self._used = sealed(self.state, list(files))
        self.intervals, self._snapshot = files, None
        self._covered = intervals_end(files)

    def clear_used(self) -> IdTable | None:
        """Clear the table of the last freeze, if not done yet. In any thread: nobody else uses it, and clearing tens
        of MB takes longer than a commit."""
        table, self._used = self._used, None
        if table is not None:
            table.clear()
        return table

    def recycle(self, table: IdTable) -> None:
        """The next freeze takes over a cleared table's memory."""
        self.state.spare = table

    def merged(self, parts: list[SealedInterval], whole: SealedInterval) -> None:
        """One interval takes the place of adjacent ones."""
        at = self.intervals.index(parts[0])
        self.intervals[at : at + len(parts)] = [whole]
        self.state.sealed = list(self.intervals)

    def figures(self) -> dict[str, object]:
        """Figures for operators."""
        state = self.state
        return {
            "epoch": state.log.epoch,
            "segment": state.log.segment,
            "conversations": state.conversations.count,
            "recent_ids": state.recent.count + (state.frozen.count if state.frozen is not None else 0),
            "sealed_ids": sum(i.interval.ids for i in self.intervals),
            "bytes": state.conversations.nbytes
            + sum(t.nbytes for t in (state.recent, state.frozen, state.spare) if t is not None)
            + sum(i.bloom.words.nbytes for i in self.intervals),
            "checkpoint_segment": self._covered,
        }


def intervals_end(intervals: Sequence[SealedInterval]) -> int:
    """The last segment that intervals cover."""
    return intervals[-1].interval.last if intervals else 0
