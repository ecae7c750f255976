"""The grants of one incarnation of a home shard, with the I/O that settles them: partitions' logs fenced and read.

Everything here is called from the one thread that touches the shard's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from imray.core.blocks import Block, Blocks, conversations_of, ranges_of
from imray.core.ceilings import next_ceiling, unexplained
from imray.core.columns import LookedUp, Rows
from imray.core.errors import CorruptError, InvalidError
from imray.core.grants import Declined, DeclineReason, Granted, Report
from imray.core.routing import log_of
from imray.core.sequencer import locate
from imray.core.state import HotGroup, ShardState
from imray.log.marks import check_not_deleted
from imray.log.reader import read_log
from imray.log.schema import HotRecord, LogRecord, RecordKind, VoidRecord
from imray.log.segment import segment_name
from imray.shard.committer import Committer
from imray.shard.jobs import Records
from imray.shard.old_ids import LookUp, look_up_for, old_of
from imray.shard.recovery import fence_log

_CEILING_MIN = 1 << 10
_OLD_IDS_MAX = 128
"""Rows of an ask that are looked up for it: a filter is wrong about a few of a large ask, and a retry of a request or
two is as many. More would keep the partition's other senders waiting."""


class Grants:
    """Asks answered, writers registered, blocks settled."""

    def __init__(self, committer: Committer, blocks: Blocks) -> None:
        self.committer = committer
        self.blocks = blocks
        self.ceilings_wanted: set[int] = set()
        """Conversations whose next ceiling should be logged."""
        self._ceilings_asked: dict[int, int] = {}
        """The ceiling that stood when the next one was asked for: asked once, not with every block."""
        self._block_max: dict[int, int] = {}
        self.voids: Counter[str] = Counter()
        """Numbers that became void in this incarnation, by conversation."""

    @classmethod
    def open(cls, committer: Committer) -> Grants:
        """After recovery, every log of the shard fenced and read: what was granted and not written becomes void, and
        new numbers begin above the ceiling."""
        state = committer.state
        blocks = committer.blocks = Blocks(state, state.log.epoch, committer.open_to_all)
        grants = cls(committer, blocks)
        if state.hot:
            reason = "granted by an earlier incarnation of the home shard, and never written"

            def records(state: ShardState) -> list[LogRecord]:
                voids = [_void(state, *lost, reason) for lost in unexplained(state)]
                return voids + [grants._hot_record(state, conv, voids) for conv in sorted(state.hot)]

            for conv, first, last in unexplained(state):
                grants.voids[state.conversations.name(conv)] += last - first + 1
            job = committer.record(records)
            committer.put(job)
            committer.mark_durable(job)
        return grants

    def ask(
        self,
        slot: int,
        epoch: int,
        ask: int,
        rows: Rows,
        reports: Sequence[Report],
        now_s: float,
        looked: LookedUp | None = None,
    ) -> Granted | Declined | LookUp:
        """A partition's batch: numbers for what is new in it. The same `ask` gets the same answer.

        Reads no file. A look-up: nothing was granted, ask again with what it finds (`looked`)."""
        self.report(slot, epoch, reports)
        known = self.blocks.answered(slot, epoch, ask)
        if known is not None:
            return known
        if self.committer.checkpoint_overdue:
            return self.blocks.decline(slot, ask, DeclineReason.BUSY)
        at_once = self.blocks.grant_at_once(slot, ask, rows, now_s)
        if at_once is not None:
            self._asked(self._counted(at_once), len(rows))
            return at_once
        located = locate(self.committer.state, rows)
        old, still = old_of(self.committer.state, located, looked, 0, len(rows))
        if still:
            look_up = look_up_for(self.committer.state, self.committer.confirmer, rows, still, old)
            return look_up if len(look_up.asked) <= _OLD_IDS_MAX else self._decline_old(slot, ask, look_up)
        answer = self.blocks.grant(slot, ask, rows, located, old, now_s)
        if isinstance(answer, Granted) and answer.grant:
            self._counted(answer)
        self._asked(conversations_of(rows, located.conv), len(rows))
        return answer

    def too_long(self, slot: int, epoch: int, ask: int, look_up: LookUp) -> Granted | Declined:
        """An ask's look-up takes too long: it gets its answer without."""
        return self.blocks.answered(slot, epoch, ask) or self._decline_old(slot, ask, look_up)

    def _decline_old(self, slot: int, ask: int, look_up: LookUp) -> Declined:
        return self.blocks.decline(slot, ask, DeclineReason.OLD_IDS, look_up.asked)

    def _counted(self, answer: Granted) -> list[int]:
        """Count a grant's numbers for the rates of its conversations, which are returned."""
        block = self.blocks.outstanding[answer.grant]
        self.committer.hot_detector.add(block.touched, block.touched_last - block.touched_first + 1)
        convs: list[int] = block.touched.tolist()
        return convs

    def _asked(self, convs: list[int], rows: int) -> None:
        for conv in convs:
            self._block_max[conv] = max(self._block_max.get(conv, 0), rows)
            self._want_ceiling(conv)

    def _want_ceiling(self, conv: int) -> None:
        group = self.committer.state.hot.get(conv)
        if group is None:
            return
        head = int(self.committer.state.conversations.heads[conv])
        asked_at = self._ceilings_asked.get(conv)
        if asked_at != group.ceiling and self._next_ceiling(group, conv, head) is not None:
            self._ceilings_asked[conv] = group.ceiling
            self.ceilings_wanted.add(conv)

    def _next_ceiling(self, group: HotGroup, conv: int, head: int) -> int | None:
        return next_ceiling(group, head, self._block_max.get(conv, 0), self.committer.hot_detector.rates.get(conv, 0.0))

    def ceilings_logged(self, convs: Collection[int]) -> None:
        """A record of some conversations' ceilings is durable, or will not be: they may be wanted again."""
        for conv in convs:
            self._ceilings_asked.pop(conv, None)

    def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> None:
        """A partition's segments are durable. In order; what is known already is skipped."""
        if self.blocks.slot_epoch(slot) != epoch:
            return  # it was fenced, and its log was read: all is settled
        for report in reports:
            if report.segment == self.committer.state.partitions[slot].following:
                self.blocks.committed(slot, epoch, report)

    def register(self, slot: int, epoch: int, segment: int) -> list[Block] | None:
        """A new writer of a partition's log has fenced it with `segment`: what is in it counts, and what earlier
        writers did not write, returned, will never be.

        None: a newer writer is registered, or the slot is none of ours, or there is no such segment, or its fence was
        read past already: what followed it may have been fenced by this shard itself."""
        progress = self.committer.state.partitions.get(slot)
        registered = self.blocks.slot_epoch(slot)
        if progress is None or epoch < registered or (epoch > registered and segment <= progress.segment):
            return None
        if segment > progress.segment:
            committer = self.committer
            if not committer.store.exists(segment_name(log_of(committer.shard, slot), segment)):
                return None  # who says that it fenced the log there has not
            self._read_tail(slot, segment)
        if not self.blocks.register(slot, epoch):
            return None
        return self.blocks.lost(slot, epoch)

    def fence(self, slot: int) -> list[Block]:
        """End a partition's writer by fencing its log: the grants that it did not write."""
        committer = self.committer
        progress = committer.state.partitions[slot]
        writer = fence_log(
            committer.store, log_of(committer.shard, slot), progress, self.blocks.sequencer,
            lambda: self._read_tail(slot), committer.clock_ms, by_home=True,
        )  # fmt: skip
        writer.close()
        self.blocks.register(slot, writer.epoch)
        return self.blocks.lost(slot, writer.epoch)

    def _read_tail(self, slot: int, last: int | None = None) -> None:
        committer = self.committer
        progress = committer.state.partitions[slot]
        log = log_of(committer.shard, slot)
        start = progress.following
        for segment in read_log(committer.store, log, progress, last):
            meta = segment.meta
            grant = meta.grants[0].grant if meta.grants else 0
            found = Report(grant, meta.segment, meta.server_ts, segment.digest)
            try:
                self.blocks.follow(slot, meta.epoch, meta.sequencer, found, meta.fence)
            except InvalidError as e:
                check_not_deleted(committer.store, log, start)
                raise CorruptError(segment.name, "grants", str(e)) from e

    def void(self, blocks: Sequence[Block]) -> Records:
        """Records that say of each range of some grants: never to be a message."""

        def records(state: ShardState) -> list[LogRecord]:
            return [
                _void(state, *lost, f"granted to partition {b.slot}, epoch {b.epoch}, which ended before it wrote them")
                for b in blocks
                for lost in ranges_of([b])
            ]

        return records

    def voided(self, blocks: Sequence[Block]) -> None:
        """That is durable now."""
        self.blocks.voided(blocks)
        for conv, first, last in ranges_of(blocks):
            self.voids[self.committer.state.conversations.name(conv)] += last - first + 1

    def ceilings(self) -> tuple[set[int], Records]:
        """Records with the ceilings that are wanted now, and whose: `ceilings_logged` must follow."""
        wanted = self.ceilings_wanted
        self.ceilings_wanted = set()

        def records(state: ShardState) -> list[LogRecord]:
            if self.blocks.closed:
                return []  # the exact ceilings are the last word
            # after the record that turns it cold this one would turn it hot again; if it stays hot, the next ask wants
            # its ceiling again
            for conv in wanted & self.blocks.cooling:
                self._ceilings_asked.pop(conv, None)
            return [
                self._hot_record(state, conv)
                for conv in sorted(wanted - self.blocks.cooling)
                if conv in state.hot
            ]  # fmt: skip

        return wanted, records

    def exact_ceilings(self) -> Records:
        """Records with the heads as ceilings, for a stop in good order: `blocks.closed` is set, and no grant is
        outstanding."""

        def records(state: ShardState) -> list[LogRecord]:
            assert self.blocks.closed
            assert not self.blocks.outstanding
            found: list[LogRecord] = []
            for conv, group in sorted(state.hot.items()):
                if conv in self.blocks.cooling:
                    continue  # a record that turns it cold may be on its way, and this one would turn it hot again
                head = int(state.conversations.heads[conv])
                body = HotRecord(partitions=group.partitions, ceiling=head, by_rate=group.by_rate, exact=True)
                found.append(LogRecord(state.conversations.name(conv), head, RecordKind.HOT, body))
            return found

        return records

    def make_hot(self, conv_id: str, partitions: int, by_rate: bool = False) -> Records:
        """The record that turns a conversation hot, or changes its number of partitions."""

        def records(state: ShardState) -> list[LogRecord]:
            conv = state.conversations.index(conv_id)
            if conv in state.hot:
                return [self._hot_record(state, conv, partitions=partitions, by_rate=by_rate)]
            head = int(state.conversations.heads[conv]) if conv >= 0 else 0
            body = HotRecord(partitions=partitions, ceiling=head + _CEILING_MIN, by_rate=by_rate)
            return [LogRecord(conv_id, head, RecordKind.HOT, body)]

        return records

    def make_cold(self, conv_id: str) -> Records:
        """The record that turns a conversation cold; no grant of it may be outstanding."""

        def records(state: ShardState) -> list[LogRecord]:
            conv = state.conversations.index(conv_id)
            if conv not in state.hot:
                return []
            assert not self.blocks.in_flight(conv)
            return [LogRecord(conv_id, int(state.conversations.heads[conv]), RecordKind.COLD, None)]

        return records

    def _hot_record(
        self,
        state: ShardState,
        conv: int,
        voids: Sequence[LogRecord] = (),
        partitions: int | None = None,
        by_rate: bool | None = None,
    ) -> LogRecord:
        group = state.hot[conv]
        name = state.conversations.name(conv)
        head = int(state.conversations.heads[conv])
        for void in voids:
            if void.conv_id == name and isinstance(void.body, VoidRecord):
                head = max(head, void.body.last)
        ceiling = self._next_ceiling(group, conv, head) or max(group.ceiling, head + _CEILING_MIN)
        self._block_max[conv] = self._block_max.get(conv, 0) // 2  # the next asks say anew how large blocks are
        body = HotRecord(
            partitions=partitions or group.partitions,
            ceiling=ceiling,
            by_rate=group.by_rate if by_rate is None else by_rate,
        )
        return LogRecord(name, head, RecordKind.HOT, body)


def _void(state: ShardState, conv: int, first: int, last: int, reason: str) -> LogRecord:
    return LogRecord(state.conversations.name(conv), first, RecordKind.VOID, VoidRecord(last, reason))
