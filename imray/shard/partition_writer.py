"""The owner of a partition's log: it writes messages of hot conversations under numbers that their home shard grants.

Owns bytes: decoding, encoding, checksums, durability. Does not own numbers or ids: it asks for them once a commit, just
before it writes, so that a message sent after an ack has the higher number whichever way both took.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from imray.core.blocks import Declined, Granted, Report
from imray.core.columns import Plan, Rows
from imray.core.errors import FencedError, InvalidError, UnavailableError
from imray.core.replies import Refusal, Refused
from imray.core.routing import log_of, log_position_of
from imray.core.sequencer import NEW
from imray.log.recovery import become_partition_writer
from imray.log.rows import Prepared, gather
from imray.log.schema import segment_table
from imray.log.segment import GrantNote
from imray.log.store import Store
from imray.log.writer import Writer
from imray.settings import Settings
from imray.shard.answers import Written, answers_of
from imray.shard.committer import Job, Records
from imray.shard.write_loop import WriteLoop, now_ms

_WAIT_S = 0.003
"""Before an ask that was told to wait comes again: about one commit of the home shard."""
_REPORT_S = 0.02
"""A report waits so long for an ask that carries it."""
_REPORT_AGAIN_S = 0.2


class HomeLink(Protocol):
    """The home shard as a partition sees it. A Refusal: no answer, outcome unknown."""

    async def register(self, slot: int, epoch: int, segment: int) -> bool | Refusal:
        """As `HotGroups.register`."""

    def ask(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal:
        """As `HotGroups.ask`. Blocks: called in the partition's own thread."""

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | None:
        """As `HotGroups.report`."""


@dataclass
class PartitionJob(Job):
    """A job, and what the home shard must hear once it is durable."""

    report: Report | None = None


class PartitionWriter(WriteLoop):
    """One partition of a home shard, for as long as this process has it."""

    def __init__(
        self,
        store: Store,
        home: int,
        slot: int,
        seed: int,
        settings: Settings,
        link: HomeLink,
        clock_ms: Callable[[], int] = now_ms,
        on_fenced: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(f"partition {slot} of shard {home}", seed, settings, on_fenced)
        self._store, self._home, self.slot, self._link, self._clock_ms = store, home, slot, link, clock_ms
        self._thread = ThreadPoolExecutor(1, f"encode-{log_of(home, slot)}")
        self._writer: Writer | None = None
        self._sequencer = 0
        self._asks = 0
        self._reports: list[Report] = []
        """Of durable segments, until the home shard has heard of them."""
        self._reports_lock = threading.Lock()
        self._ended = threading.Event()
        self._flushing: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def _off_loop(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def _become_writer(self) -> None:
        progress, writer = await self._off_loop(
            become_partition_writer, self._store, self._home, self.slot, self._clock_ms
        )
        self._writer, self._sequencer, self._reports = writer, progress.sequencer, []
        known = await self._link.register(self.slot, writer.epoch, writer.segment)
        if isinstance(known, Refusal):
            raise UnavailableError(known.detail)
        if not known:
            raise UnavailableError(f"the home shard does not know {self.label}, or knows a newer writer")

    async def _plan(self, requests: list[Prepared]) -> Job:
        return await self._off_loop(self._number, requests)

    def _number(self, requests: list[Prepared]) -> Job:
        table, rows = gather(requests)
        granted = self._ask(rows)
        if isinstance(granted, Granted):
            return self._encode(requests, table, rows, granted)
        if granted.why == "busy":
            busy = Refusal(Refused.BUSY, f"{self.label}: its home shard has no room for more ids: retry later")
            return PartitionJob([busy] * len(requests), None, None)
        moved = Refusal(Refused.MOVED, f"{self.label}: a conversation is not hot any more, its home shard has it")
        return PartitionJob([moved] * len(requests), None, None)

    def _ask(self, rows: Rows) -> Granted | Declined:
        assert self._writer is not None
        self._asks += 1
        deadline = time.monotonic() + self._settings.call_timeout_s
        while True:
            reports = list(self._reports)
            answer = self._link.ask(self.slot, self._writer.epoch, self._asks, rows, reports)
            if isinstance(answer, Refusal):
                detail = answer.detail
            elif isinstance(answer, Declined) and answer.why == "fenced":
                raise FencedError(f"{self.label}: its home shard wants its log opened anew", by_home=True)
            else:
                self._heard(reports)
                if isinstance(answer, Granted) or answer.why in ("moved", "busy"):
                    return answer
                detail = "its home shard has no numbers for it now"
            if time.monotonic() > deadline or self._ended.wait(_WAIT_S):
                raise UnavailableError(f"{self.label}: {detail}")

    def _encode(self, requests: list[Prepared], table: pa.Table, rows: Rows, granted: Granted) -> Job:
        assert self._writer is not None
        if granted.sequencer < self._sequencer:
            raise FencedError(f"{self.label}: a grant of an old incarnation of its home shard", by_home=True)
        planned, now = granted.expanded(), self._clock_ms()
        stables = np.full(len(rows), granted.stable) if isinstance(granted.stable, int) else granted.stable
        log_position = log_position_of(self.slot, self._writer.segment)
        if not granted.grant:
            written = Written(self._writer.epoch, log_position, now, stables, granted.partitions)
            return PartitionJob(answers_of(requests, planned, written), None, None)
        keep = None if planned.new_rows is None else planned.status == NEW
        new_seq = planned.seq if planned.new_rows is None else planned.seq[planned.new_rows]
        notes = _notes(granted.grant, planned, rows)
        encoded = self._writer.encode(segment_table(table, keep, new_seq, now), now, notes, granted.sequencer)
        written = Written(
            self._writer.epoch, log_position_of(self.slot, encoded.segment), now, stables, granted.partitions
        )
        report = Report(granted.grant, encoded.segment, now, encoded.digest)
        return PartitionJob(answers_of(requests, planned, written), None, encoded, report)

    async def _record(self, records: Records) -> Job:
        raise InvalidError("a partition's log holds messages only")

    def _put(self, job: Job) -> None:
        assert self._writer is not None
        self._writer.check()
        if job.encoded is not None:
            self._writer.put(job.encoded)

    def _mark_durable(self, job: Job) -> None:
        assert isinstance(job, PartitionJob)
        if job.report is not None:
            with self._reports_lock:
                self._reports.append(job.report)
            self._flush_in(_REPORT_S)

    def _flush_in(self, delay_s: float) -> None:
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(delay_s, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if self._reports and not self._planning and self._refusal is None:
            task = asyncio.create_task(self._report())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _report(self) -> None:
        assert self._writer is not None
        epoch, reports = self._writer.epoch, list(self._reports)
        answer = await self._link.report(self.slot, epoch, reports)
        if self._writer.epoch != epoch:
            return
        if answer is None:
            self._heard(reports)
        else:
            self._flush_in(_REPORT_AGAIN_S)

    def _heard(self, reports: list[Report]) -> None:
        if reports:
            with self._reports_lock:
                self._reports = [r for r in self._reports if r.segment > reports[-1].segment]

    async def _end_incarnation(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    async def stop(self) -> None:
        self._ended.set()
        await super().stop()
        self._thread.shutdown(wait=True)

    async def status(self) -> dict[str, object]:
        """Figures for operators."""
        segment = self._writer.segment if self._writer is not None else 0
        return {"shard": self._home, "slot": self.slot, "state": self.state, "segment": segment}


def _notes(grant: int, planned: Plan, rows: Rows) -> list[GrantNote]:
    """The blocks of a grant, for the segment that uses them."""
    notes = []
    for conv, first, last in zip(
        planned.touched.tolist(), planned.touched_first.tolist(), planned.touched_last.tolist(), strict=True
    ):
        k = rows.conv[int(np.argmax(planned.conv == conv))]
        name = rows.names_data[rows.names_offsets[k] : rows.names_offsets[k + 1]].tobytes().decode()
        notes.append(GrantNote(grant, name, first, last - first + 1))
    return notes
