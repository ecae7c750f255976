"""One incarnation of a shard's writer: plan, write, apply. Synchronous; the owner calls it from one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from imray.cluster.replies import Appended, Firsts, Located
from imray.core.dedup import IdTable
from imray.core.sequencer import CONFLICT, Plan, Rows, ShardState, apply, commit_of, freeze, locate, plan, sealed
from imray.log.checkpoint import Snapshot, snapshot
from imray.log.recovery import Confirmer, become_writer
from imray.log.rows import Prepared, gather
from imray.log.schema import segment_table
from imray.log.sealed import SealedInterval
from imray.log.store import Store
from imray.log.writer import Writer
from imray.settings import Settings

_OVERDUE = 4
"""Past so many times the ids of a checkpoint without one (a full disk, say) senders must wait: memory is bounded."""


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
        self._settings, self._clock_ms = settings, clock_ms
        self._confirmer = Confirmer(store, shard)
        self._shard = shard
        self._snapshot: Snapshot | None = None
        self._used: IdTable | None = None
        self._covered = intervals_end(self.intervals)

    @classmethod
    def open(cls, store: Store, shard: int, seed: int, settings: Settings, clock_ms: Callable[[], int]) -> Committer:
        """Recover the shard and fence off every earlier writer; errors as `become_writer`."""
        state, writer = become_writer(store, shard, seed, clock_ms)
        return cls(store, shard, state, writer, settings, clock_ms)

    def commit(self, requests: Sequence[Prepared]) -> list[Appended]:
        """Number the requests' rows and make the new ones durable in one segment: an answer for each request.

        FencedError, StorageError: this incarnation is over and the state is as it was before."""
        table, rows = gather(requests)
        located = locate(self.state, rows)
        old = self._confirmer.confirm(rows, located) if located.maybe else {}
        planned = plan(self.state, rows, located, old)
        now = self._clock_ms()
        segment, epoch = self.writer.segment, self.writer.epoch
        if planned.new_rows is None or len(planned.new_rows):
            keep = None if planned.new_rows is None else planned.status == 0
            new_seq = planned.seq if planned.new_rows is None else planned.seq[planned.new_rows]
            segment, digest = self.writer.append(segment_table(table, keep, new_seq, now), now)
            apply(self.state, commit_of(planned, rows, segment, epoch, now, digest))
        return self._answers(requests, rows, planned, segment, now)

    def _answers(
        self, requests: Sequence[Prepared], rows: Rows, planned: Plan, segment: int, now: int
    ) -> list[Appended]:
        stable = self.state.conversations.heads[planned.conv]
        one = planned.new_rows is None and len(planned.touched) == 1
        answers = []
        new_before = start = 0
        for request in requests:
            end = start + len(request)
            if one:
                answer = Appended(
                    len(request), self.writer.epoch, segment, now, start, int(planned.seq[start]), int(stable[0]), None
                )
            else:
                firsts = self._firsts(planned, start, end, segment, now)
                answer = Appended(
                    len(request), self.writer.epoch, segment, now, new_before,
                    planned.seq[start:end], stable[start:end], firsts,
                )  # fmt: skip
                new_before += len(request) - (len(firsts.at) if firsts is not None else 0)
            answers.append(answer)
            start = end
        return answers

    def _firsts(self, planned: Plan, start: int, end: int, segment: int, now: int) -> Firsts | None:
        if planned.segment is None or planned.epoch is None or planned.server_ts is None:
            return None
        at = np.flatnonzero(planned.status[start:end])
        if not len(at):
            return None
        rows = at + start
        here = planned.segment[rows] < 0
        return Firsts(
            at,
            planned.status[rows] == CONFLICT,
            np.where(here, segment, planned.segment[rows]),
            planned.row_in_segment[rows],
            np.where(here, self.writer.epoch, planned.epoch[rows]),
            np.where(here, now, planned.server_ts[rows]),
        )

    def locate(self, conv_id: str, low: int, high: int) -> Located:
        """Where numbers low..high of a conversation are."""
        state = self.state
        index = state.conversations.index(conv_id)
        head = int(state.conversations.heads[index]) if index >= 0 else 0
        spans: list[tuple[int, int, int]] = []
        if index >= 0 and low <= min(high, head):
            spans = state.frozen_postings.spans(index, low, high) + state.postings.spans(index, low, high)
        intervals = [(i.interval.first, i.interval.last, i.interval.ids) for i in self.intervals]
        return Located(head, head, state.epoch, self._covered, intervals, spans)

    @property
    def checkpoint_due(self) -> bool:
        """Whether enough came since the last checkpoint."""
        state = self.state
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
            self._snapshot = snapshot(self.state, self._shard)
        return self._snapshot

    def sealed(self, files: list[SealedInterval]) -> None:
        """The checkpoint of the last freeze is durable."""
        for file in files:
            file.forget()
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
        whole.forget()
        self.state.sealed = list(self.intervals)

    def figures(self) -> dict[str, object]:
        """Figures for operators."""
        state = self.state
        return {
            "epoch": state.epoch,
            "segment": state.segment,
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
