"""Merging the logs into the history, one piece of work at a time.

Owns what is done next, and what happens where it fails. Does not own how rows are merged (`imray.history.merging`),
what counts (`imray.history.table`), nor what may be deleted (`imray.history.retiring`). Synchronous: clocks are passed
in, and threads are its caller's. It may be ended at any instant, and two of them at once do no harm: a run counts when
a commit names it, and a commit that would merge something twice is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from imray.core.errors import CorruptError, DerivedError, InvalidError, StaleError, StorageError
from imray.core.routing import home_of
from imray.core.status import MergeStatus
from imray.history.changes import TableConflictError
from imray.history.cut import Cuts
from imray.history.holds import Holds
from imray.history.lag import lag_of, logs_of
from imray.history.layout import TABLE
from imray.history.merge_work import Merged, ShardWork
from imray.history.merging import due, merge_runs, merge_segments
from imray.history.own_files import OwnFiles, PreparedCommit
from imray.history.pins import PinWatch
from imray.history.retiring import Deleting, LiveFiles, SegmentDeleter
from imray.history.retiring_files import FileDeleter
from imray.history.run_reader import RunReader
from imray.history.snapshot import RunFile, TableSnapshot
from imray.history.table import Table
from imray.history.table_checkpoint import CHECKPOINT_EVERY
from imray.history.table_reading import TableLogNames
from imray.log.segment import segment_prefix
from imray.log.store import Store
from imray.settings import Settings

log = logging.getLogger("imray.history")

_MERGE = "MERGE"
_COMPACT = "OPTIMIZE"
"""What the table's commits call it: Delta's words."""
_READER_CACHE_BYTES = 0
"""Each file is verified once."""


class Merger:
    """Merges the logs of some shards into the history, and deletes what it has taken over. Not thread-safe."""

    def __init__(
        self,
        store: Store,
        shards: int,
        settings: Settings,
        monotonic_s: Callable[[], float],
        now_ms: Callable[[], int],
        only_vacuum: bool = False,
    ) -> None:
        self.shards = shards
        self._store = store
        self._settings = settings
        self._monotonic_s = monotonic_s
        self._now_ms = now_ms
        self._table = Table(store)
        self._reader = RunReader(store, _READER_CACHE_BYTES)
        self._snapshot = TableSnapshot()
        self._checkpointed: int | None = None
        pins = PinWatch(store, settings.pin_s_max, monotonic_s)
        self._shared = Deleting(store, settings, monotonic_s, pins, self._table)
        self._work = [self._new_work(shard) for shard in range(shards)]
        self.done = Merged()
        merging: list[tuple[str, Callable[[int], bool]]] = [("merge", self._merge_log), ("compact", self._merge_runs)]
        self._stages = [
            *([] if only_vacuum else merging),
            ("delete segments", self._delete_segments),
            ("delete files", self._delete_files),
            ("checkpoint", self._keep_table),
        ]

    def _new_work(self, shard: int) -> ShardWork:
        live = LiveFiles(self._store)
        return ShardWork(
            Cuts(self._store, shard, self._monotonic_s),
            live,
            FileDeleter(self._shared, shard, live, self._shut_out),
            Holds(self._monotonic_s),
        )

    @property
    def version(self) -> int:
        """Of the table, as it was last read; -1: there is none."""
        return self._snapshot.version

    def step(self, shard: int) -> bool:
        """One piece of work for a shard; True: look again at once.

        What fails is held back for a while and said in `status`, and the rest goes on: damage takes out what it hits, a
        full disk what needs room, a bug its stage."""
        work = self._work[shard]
        if "table" in work.holds:
            return False
        try:
            self._refresh(work)
        except Exception as e:  # noqa: BLE001 whatever it is, it is said, and the other shards go on
            work.holds.add("table", e)
            return False
        first = work.next
        for i in range(len(self._stages)):
            at = (first + i) % len(self._stages)
            name, stage = self._stages[at]
            if name in work.holds:
                continue
            try:
                did = stage(shard)
            except (TableConflictError, StaleError) as e:
                log.info("shard %d: %s: %s", shard, name, e)
                self.done.conflicts += 1
                did = True
            except (CorruptError, DerivedError, StorageError) as e:
                did = isinstance(e, CorruptError) and self._is_replaced(e.file)
                if not did:
                    work.holds.add(name, e)
                    continue
            except Exception as e:  # noqa: BLE001 as above: the other stages go on
                work.holds.add(name, e)
                continue
            if did:
                work.holds.end(name)
                work.next = at + 1
                return True
            work.holds.end(name)
        return False

    def status(self, shard: int) -> MergeStatus:
        """How far the history is behind the shard's logs, as its folders say, and what is in the way. In any thread."""
        work = self._work[shard]
        snapshot = self._snapshot
        lags = []
        for number in logs_of(self._store, shard):
            deleter = work.segments.get(number)
            fences = 0 if deleter is None else len(deleter.fences)
            lags.append(lag_of(self._store, number, snapshot.merged.get(number, 0), fences))
        passed_over = [f"passed over: {name}: {why}" for name, why in sorted(self._table.damaged.copy().items())]
        return MergeStatus(shard, snapshot.version, lags, [*work.holds.details(), *passed_over])

    def more_in_s(self, shard: int) -> float | None:
        """In how many seconds there is more to delete, once readers cannot need it any more; None: it does not depend
        on time."""
        work = self._work[shard]
        limits = work.cuts.deletable() or {}
        waits = [deleter.ripe_in_s(limits.get(number)) for number, deleter in work.segments.items()]
        waits.append(work.files.ripe_in_s())
        return min((wait for wait in waits if wait is not None), default=None)

    def sweep_soon(self, shard: int) -> None:
        """Have the next steps list folders for what should not be there, whenever that was done last."""
        work = self._work[shard]
        for deleter in work.segments.values():
            deleter.sweep_soon()
        work.files.sweep_soon()

    # The table

    def _refresh(self, work: ShardWork) -> None:
        self._snapshot = self._table.snapshot_with_marks(self._snapshot)
        work.holds.end("table")

    def _is_replaced(self, file: str) -> bool:
        """Whether a run's file that was found missing belongs to no version any more: another merger has replaced it,
        or taken it for an orphan."""
        if not file.startswith(TABLE) or self._store.exists(file):
            return False
        self._snapshot = self._table.snapshot(self._snapshot)
        return file not in self._snapshot.files

    def _shut_out(self, shard: int) -> TableSnapshot:
        self._snapshot = self._table.fence_runs(self._snapshot, shard, self._now_ms())
        return self._snapshot

    def _commit(self, shard: int, prepared: PreparedCommit) -> None:
        """Make a commit of what is durable. TableConflictError: it is void, and its files are gone, or orphans.

        StorageError: whether it landed is unknown. Its files stay, and it is tried again: it may land later still."""
        work = self._work[shard]
        work.prepared[prepared.operation] = prepared
        try:
            self._snapshot = self._table.commit(
                prepared.base, prepared.add, prepared.remove, prepared.moves, prepared.operation, self._now_ms()
            )
        except TableConflictError as e:
            self._snapshot = self._table.snapshot(self._snapshot)
            if not self._landed(prepared):
                del work.prepared[prepared.operation]
                if e.is_void:
                    prepared.own.remove()
                raise
        except InvalidError:
            del work.prepared[prepared.operation]
            prepared.own.remove()
            raise
        del work.prepared[prepared.operation]
        work.files.note_replaced(prepared.remove, self._snapshot.version)
        self._count(prepared)

    def _landed(self, prepared: PreparedCommit) -> bool:
        return prepared.add[0].name in self._snapshot.files

    def _count(self, prepared: PreparedCommit) -> None:
        self.done.runs += 1
        self.done.bytes += sum(f.bytes for f in prepared.add)
        self.done.files_replaced += len(prepared.remove)
        self.done.segments += sum(after - before for before, after in prepared.moves.values())

    def _retry_prepared(self, shard: int, operation: str) -> bool:
        """Try a commit again whose outcome was unknown. False: there is none."""
        prepared = self._work[shard].prepared.get(operation)
        if prepared is None:
            return False
        self._commit(shard, prepared)
        return True

    # The stages

    def _merge_log(self, shard: int) -> bool:
        """Segments up to the cut become a run."""
        if self._retry_prepared(shard, _MERGE):
            return True
        work = self._work[shard]
        merged = self._snapshot.merged
        cut = {
            number: end
            for number, end in work.cuts.cut().items()
            if end.segment > merged.get(number, 0) and f"log {number}" not in work.holds
        }
        if not cut:
            return False
        begin = {number: self._snapshot.end(number) for number in cut}
        try:
            with OwnFiles(self._store) as own:
                files, ends = merge_segments(own, shard, begin, cut, self._settings)
                self._verify(files)
        except CorruptError as e:
            damaged = _log_in(e.file, cut)
            if damaged is None:
                raise
            work.holds.add(f"log {damaged}", e)
            return True
        if not files:
            return False
        moves = {number: (merged.get(number, 0), end.segment) for number, end in ends.items()}
        self._commit(shard, PreparedCommit(self._snapshot, own, files, [], moves, _MERGE))
        for number in cut:
            work.holds.end(f"log {number}")
        return True

    def _merge_runs(self, shard: int) -> bool:
        """Runs of like size become one."""
        if self._retry_prepared(shard, _COMPACT):
            return True
        runs = self._snapshot.runs.get(shard, ())
        wanted = due(runs)
        if wanted is None:
            return False
        with OwnFiles(self._store) as own:
            files = merge_runs(own, shard, runs[wanted], self._settings)
            self._verify(files)
        replaced = [f.name for run in runs[wanted] for f in run.files]
        self._commit(shard, PreparedCommit(self._snapshot, own, files, replaced, {}, _COMPACT))
        return True

    def _verify(self, files: Sequence[RunFile]) -> None:
        """Read back what is about to take the place of other files. StorageError where the store has something else
        than it was given; TableConflictError where another merger took it for an orphan."""
        for file in files:
            try:
                self._reader.verify(file)
            except CorruptError as e:
                if not self._store.exists(file.name):
                    raise TableConflictError(f"{file.name} was removed before it was committed") from e
                raise StorageError(f"what was written reads as something else: {e}") from e

    def _delete_segments(self, shard: int) -> bool:
        """Merged segments are marked and deleted."""
        work = self._work[shard]
        limits = work.cuts.deletable()
        for number in sorted(n for n in self._snapshot.merged if home_of(n)[0] == shard):
            if number not in work.segments:
                work.segments[number] = SegmentDeleter(self._shared, number, work.live)
            deleter = work.segments[number]
            before = deleter.deleted
            limit = None if limits is None else limits.get(number)
            did = deleter.step(self._snapshot, limit, partial(_limit_now, work, number))
            self.done.segments_deleted += deleter.deleted - before
            if did:
                return True
        return False

    def _delete_files(self, shard: int) -> bool:
        """Replaced runs and orphans are deleted."""
        deleter = self._work[shard].files
        before = deleter.deleted
        did = deleter.step(self._snapshot)
        self.done.files_deleted += deleter.deleted - before
        return did

    def _keep_table(self, shard: int) -> bool:
        """The table gets a checkpoint, and what that replaces is deleted."""
        if self._checkpointed is None:
            self._checkpointed = max(TableLogNames.listed(self._store).checkpoints, default=-1)
        if self._snapshot.version - self._checkpointed < CHECKPOINT_EVERY:
            return False
        self._table.make_durable()
        self._table.checkpoint(self._snapshot)
        self._checkpointed = self._snapshot.version
        self._table.clean()
        return True


def _limit_now(work: ShardWork, number: int) -> int | None:
    limits = work.cuts.deletable(again=True)
    return None if limits is None else limits.get(number)


def _log_in(file: str, logs: Iterable[int]) -> int | None:
    """Which of these logs a file belongs to."""
    return next((number for number in logs if file.startswith(segment_prefix(number))), None)
