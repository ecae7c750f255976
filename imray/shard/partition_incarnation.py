"""One incarnation of a partition's writer: asks for numbers just before it writes, and reports what is durable.

Owns the asks and reports of its commits, so that a message sent after an ack has the higher number whichever way both
took. Does not own numbers or ids (its home shard does), nor who opens the log (`imray.shard.partition_writer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from imray.core.columns import Plan, Rows, RowStatus
from imray.core.errors import FencedError, InvalidError, UnavailableError
from imray.core.grants import Declined, DeclineReason, Granted, Report
from imray.core.log_progress import LogProgress
from imray.core.replies import Appended, Refusal, Refused
from imray.core.routing import log_position_of
from imray.kernels.arrays import I64
from imray.log.rows import Prepared, gather
from imray.log.schema import segment_table
from imray.log.segment import GrantNote
from imray.log.writer import Writer
from imray.settings import Settings
from imray.shard.answers import Written, answers_of
from imray.shard.jobs import Job, Records
from imray.shard.judged import Judged
from imray.shard.publisher import Publisher
from imray.shard.runtime import Runtime, Worker

_ASKS_MAX = 3
"""Of one commit, where it is declined for old ids: what turned old since the last ask is a rare case."""

_WAIT_S = 0.003
_WAIT_S_MAX = 0.05
"""Before an ask that was told to wait comes again: about one commit of the home shard, then longer, since each carries
all ids of its commit."""
_REGISTER_S = 30.0
_REGISTER_AGAIN_S = 0.1
"""So long a fence waits for its home shard to answer: each further one would be a segment for ever."""
_REPORT_S = 0.02
"""A report waits so long for an ask that carries it."""
_REPORT_LISTENED_S = 0.002
_REPORT_AGAIN_S = 0.2


class HomeLink(Protocol):
    """The home shard as a partition asks it. A Refusal: no answer, outcome unknown."""

    async def register(self, slot: int, epoch: int, segment: int) -> bool | Refusal:
        """As `HotGroups.register`."""

    async def ask(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal:
        """As `HotGroups.ask`."""

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | None:
        """As `HotGroups.report`."""


class PartitionIncarnation:
    """One incarnation of a partition's writer: `imray.shard.jobs.Incarnation`."""

    busy = False

    def __init__(
        self,
        label: str,
        slot: int,
        writer: Writer,
        progress: LogProgress,
        link: HomeLink,
        settings: Settings,
        runtime: Runtime,
        encoding: Worker,
        publisher: Publisher,
    ) -> None:
        self.writer = writer
        self._label = label
        self._slot = slot
        self._sequencer = progress.sequencer
        self._link = link
        self._settings = settings
        self._runtime = runtime
        self._encoding = encoding
        self._publisher = publisher
        self._asking = False
        self._asks = 0
        self._judged = Judged()
        self._reports: list[Report] = []
        """Of durable segments, until the home shard has heard of them."""
        self._flushing: asyncio.TimerHandle | None = None
        self._reporting: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()

    async def register(self) -> None:
        """Tell the home shard that this is the writer now. UnavailableError where it is not, or does not answer."""
        deadline = self._runtime.monotonic_s() + _REGISTER_S
        wait_s = _REGISTER_AGAIN_S
        known = await self._link.register(self._slot, self.writer.epoch, self.writer.segment)
        while isinstance(known, Refusal):
            if self._runtime.monotonic_s() > deadline or await self._ended_within(wait_s):
                raise UnavailableError(known.detail)
            wait_s = min(2 * wait_s, self._settings.reopen_delay_s_max)
            known = await self._link.register(self._slot, self.writer.epoch, self.writer.segment)
        if not known:
            raise UnavailableError(f"the home shard does not know {self._label}, or knows a newer writer")

    async def plan(self, what: list[Prepared] | Records) -> Job:
        """As `Incarnation.plan`."""
        if not isinstance(what, list):
            raise InvalidError("a partition's log holds messages only")
        left = list(range(len(what)))
        job = Job([], None, None)
        for _ in range(_ASKS_MAX):
            requests = [what[i] for i in left]
            job, old = await self._planned(requests)
            if not old:
                break
            left = [i for at, i in enumerate(left) if at not in old]
            if not left:
                break
        else:
            left = []
        if len(left) == len(what):
            return job
        home = Refusal(Refused.OLD_IDS, f"{self._label}: ids were perhaps sent long ago, its home shard finds out")
        answers: list[Appended | Refusal] = [home] * len(what)
        for i, answer in zip(left, job.answers, strict=True):
            answers[i] = answer
        return replace(job, answers=answers)

    async def _planned(self, requests: list[Prepared]) -> tuple[Job, set[int]]:
        """A commit of these requests; or an empty one, and those that the home shard must take."""
        # as a shard does with a small commit
        small = sum(map(len, requests)) <= self._settings.rows_at_once_max
        table, rows = gather(requests) if small else await self._encoding.run(gather, requests)
        self._asking = True
        try:
            granted = await self._granted(self._judged.with_senders(rows, table))
            if isinstance(granted, Declined) and granted.why is DeclineReason.SENDERS:
                self._judged.add(rows)
                granted = await self._granted(self._judged.with_senders(rows, table))
        finally:
            self._asking = False
        if isinstance(granted, Granted):
            args = requests, table, rows, granted
            return (self._encode(*args) if small else await self._encoding.run(self._encode, *args)), set()
        if granted.why is DeclineReason.OLD_IDS:
            return Job([], None, None), _requests_of(requests, granted.rows)
        if granted.why is DeclineReason.BUSY:
            busy = Refusal(Refused.BUSY, f"{self._label}: its home shard has no room for more ids: retry later")
            return Job([busy] * len(requests), None, None), set()
        moved = Refusal(Refused.MOVED, f"{self._label}: a conversation is not hot any more, its home shard has it")
        return Job([moved] * len(requests), None, None), set()

    async def _granted(self, rows: Rows) -> Granted | Declined:
        """Ask until there is an answer that ends the ask."""
        self._asks += 1
        deadline = self._runtime.monotonic_s() + self._settings.call_timeout_s
        wait_s = _WAIT_S
        while True:
            reports = list(self._reports)
            answer = await self._link.ask(self._slot, self.writer.epoch, self._asks, rows, reports)
            if isinstance(answer, Refusal):
                detail = answer.detail
            elif isinstance(answer, Declined) and answer.why is DeclineReason.FENCED:
                raise FencedError(f"{self._label}: its home shard wants its log opened anew", by_home=True)
            else:
                self._heard(reports)
                if isinstance(answer, Granted) or answer.why is not DeclineReason.WAIT:
                    return answer
                detail = "its home shard has no numbers for it now"
            if self._runtime.monotonic_s() > deadline or await self._ended_within(wait_s):
                raise UnavailableError(f"{self._label}: {detail}")
            wait_s = min(2 * wait_s, _WAIT_S_MAX)

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self.ended.wait()
        except TimeoutError:
            return False

    def _encode(self, requests: list[Prepared], table: pa.Table, rows: Rows, granted: Granted) -> Job:
        if granted.sequencer < self._sequencer:
            raise FencedError(f"{self._label}: a grant of an old incarnation of its home shard", by_home=True)
        planned = granted.expanded()
        now_ms = self._runtime.wall_ms()
        stables = np.full(len(rows), granted.stable) if isinstance(granted.stable, int) else granted.stable
        encoded = report = numbered = None
        segment = self.writer.segment
        if granted.grant:
            keep = None if planned.new_rows is None else planned.status == RowStatus.NEW
            new_seq = planned.seq if planned.new_rows is None else planned.seq[planned.new_rows]
            notes = _notes(granted.grant, planned, rows)
            numbered = segment_table(table, keep, new_seq, now_ms)
            encoded = self.writer.encode(numbered, now_ms, notes, granted.sequencer)
            segment = encoded.segment
            report = Report(granted.grant, segment, now_ms, encoded.digest)
        written = Written(self.writer.epoch, log_position_of(self._slot, segment), now_ms, stables, granted.partitions)
        return Job(
            answers_of(requests, planned, written), None, encoded, report, numbered, sequencer=granted.sequencer,
            of_last_writer=granted.plan is not None and bool((planned.status == RowStatus.FORBIDDEN).any()),
        )  # fmt: skip

    def write(self, job: Job) -> None:
        """As `Incarnation.write`."""
        self.writer.check()
        if job.encoded is not None:
            self.writer.put(job.encoded)
        elif job.of_last_writer and not self.writer.is_last():
            # a new home shard fences this log before it changes any members, and may have done so
            raise FencedError(f"{self._label}: its log was fenced, and who judged may be replaced", by_home=True)

    def apply(self, job: Job) -> None:
        """As `Incarnation.apply`."""
        if job.encoded is not None:
            self.writer.acked(job.encoded.segment)
            if self._publisher:
                self._publisher.epoch = max(self._publisher.epoch, job.sequencer)
                self._publisher.publish(job.table, ())
        if job.report is not None:
            self._reports.append(job.report)
            # who listens waits for the home shard to say that it is final
            self._flush_in(_REPORT_LISTENED_S if self._publisher else _REPORT_S)

    def _flush_in(self, delay_s: float) -> None:
        if self._flushing is None and not self.ended.is_set():
            self._flushing = asyncio.get_running_loop().call_later(delay_s, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if not self._reports:
            return
        if self._asking or self._reporting is not None:
            self._flush_in(_REPORT_S)  # an ask or a report is on its way, but may have left before the newest was there
        else:
            self._reporting = asyncio.create_task(self._report())

    async def _report(self) -> None:
        reports = list(self._reports)
        try:
            answer = await self._link.report(self._slot, self.writer.epoch, reports)
        finally:
            self._reporting = None
        if answer is None:
            self._heard(reports)
        if self._reports:
            self._flush_in(_REPORT_S if answer is None else _REPORT_AGAIN_S)

    def _heard(self, reports: list[Report]) -> None:
        if reports:
            self._reports = [r for r in self._reports if r.segment > reports[-1].segment]

    async def end(self) -> None:
        """As `Incarnation.end`."""
        self.ended.set()
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.gather(self._reporting, return_exceptions=True)
        self.writer.close()


def _requests_of(requests: list[Prepared], rows: I64 | None) -> set[int]:
    """Which of some requests these rows are of, counted over all of them; all, where it does not say."""
    if rows is None or not len(rows):
        return set(range(len(requests)))
    ends = np.cumsum([len(request) for request in requests])
    found: set[int] = set(np.searchsorted(ends, rows, side="right").tolist())
    return found


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
