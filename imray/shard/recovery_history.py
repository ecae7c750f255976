"""A shard's state from the history, where no checkpoint serves and the log's beginning was deleted.

The state is the one that folding the logs gives, up to where each is merged; the logs after that are folded as ever.
What the shard itself wrote comes first (`recovered`), then its own log, then what partitions wrote in conversations
that are hot by then (`add_partitions`), then their logs: the same order as when there are logs alone. Rows are read
group by group, however large the history is. Ids are not read: their intervals are there in name only, and upkeep makes
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imray.core.dedup import IdTable
from imray.core.errors import CorruptError, InvalidError, StaleError
from imray.core.fold import apply_control
from imray.core.intervals import VERSION, Interval
from imray.core.log_progress import LogProgress
from imray.core.routing import home_of
from imray.core.state import HotGroup, ShardState
from imray.history.run_reader import RunReader
from imray.history.snapshot import Run, RunFile
from imray.history.table import Table
from imray.kernels.arrays import I32, I64, Bools
from imray.log.marks import marked_logs, newest_mark
from imray.log.rows import control_of, cursors_of, members_of, void_of
from imray.log.schema import RecordKind, body_parts
from imray.log.sealed import new_tag
from imray.log.sealed_interval import SealedInterval
from imray.log.store import Store

_COLUMNS = ("conv_id", "conv_seq", "kind", "body", "log")
_RECORD_COLUMNS = ("conv_seq", "kind", "body")
_SEGMENT_BITS = 40
_SEQ_MAX = (1 << 63) - 1
_CACHE_BYTES = 16 * 1024 * 1024


class HistoryState:
    """What the history says of one shard, at one version of its table."""

    def __init__(self, store: Store, shard: int, seed: int) -> None:
        """CorruptError where the table does not verify, or lacks what was deleted from the log."""
        self._store = store
        self._shard = shard
        self._seed = seed
        self._table = Table(store)
        self._snapshot = self._table.snapshot()
        for log in marked_logs(store):
            if home_of(log)[0] == shard and (mark := newest_mark(store, log)) is not None:
                self._table.check_mark(self._snapshot, mark)
        self._reader = RunReader(store, _CACHE_BYTES)

    def recovered(self) -> ShardState:
        """The state as the shard's own log has it, up to where that is merged.

        CorruptError where the history does not verify. StaleError where its files were replaced while they were
        read."""
        state = ShardState(self._seed)
        state.log = self._progress(self._shard)
        ids = [self._read_run(state, run) for run in self._runs]
        conversations = state.conversations
        count = conversations.count
        conversations.stable[:count] = conversations.heads[:count]
        for conv, group in state.hot.items():
            conversations.stable[conv] = group.stable
            self._mark_numbers(state, conv, group, own=True)
        for log in self._snapshot.merged:
            home, slot = home_of(log)
            if home == self._shard and slot:
                state.partitions[slot] = self._progress(log)
        state.covered = {0: state.log.segment} | {slot: p.segment for slot, p in state.partitions.items()}
        state.recent = IdTable(state.log.segment)
        state.sealed = [SealedInterval(self._store, interval, None) for interval in self._intervals(ids)]
        return state

    def add_partitions(self, state: ShardState) -> None:
        """The shard's own log was folded to its end: what partitions wrote in conversations that are hot now, up to
        where their logs are merged. Errors as `recovered`."""
        for conv, group in state.hot.items():
            self._mark_numbers(state, conv, group, own=False)

    @property
    def _runs(self) -> Sequence[Run]:
        return self._snapshot.runs.get(self._shard, ())

    def _progress(self, log: int) -> LogProgress:
        end = self._snapshot.end(log)
        return LogProgress() if end is None else end.progress()

    # Rows

    def _read_run(self, state: ShardState, run: Run) -> int:
        """How many ids a run holds."""
        ids = 0
        for file in run.files:
            try:
                for table in self._tables(file):
                    ids += int(np.count_nonzero(table.column("kind").to_numpy() == RecordKind.MESSAGE))
                    self._take(state, table)
            except (InvalidError, msgspec.DecodeError) as e:
                raise CorruptError(file.name, "rows", str(e)) from e
        return ids

    def _tables(self, file: RunFile) -> Iterator[pa.Table]:
        try:
            yield from self._reader.tables(file, _COLUMNS)
        except CorruptError as e:
            raise self._replaced(file) or e from e

    def _replaced(self, file: RunFile) -> StaleError | None:
        """The error to raise where a file is gone because it was merged into another."""
        if self._store.exists(file.name) or file.name in self._table.snapshot(self._snapshot).files:
            return None
        return StaleError(f"{file.name} was merged into another run, and deleted, while it was read")

    def _take(self, state: ShardState, table: pa.Table) -> None:
        """Fold rows of the shard's own log; others are skipped."""
        own = (table.column("log").to_numpy() == self._shard) & (table.column("kind").to_numpy() <= RecordKind.CURSORS)
        if not own.any():
            return
        if not own.all():
            table = table.filter(pa.array(own))
        conv = _indices(state, table.column("conv_id"))
        seq = table.column("conv_seq").to_numpy()
        is_message = table.column("kind").to_numpy() == RecordKind.MESSAGE
        np.maximum.at(state.conversations.heads, conv[is_message], seq[is_message])
        records = np.flatnonzero(~is_message)
        if len(records):
            batch = table.select(_RECORD_COLUMNS).take(pa.array(records)).combine_chunks().to_batches()[0]
            for row, at in enumerate(records.tolist()):
                _apply(state, batch, row, int(conv[at]))

    def _mark_numbers(self, state: ShardState, conv: int, group: HotGroup, own: bool) -> None:
        """Settle the numbers of a hot conversation since it turned hot: its own log's, or those of partitions."""
        name = state.conversations.name(conv)
        first: list[I64] = []
        last: list[I64] = []
        for file in (file for run in self._runs for file in run.files):
            try:
                table = self._reader.rows(file, name, group.floor + 1, _SEQ_MAX, None, False)
            except CorruptError as e:
                raise self._replaced(file) or e from e
            wanted = (table.column("log").to_numpy() == self._shard) == own
            ranges = _ranges(table.filter(pa.array(wanted)))
            first.append(ranges[0])
            last.append(ranges[1])
        if not first or not sum(map(len, first)):
            return
        try:
            _mark(group, np.concatenate(first), np.concatenate(last))
        except InvalidError as e:
            raise CorruptError(f"the history of shard {self._shard}", f"conversation {name!r}", str(e)) from e
        heads = state.conversations.heads
        heads[conv] = max(int(heads[conv]), *(int(each.max()) for each in last if len(each)))
        state.conversations.stable[conv] = group.stable

    # Ids

    def _intervals(self, ids: Sequence[int]) -> list[Interval]:
        """One for each run, and none for what has nothing of the shard's own log: that goes with the one before."""
        found: list[Interval] = []
        for run, count in zip(self._runs, ids, strict=True):
            own = [(c.first, c.last) for c in run.covers if c.log == self._shard]
            slots = tuple((home_of(c.log)[1], c.first, c.last) for c in run.covers if c.log != self._shard)
            if own or not found:
                first = found[-1].last + 1 if found else 1
                last = own[0][1] if own else 0
                found.append(Interval(self._shard, first, last, count, new_tag(), slots, VERSION))
            else:
                before = found[-1]
                found[-1] = msgspec.structs.replace(
                    before, ids=before.ids + count, partitions=_joined([*(before.partitions or ()), *slots])
                )
        return found


def _indices(state: ShardState, names: pa.ChunkedArray) -> I32:
    """The index of each row's conversation; new ones are added in their order."""
    coded = pc.dictionary_encode(names.cast(pa.string())).combine_chunks()
    data, offsets = body_parts(coded.dictionary)
    conversations = state.conversations
    known = conversations.find(data, offsets)
    fresh = np.flatnonzero(known < 0).astype(np.int32)
    known[fresh] = np.arange(conversations.count, conversations.count + len(fresh), dtype=np.int32)
    conversations.add(data, offsets, fresh)
    found: I32 = known[coded.indices.to_numpy()]
    return found


def _apply(state: ShardState, batch: pa.RecordBatch, row: int, conv: int) -> None:
    """Fold one record that is no message. Records of a conversation come in the order of the log."""
    kind = batch.column("kind")[row].as_py()
    if kind == RecordKind.VOID:
        heads = state.conversations.heads
        heads[conv] = max(int(heads[conv]), void_of(batch, row).last)
    elif kind in (RecordKind.HOT, RecordKind.COLD):
        apply_control(state, control_of(batch, row, conv))
    elif kind == RecordKind.MEMBERS:
        change = members_of(batch, row, conv)
        state.members.check(change, None)
        state.members.reserve([change], [])
        state.members.mark_durable([change], [])
    else:
        read = cursors_of(batch, row, conv)
        state.members.reserve([], [read])
        state.members.mark_durable([], [read])


def _ranges(table: pa.Table) -> tuple[I64, I64]:
    """First and last numbers of what each segment has of one conversation: of its messages, and of each void."""
    seq = table.column("conv_seq").to_numpy()
    is_void: Bools = table.column("kind").to_numpy() == RecordKind.VOID
    voids = np.flatnonzero(is_void)
    void_rows = table.take(pa.array(voids)).combine_chunks().to_batches()
    lasts = [void_of(batch, row).last for batch in void_rows for row in range(batch.num_rows)]
    log = table.column("log").to_numpy().astype(np.int64)
    log_position = log << _SEGMENT_BITS | table.column("segment").to_numpy()
    _, which = np.unique(log_position[~is_void], return_inverse=True)
    of_messages = seq[~is_void]
    segments = int(which.max()) + 1 if len(which) else 0
    first = np.full(segments, _SEQ_MAX, np.int64)
    last = np.zeros(segments, np.int64)
    np.minimum.at(first, which, of_messages)
    np.maximum.at(last, which, of_messages)
    return np.concatenate([first, seq[voids]]), np.concatenate([last, np.array(lasts, np.int64)])


def _mark(group: HotGroup, first: I64, last: I64) -> None:
    """Settle ranges of numbers. InvalidError where some of them are twice there."""
    order = np.argsort(first)
    order = order[last[order] > group.floor]
    first = first[order]
    last = last[order]
    if len(first) and not group.done:
        # almost all of them are one stretch from where it began: a conversation may be hot for years
        follows = first == np.concatenate([[group.stable + 1], last[:-1] + 1])
        stretch = len(first) if follows.all() else int(np.argmin(follows))
        if stretch:
            group.stable = int(last[stretch - 1])
        first = first[stretch:]
        last = last[stretch:]
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        group.mark_final(low, high)


def _joined(slots: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    found: dict[int, tuple[int, int]] = {}
    for slot, first, last in slots:
        low, high = found.get(slot, (first, last))
        found[slot] = min(low, first), max(high, last)
    return tuple((slot, low, high) for slot, (low, high) in sorted(found.items()))


def is_needed(store: Store, shard: int) -> bool:
    """Whether some of a shard's logs was deleted: without a checkpoint only the history knows it."""
    return any(home_of(log)[0] == shard for log in marked_logs(store))
