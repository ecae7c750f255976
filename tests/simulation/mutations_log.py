"""Further rules broken one at a time: those of the write loop, the log and its derived files."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imray.core import fold, state
from imray.core.blocks import Block, Blocks
from imray.core.dedup import SealedFilter
from imray.core.errors import InvalidError
from imray.log.retire import Retired
from imray.log.writer import Writer
from imray.shard import recovery
from imray.shard.commit_queue import Flight
from imray.shard.committer import Committer
from imray.shard.grants import Grants
from imray.shard.partition_incarnation import PartitionIncarnation
from imray.shard.runtime import StateThread
from imray.shard.write_loop import WriteLoop
from tests.simulation.mutations import rule


@rule("derived files are missing")
def a_checkpoint_brings_back_the_list_it_began_with(patch: pytest.MonkeyPatch) -> None:
    """What was merged while a checkpoint was written is forgotten, and the parts are deleted all the same."""

    def sealed(self: Committer, files: Any, _filter: Any = None) -> None:
        self._used = fold.sealed(self.state, list(files))
        self._snapshot = None
        self.rewrite = False

    def collect(self: Committer, replaced: Any, in_use: Any) -> int:
        for name in [name for part in replaced for name in part.interval.names]:
            self.store.delete(name)
        return 0

    patch.setattr(Committer, "sealed", sealed)
    patch.setattr(Committer, "collect", collect)


@rule()
def the_filter_in_front_lacks_what_was_sealed_last(patch: pytest.MonkeyPatch) -> None:
    """An interval counts as held, and its ids are not in it."""

    def put(self: SealedFilter, sealed: Any, _fps: Any) -> None:
        self.holds.add(sealed)

    patch.setattr(SealedFilter, "put", put)


@rule()
def one_pass_looks_at_recent_ids_only(patch: pytest.MonkeyPatch) -> None:
    """A block is granted without a look at what was frozen or sealed."""
    patch.setattr(state.ShardState, "may_know", lambda *_: False)


@rule(rare=True)
def a_small_commit_overtakes_what_waits_for_the_thread(patch: pytest.MonkeyPatch) -> None:
    """What is planned and marked durable at once does not look whether something was handed in before."""
    patch.setattr(StateThread, "run_in_turn", StateThread.run_now)


@rule()
def a_put_acks_whatever_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    """A new incarnation opens while a put of the old one is on its way, and whichever put returns acks the oldest
    commit."""

    async def puts_returned(self: WriteLoop) -> bool:
        return True

    def returned(self: WriteLoop, _flight: Flight, put: asyncio.Future[None]) -> None:
        self._wake.set()
        if not self._flights:
            return
        if put.cancelled() or put.exception() is not None:
            self._failure = self._failure or put.exception()
        oldest = self._flights.popleft()
        oldest.error = put.exception()
        self._acked(oldest)

    async def end_incarnation(self: WriteLoop) -> None:
        self._flights.clear()
        await real(self)

    real = WriteLoop._end_incarnation
    patch.setattr(WriteLoop, "_puts_returned", puts_returned)
    patch.setattr(WriteLoop, "_returned", returned)
    patch.setattr(WriteLoop, "_end_incarnation", end_incarnation)


@rule("derived files are missing", rare=True)
def a_replaced_writer_deletes(patch: pytest.MonkeyPatch) -> None:
    """Whoever was replaced goes on deleting derived files, and those that its successor made, too."""
    real = Retired.collect

    def collect(self: Retired, in_use: Any) -> int:
        self._names |= set(self._store.list(f"sealed/shard={self._shard:04d}/"))
        self._is_writer = lambda: True
        return real(self, in_use)

    patch.setattr(Retired, "collect", collect)


@rule("no valid grant")
def a_fence_of_a_newer_home_is_corruption(patch: pytest.MonkeyPatch) -> None:
    """Recovery calls a partition's log corrupt that a newer incarnation of its home shard has fenced."""

    def check(s: state.ShardState, slot: int, sequencer: int) -> None:
        if sequencer > s.log.epoch:
            raise InvalidError("its home shard has no such epoch: no valid grant")
        fold.check_sequencer(s, slot, sequencer)

    patch.setattr("imray.log.rows.check_sequencer", check)


@rule(rare=True)
def a_fence_that_was_read_past_is_registered(patch: pytest.MonkeyPatch) -> None:
    """A partition's writer is believed though its fence was read past: another one may have followed."""

    def register(self: Grants, slot: int, epoch: int, segment: int) -> list[Block] | None:
        progress = self.committer.state.partitions.get(slot)
        if progress is None or epoch < self.blocks.slot_epoch(slot):
            return None
        if segment > progress.segment:
            self._read_tail(slot, segment)
        return self.blocks.lost(slot, epoch) if self.blocks.register(slot, epoch) else None

    patch.setattr(Grants, "register", register)


@rule()
def ids_that_cannot_be_sealed_stay_frozen(patch: pytest.MonkeyPatch) -> None:
    """While the log is read, ids that the store does not take are left for a checkpoint that is called after a later
    segment."""

    def seal_recent(store: Any, shard: int, s: state.ShardState) -> bool:
        return s.frozen is not None or real_seal(store, shard, s)

    def freeze(self: Committer) -> Any:
        if self._snapshot is None and self.state.frozen is not None:
            self._snapshot = recovery.snapshot(self.state, self.shard)
        return real_freeze(self)

    real_seal = recovery._seal_recent
    real_freeze = Committer.freeze
    patch.setattr(recovery, "_seal_recent", seal_recent)
    patch.setattr(recovery, "thaw", lambda _: None)
    patch.setattr(Committer, "freeze", freeze)


@rule()
def the_window_counts_unanswered_puts(patch: pytest.MonkeyPatch) -> None:
    """So many puts may be on their way as have no answer, however far above the oldest of them."""

    def window_open(self: WriteLoop) -> bool:
        return sum(not flight.returned for flight in self._flights) < self._window

    patch.setattr(WriteLoop, "_window_open", window_open)


def _take_out(loop: WriteLoop, flight: Flight) -> None:
    left = [other for other in loop._flights if other is not flight]
    loop._flights.clear()
    loop._flights.extend(left)


@rule()
def acks_come_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """A commit is acked when its own put returns, whatever became of those before."""

    def returned(self: WriteLoop, flight: Flight, put: asyncio.Future[None]) -> None:
        flight.returned = True
        flight.error = asyncio.CancelledError() if put.cancelled() else put.exception()
        self._wake.set()
        _take_out(self, flight)
        self._acked(flight)
        self._failure = self._failure or flight.error

    patch.setattr(WriteLoop, "_returned", returned)


@rule()
def a_fence_leaves_no_room(patch: pytest.MonkeyPatch) -> None:
    """The log goes on right after a fence, though whoever was fenced off may have further puts on their way."""
    real = Writer.__init__

    def init(self: Writer, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        self._window_before = 1

    patch.setattr(Writer, "__init__", init)


@rule()
def duplicates_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """A commit without new rows is acked though what it repeats is still on its way."""
    real = WriteLoop._returned

    def returned(self: WriteLoop, flight: Flight, put: asyncio.Future[None]) -> None:
        if flight.job.encoded is None and flight.job.answers and self._flights[0] is not flight:
            _take_out(self, flight)
            for waiting, answer in zip(flight.taken, flight.job.answers, strict=True):
                waiting.tell(answer)
            return
        real(self, flight, put)

    patch.setattr(WriteLoop, "_returned", returned)


@rule("not settled")
def late_reports_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A report that misses the ask that is on its way is not sent again, and the grant is never fenced."""

    def flush(self: PartitionIncarnation) -> None:
        self._flushing = None

    patch.setattr(PartitionIncarnation, "_flush", flush)
    patch.setattr(Blocks, "oldest", lambda _: None)
