"""What the home shard knows and how it is numbered: the real Grants over a Committer of logs in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from imray.core.blocks import Block, Blocks, Report
from imray.core.columns import Plan
from imray.core.errors import CorruptError, InvalidError
from imray.core.fold import commit_read_back, freeze, mark_durable, reserve, sealed
from imray.core.hot_detector import HotDetector
from imray.core.replies import Located
from imray.core.routing import log_of, log_position_of
from imray.core.sequencer import NEW, commit_of, locate, plan
from imray.core.state import ShardState
from imray.log.checkpoint import Snapshot, snapshot
from imray.shard.answers import Written, answers_of
from imray.shard.committer import Committer
from imray.shard.grants import Grants
from tests.simulation.disk import Confirmer, Disk, Writer, rows_of
from tests.simulation.kernel import Process
from tests.simulation.owner import Job, Records, Request
from tests.simulation.recovery import Interval, fence_log


class SimCommitter:
    """One incarnation's state and writer: what Grants needs of a Committer, over logs in memory."""

    def __init__(self, disk: Disk, state: ShardState, writer: Writer, ids_max: int) -> None:
        self.disk, self.state, self.writer = disk, state, writer
        self.blocks: Blocks | None = None
        self.confirmer, self.shard = Confirmer(disk), 0
        self.make_hot = HotDetector(0.0, 0.0, 1)
        self.intervals: list[Interval] = list(state.sealed)  # type: ignore[arg-type]
        self._ids_max = ids_max
        self._snapshot: Snapshot | None = None

    def plan(self, requests: Sequence[Request]) -> Job:
        """As `Committer.plan`."""
        messages = [m for r in requests for m in r]
        rows, state = rows_of(messages), self.state
        located = locate(state, rows)
        old = self.confirmer.confirm(rows, located) if located.maybe else {}
        planned = plan(state, rows, located, old)
        now, segment, epoch = self.disk.sim.now, self.writer.segment, self.writer.epoch
        commit = encoded = None
        if len(planned.touched):
            new, seq = messages, planned.seq
            if planned.new_rows is not None:
                new, seq = [messages[i] for i in np.flatnonzero(planned.status == NEW)], planned.seq[planned.new_rows]
            encoded = self.writer.encode(new, seq)
            segment = encoded.meta.segment
            commit = commit_of(planned, rows, log_position_of(0, segment), epoch, now)
            reserve(state, commit)
        hot = {state.conversations.name(c): state.hot[c].partitions for c in self._hot_of(planned)}
        stables = Committer._stables(cast("Committer", self), planned)
        written = Written(epoch, log_position_of(0, segment), now, stables, hot)
        return Job(answers_of(requests, planned, written), commit, encoded)  # type: ignore[arg-type]

    def _hot_of(self, planned: Plan) -> list[int]:
        return Committer._hot_of(cast("Committer", self), planned)

    def record(self, records: Records) -> Job:
        """As `Committer.record`."""
        made = records(self.state)
        if not made:
            return Job([], None, None)
        encoded = self.writer.encode([], np.empty(0, np.int64), made)
        meta = encoded.meta
        commit = commit_read_back(
            self.state, log_position_of(0, meta.segment), meta.epoch, meta.server_ts, encoded.back
        )
        reserve(self.state, commit)
        return Job([], commit, encoded)

    async def put(self, job: Job) -> None:
        """As `Committer.put`."""
        self.writer.check()
        if job.encoded is not None:
            await self.writer.put(job.encoded)

    def mark_durable(self, job: Job) -> None:
        """As `Committer.settle`."""
        if job.commit is not None and job.encoded is not None:
            mark_durable(self.state, job.commit, job.encoded.digest)

    def located(self, conv_id: str, low: int, high: int) -> tuple[Located, list[tuple[int, int, int]]]:
        """As `Committer.locate`; and what the sealed intervals say."""
        state = self.state
        index = state.conversations.index(conv_id)
        head = int(state.conversations.stable[index]) if index >= 0 else 0
        spans: list[tuple[int, int, int]] = []
        if index >= 0 and low <= min(high, head):
            spans = state.frozen_postings.spans(index, low, high) + state.postings.spans(index, low, high)
        old = [p[1:] for i in self.intervals for p in i.postings if p[0] == conv_id and p[2] <= high and p[3] >= low]
        return Located(head, head, state.log.epoch, 0, [], spans), old

    @property
    def checkpoint_due(self) -> bool:
        """As `Committer.checkpoint_due`, by ids."""
        covered = self.intervals[-1].last if self.intervals else 0
        return self.state.log.segment > covered and self.state.recent.count >= self._ids_max

    @property
    def checkpoint_overdue(self) -> bool:
        """As `Committer.checkpoint_overdue`: never, here."""
        return False

    def freeze(self) -> Snapshot:
        """As `Committer.freeze`."""
        if self._snapshot is None:
            freeze(self.state)
            self._snapshot = snapshot(self.state, 0)
        return self._snapshot

    def sealed(self, files: list[Interval]) -> None:
        """As `Committer.sealed`."""
        sealed(self.state, list(files))
        self.intervals, self._snapshot = files, None


class SimGrants(Grants):
    """Reads logs in memory."""

    committer: Any

    def fence(self, slot: int) -> list[Block]:
        """Takes time here: `fenced`."""
        raise NotImplementedError

    async def fenced(self, process: Process, slot: int) -> list[Block]:
        """As `Grants.fence`."""
        disk, progress = self.committer.disk, self.committer.state.partitions[slot]
        sequencer = self.blocks.sequencer
        writer = await fence_log(
            disk, process, log_of(0, slot), progress, sequencer, lambda: self._read_tail(slot), by_home=True
        )
        writer.close()
        self.blocks.register(slot, writer.epoch)
        return self.blocks.lost(slot, writer.epoch)

    def _read_tail(self, slot: int, last: int | None = None) -> None:
        progress = self.committer.state.partitions[slot]
        disk: Disk = self.committer.disk
        for segment in disk.read_log(log_of(0, slot), progress.segment, progress.digest, last):
            meta = segment.meta
            grant = meta.grants[0].grant if meta.grants else 0
            found = Report(grant, meta.segment, meta.server_ts, segment.digest)
            try:
                self.blocks.follow(slot, meta.epoch, meta.sequencer, found)
            except InvalidError as e:
                raise CorruptError(segment.name, "grants", str(e)) from e
