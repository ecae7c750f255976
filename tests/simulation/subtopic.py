"""A partition: `imray.shard.partition_writer.PartitionWriter` step by step, over simulated processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from imray.core.blocks import Declined, Granted, Report
from imray.core.columns import Rows
from imray.core.errors import FencedError, UnavailableError
from imray.core.replies import Refusal, Refused
from imray.core.routing import log_position_of
from imray.core.sequencer import NEW
from imray.shard.answers import Written, answers_of
from imray.shard.partition_writer import _notes
from tests.simulation.disk import Disk, Writer, rows_of
from tests.simulation.kernel import LOST, MS, Process, Task
from tests.simulation.owner import Job, Request, WriteLoop
from tests.simulation.recovery import become_partition_writer


@dataclass
class PartitionJob(Job):
    """A job of a partition."""


class PartitionWriter(WriteLoop):
    """One partition of the home shard, for as long as this process has it."""

    def __init__(
        self, disk: Disk, process: Process, slot: int, home: Callable[[], Process | None], ahead: int,
        on_fenced: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(f"partition {slot}", disk, process, ahead, on_fenced)
        self.slot, self._home = slot, home
        self._writer: Writer | None = None
        self.sequencer = 0
        self._asks = 0
        self._reports: list[Report] = []
        self._asking = self._flushing = False
        self._tasks: set[Task] = set()

    async def _call(self, method: str, *args: Any) -> Any:
        return await self.sim.call(self.process, self._home(), method, *args, timeout_us=20 * MS)

    async def _become_writer(self) -> None:
        progress, writer = await become_partition_writer(self.disk, self.process, self.slot)
        self._writer, self.sequencer, self._reports = writer, progress.sequencer, []
        known = await self._call("register", self.slot, writer.epoch, writer.segment)
        if known == LOST or isinstance(known, Refusal):
            raise UnavailableError("the home shard does not answer")
        if not known:
            raise UnavailableError("the home shard does not know it, or knows a newer writer")

    async def _plan(self, requests: list[Request]) -> Job:
        rows = rows_of([m for r in requests for m in r])
        granted = await self._ask(rows)
        if isinstance(granted, Declined):
            return PartitionJob([Refusal(Refused.MOVED, "not hot any more")] * len(requests), None, None)
        return await self.thread.submit(self.encode, requests, rows, granted)

    async def _ask(self, rows: Rows) -> Granted | Declined:
        assert self._writer is not None
        self._asks += 1
        deadline = self.sim.now + 80 * MS
        self._asking = True
        try:
            while True:
                reports = list(self._reports)
                answer = await self._call("ask", self.slot, self._writer.epoch, self._asks, rows, reports)
                if answer != LOST and not isinstance(answer, Refusal):
                    if isinstance(answer, Declined) and answer.why == "fenced":
                        raise FencedError("its home shard wants its log opened anew", by_home=True)
                    self._heard(reports)
                    if isinstance(answer, Granted) or answer.why == "moved":
                        self.sim.trace("granted", self.process.name, f"ask {self._asks}", _shown(answer))
                        return answer
                if self.sim.now > deadline:
                    raise UnavailableError("no grant")
                await self.process.sleep(2 * MS)
        finally:
            self._asking = False

    def old_grant(self, granted: Granted) -> bool:
        """Whether a grant comes from an old incarnation of the home shard."""
        return granted.sequencer < self.sequencer

    def encode(self, requests: list[Request], rows: Rows, granted: Granted) -> Job:
        """As `PartitionWriter._encode`."""
        assert self._writer is not None
        if self.old_grant(granted):
            raise FencedError("a grant of an old incarnation of its home shard", by_home=True)
        planned, now = granted.expanded(), self.sim.now
        stables = np.full(len(rows), granted.stable) if isinstance(granted.stable, int) else granted.stable
        if not granted.grant:
            written = Written(self._writer.epoch, log_position_of(self.slot, self._writer.segment), now, stables)
            return PartitionJob(_answers(requests, planned, written, granted), None, None)
        messages = [m for r in requests for m in r]
        new, seq = messages, planned.seq
        if planned.new_rows is not None:
            new, seq = [messages[i] for i in np.flatnonzero(planned.status == NEW)], planned.seq[planned.new_rows]
        notes = _notes(granted.grant, planned, rows)
        encoded = self._writer.encode(new, seq, (), notes, granted.sequencer)
        meta = encoded.meta
        written = Written(self._writer.epoch, log_position_of(self.slot, meta.segment), meta.server_ts, stables)
        report = Report(granted.grant, meta.segment, meta.server_ts, encoded.digest)
        return PartitionJob(_answers(requests, planned, written, granted), None, encoded, report)

    async def _put(self, job: Job) -> None:
        assert self._writer is not None
        self._writer.check()
        if job.encoded is not None:
            await self._writer.put(job.encoded)

    def _mark_durable(self, job: Job) -> None:
        if job.report is not None:
            self._reports.append(job.report)
            self._flush_in(3 * MS)

    def _flush_in(self, delay_us: int) -> None:
        if not self._flushing:
            self._flushing = True
            task = self.process.spawn(self._flush(delay_us))
            self._tasks.add(task)
            task.done.then(lambda: self._tasks.discard(task))

    async def _flush(self, delay_us: int) -> None:
        await self.process.sleep(delay_us)
        self._flushing = False
        if not self._reports or self.refusal is not None:
            return
        if self._asking:
            self._flush_in(3 * MS)  # that ask may have left before the newest report was there
            return
        assert self._writer is not None
        epoch, reports = self._writer.epoch, list(self._reports)
        answer = await self._call("report", self.slot, epoch, reports)
        if self._writer.epoch != epoch:
            return
        if answer is None:
            self._heard(reports)
        else:
            self._flush_in(20 * MS)

    def _heard(self, reports: list[Report]) -> None:
        known = reports[-1].segment if reports else 0
        self._reports = [r for r in self._reports if r.segment > known]

    async def _end_incarnation(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        self._flushing = False
        if self._writer is not None:
            self._writer.close()


def _answers(requests: list[Request], planned: Any, written: Written, granted: Granted) -> Any:
    known = Written(written.epoch, written.log_position, written.server_ts, written.stables, granted.partitions)
    return answers_of(requests, planned, known)  # type: ignore[arg-type]


def _shown(answer: Granted | Declined) -> str:
    if isinstance(answer, Declined):
        return answer.why
    planned = answer.expanded()
    return f"grant {answer.grant} of {answer.sequencer}: {planned.status.tolist()} {planned.seq.tolist()}"
