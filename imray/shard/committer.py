"""One incarnation of a shard's writer: plan, put, mark durable. Synchronous.

Everything that touches the state (all but `put`) is called from one thread, so one batch is planned and encoded while
another is on its way to the disk.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from imray.core.blocks import Blocks
from imray.core.columns import Plan, RowStatus
from imray.core.dedup import IdTable, SealedFilter
from imray.core.errors import FencedError
from imray.core.fold import are_hot, commit_read_back, freeze, mark_durable, reserve, sealed
from imray.core.hot_detector import HotDetector
from imray.core.replies import Appended, Located, Refusal
from imray.core.routing import log_position_of
from imray.core.sequencer import commit_of, plan
from imray.core.state import ShardState
from imray.core.status import LogFigures
from imray.log.checkpoint_snapshot import Snapshot, snapshot
from imray.log.confirm import Confirmer
from imray.log.retire import Retired
from imray.log.rows import Prepared, read_back, senders_of
from imray.log.schema import record_table, segment_table
from imray.log.sealed import SealedInterval
from imray.log.store import Store
from imray.log.writer import Writer
from imray.settings import Settings
from imray.shard.answers import Written, answers_of
from imray.shard.jobs import Job, Records
from imray.shard.locating import located as located
from imray.shard.old_ids import FoundIds, find
from imray.shard.recovery import Readable, become_writer

log = logging.getLogger("imray.committer")

_OVERDUE = 4
_OVERDUE_SEGMENTS = 16
"""Past so many times the ids or segments of a checkpoint without one (a full disk, say) senders must wait: memory, and
what the next recovery reads, are bounded."""
_NOTES_KEPT = 20


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
        self.state = state
        self.writer = writer
        self._settings = settings
        self.clock_ms = clock_ms
        self.open_to_all = settings.conversations_open
        self.blocks: Blocks | None = None
        self.confirmer = Confirmer(store, shard, state.seed, self.note)
        self.rewrite = False
        """An interval was made anew, or the log was read instead of a checkpoint: there should be one, though none is
        due."""
        self.retired = Retired(store, shard, writer.is_last)
        """Touched by whoever writes the checkpoints, after each of them."""
        self._replaced: list[SealedInterval] = []
        self.notes: deque[str] = deque(maxlen=_NOTES_KEPT)
        """Which derived files were missing or damaged, and what was done: for operators."""
        self.shard = shard
        self.store = store
        self.hot_detector = HotDetector(
            settings.hot_rate_per_s, settings.cold_rate_per_s or settings.hot_rate_per_s / 4, settings.hot_ticks
        )
        self._snapshot: Snapshot | None = None
        self._used: IdTable | None = None

    @classmethod
    def open(
        cls,
        store: Store,
        shard: int,
        seed: int,
        settings: Settings,
        clock_ms: Callable[[], int],
        on_unwritable: Callable[[Readable], None] = lambda _: None,
        notes: deque[str] | None = None,
    ) -> Committer:
        """Recover the shard and fence off every earlier writer; as `become_writer`. `notes` are those of former
        incarnations; they go on."""
        told: list[str] = []
        state, writer = become_writer(store, shard, seed, clock_ms, told, on_unwritable, settings.checkpoint_ids_max)
        committer = cls(store, shard, state, writer, settings, clock_ms)
        if notes is not None:
            committer.notes = notes
        for note in told:
            committer.note(note)
        committer.rewrite = bool(told)
        return committer

    def note(self, text: str) -> None:
        """Something that operators should know, and that stops nothing."""
        log.warning("shard %d: %s", self.shard, text)
        self.notes.append(text)

    @property
    def intervals(self) -> list[SealedInterval]:
        """The sealed intervals, oldest first. The list is replaced whole, in the thread of the state: who took it keeps
        what it was."""
        return self.state.sealed  # type: ignore[return-value]

    def plan(self, requests: Sequence[Prepared]) -> Job:
        """Number the requests' rows and encode the new ones as the next segment. They are reserved now: if `put` does
        not succeed, this incarnation is over and its state worthless.

        Reads no file: requests with rows that files must be asked for are left out (`Job.aside`)."""
        found = find(self.state, self.confirmer, requests)
        if not found.aside:
            return self._planned(requests, found)
        left_out = {each.request for each in found.aside}
        rest = [request for i, request in enumerate(requests) if i not in left_out]
        job = self._planned(rest, find(self.state, self.confirmer, rest)) if rest else Job([], None, None)
        return replace(job, aside=found.aside)

    def _planned(self, requests: Sequence[Prepared], found: FoundIds) -> Job:
        table = found.table
        rows = found.rows
        located = found.located
        old = found.old
        forbidden = self.state.members.forbidden(located.conv, lambda: senders_of(table), self.open_to_all)
        planned = plan(self.state, rows, located, old, forbidden=forbidden)
        now = self.clock_ms()
        segment = self.writer.segment
        epoch = self.writer.epoch
        commit = encoded = numbered = None
        if len(planned.touched):
            keep = None if planned.new_rows is None else planned.status == RowStatus.NEW
            new_seq = planned.seq if planned.new_rows is None else planned.seq[planned.new_rows]
            numbered = segment_table(table, keep, new_seq, now)
            encoded = self.writer.encode(numbered, now)
            segment = encoded.segment
            commit = commit_of(planned, rows, log_position_of(0, segment), epoch, now)
            reserve(self.state, commit)
            self.hot_detector.add(planned.touched, planned.touched_last - planned.touched_first + 1)
        hot = {self.state.conversations.name(c): self.state.hot[c].partitions for c in self._hot_of(planned)}
        written = Written(epoch, log_position_of(0, segment), now, self._stables(planned), hot)
        judged = forbidden is not None and bool((planned.status == RowStatus.FORBIDDEN).any())
        answers = answers_of(requests, planned, written)
        return Job(answers, commit, encoded, table=numbered, of_last_writer=judged)

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
            return Job([], None, None, of_last_writer=True)
        table = record_table(made, now).combine_chunks()
        encoded = self.writer.encode(table, now)
        found = read_back(table, self.state.seed)
        commit = commit_read_back(self.state, log_position_of(0, encoded.segment), self.writer.epoch, now, found)
        reserve(self.state, commit)
        name = self.state.conversations.name
        told = tuple(self.state.members.told(name(m.conv), m) for m in commit.members)
        return Job([], commit, encoded, table=table, members=told)

    def put(self, job: Job) -> None:
        """Make a job durable; in the order of the jobs. FencedError, StorageError: this incarnation is over."""
        self.writer.check()  # duplicates of what was never written are not durable
        if job.encoded is not None:
            self.writer.put(job.encoded)
        elif job.of_last_writer and not self.writer.is_last():
            raise FencedError(f"shard {self.shard}: the writer of epoch {self.writer.epoch} is not the last any more")

    def mark_durable(self, job: Job) -> None:
        """The job is durable: readers may see it."""
        if job.commit is not None and job.encoded is not None:
            mark_durable(self.state, job.commit, job.encoded.digest)
            self.writer.acked(job.encoded.segment)

    def commit(self, requests: Sequence[Prepared]) -> list[Appended | Refusal]:
        """Plan, put and mark durable: an answer for each request. Files are read here, too."""
        requests = list(requests)
        while aside := find(self.state, self.confirmer, requests).aside:
            for each in aside:
                while each.look_up.step():
                    pass
                requests[each.request] = replace(requests[each.request], looked=each.look_up.looked)
        job = self.plan(requests)
        self.put(job)
        self.mark_durable(job)
        return job.answers

    def locate(self, conv_id: str, low: int, high: int) -> Located:
        """Where numbers low..high of a conversation are."""
        return located(self.state, conv_id, low, high)

    @property
    def checkpoint_due(self) -> bool:
        """Whether enough came since the last checkpoint, from the shard's own log or its partitions'."""
        state = self.state
        return (
            state.frozen is not None
            or (self.rewrite and self.log_moved)
            or state.recent.count >= self._settings.checkpoint_ids_max
            or len(state.postings.entries) + state.member_segments >= self._settings.checkpoint_segments_max
        )

    @property
    def checkpoint_overdue(self) -> bool:
        """Whether so much came since that memory must be protected."""
        state = self.state
        settings = self._settings
        return (
            state.recent.count >= _OVERDUE * settings.checkpoint_ids_max
            or len(state.postings.entries) + state.member_segments
            >= _OVERDUE_SEGMENTS * settings.checkpoint_segments_max
        )

    @property
    def log_moved(self) -> bool:
        """Whether the shard's own log has a segment that no checkpoint covers: a checkpoint is called after it."""
        return self.state.log.segment > self.state.covered.get(0, 0)

    def freeze(self) -> Snapshot:
        """Set aside what the next checkpoint covers; again after a failed one: the same."""
        if self._snapshot is None:
            freeze(self.state)
            self._snapshot = snapshot(self.state, self.shard)
        return self._snapshot

    def frozen_settled(self) -> bool:
        """Whether what was set aside can be sealed: no grant of it is outstanding."""
        return self.blocks is None or not self.blocks.frozen_in_flight

    def sealed(self, files: Sequence[SealedInterval], sealed_filter: SealedFilter | None = None) -> None:
        """The checkpoint of the last freeze is durable; its ids are in the last of `files`. What was merged or made
        anew while it was written stays so. `sealed_filter`: one that may stand for all from now on."""
        self.state.sealed_filter = sealed_filter
        self._used = sealed(self.state, [*self.intervals, files[-1]])
        if sealed_filter is not None:
            sealed_filter.forget_but(self.state.sealed)
        self._snapshot = None
        self.rewrite = False

    def use_filter(self, sealed_filter: SealedFilter | None) -> None:
        """Look here first from now on, unless a checkpoint has brought another."""
        if self.state.sealed_filter is None:
            self.state.sealed_filter = sealed_filter

    def clear_used(self) -> IdTable | None:
        """Clear the table of the last freeze, if not done yet. In any thread: nobody else uses it, and clearing tens
        of MB takes longer than a commit."""
        table = self._used
        self._used = None
        if table is not None:
            table.clear()
        return table

    def recycle(self, table: IdTable) -> None:
        """The next freeze takes over a cleared table's memory."""
        self.state.spare = table

    def merged(self, parts: Sequence[SealedInterval], whole: SealedInterval) -> bool:
        """One interval takes the place of adjacent ones, or of one that is damaged. False: these are not there as they
        were read, and `whole` is of no use."""
        there = self.intervals
        at = next((i for i, sealed in enumerate(there) if sealed is parts[0]), None)
        if at is None or [id(p) for p in parts] != [id(p) for p in there[at : at + len(parts)]]:
            return False
        self.state.sealed = [*there[:at], whole, *there[at + len(parts) :]]
        if self.state.sealed_filter is not None and len(parts) > 1:
            self.state.sealed_filter.merged(parts, whole)  # what is made anew from the log may have more in it
        self._replaced += parts
        self.confirmer.forget(parts)
        return True

    def collect(self, replaced: Sequence[SealedInterval], in_use: Sequence[SealedInterval]) -> int:
        """Delete derived files that nobody needs any more, after a checkpoint: `imray.log.retire`. In one thread, that
        of the checkpoints."""
        self.retired.add(replaced)
        return self.retired.collect(in_use)

    def take_replaced(self) -> tuple[list[SealedInterval], list[SealedInterval]]:
        """What `collect` takes: the intervals that were replaced since the last time, and those in use."""
        replaced = self._replaced
        self._replaced = []
        return replaced, self.intervals

    def figures(self) -> LogFigures:
        """Figures for operators."""
        state = self.state
        tables = [t for t in (state.recent, state.frozen, state.spare) if t is not None]
        # those of the intervals are pages of files
        filters_bytes = 0 if state.sealed_filter is None else state.sealed_filter.nbytes
        return LogFigures(
            epoch=state.log.epoch,
            segment=state.log.segment,
            conversations=state.conversations.count,
            recent_ids=state.recent.count + (state.frozen.count if state.frozen is not None else 0),
            sealed_ids=sum(i.interval.ids for i in self.intervals),
            bytes=state.conversations.nbytes + state.members.nbytes + sum(t.nbytes for t in tables) + filters_bytes,
            checkpoint_segment=state.covered.get(0, 0),
        )
