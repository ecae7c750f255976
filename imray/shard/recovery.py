"""Becoming the writer of a log: checkpoint, then the segments after it, then the fence.

A home shard fences and reads the logs of its partitions, too: they hold numbers and ids of its conversations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from imray.core.columns import Commit
from imray.core.dedup import SealedIds
from imray.core.errors import CorruptError, FencedError, InvalidError, StaleError, StorageError, UnavailableError
from imray.core.fold import apply, freeze, sealed, thaw
from imray.core.log_progress import LogProgress
from imray.core.routing import log_of
from imray.core.state import ShardState
from imray.history.table import Table
from imray.log import checkpoint
from imray.log.checkpoint_snapshot import seal_frozen, snapshot
from imray.log.marks import check_not_deleted, marked
from imray.log.reader import last_segment, read_log
from imray.log.rows import read_commit
from imray.log.sealed import SealedInterval, remove
from imray.log.segment import Segment, segment_name, segment_prefix
from imray.log.store import Store
from imray.log.writer import Writer
from imray.shard.recovery_history import HistoryState, is_needed

log = logging.getLogger("imray.recovery")

_FENCE_TRIES_MAX = 100
_RESTORES_MAX = 5
"""Each further one means that a predecessor made a checkpoint between our look and our fence."""


@dataclass(frozen=True)
class Readable:
    """What was recovered of a shard that could not be fenced: it is durable, so it may be read."""

    state: ShardState
    partitions_read: bool
    """False: what hot conversations have in their partitions' logs is not known."""

    def is_current(self, store: Store, shard: int) -> bool:
        """Whether nobody has written since: else more may be stable by now than is known here."""
        slots = [0, *(self.state.partitions if self.partitions_read else ())]
        ends = [(log_of(shard, slot), self.state.progress(slot).following) for slot in slots]
        # what was written there may be merged and deleted by now
        return not any(store.exists(segment_name(*end)) or marked(store, end[0]) >= end[1] for end in ends)


def replay(store: Store, shard: int, state: ShardState, slot: int = 0, at_least: int = 0, ids_max: int = 0) -> None:
    """Fold the rest of one of a shard's logs into the state. CorruptError at the first segment that does not verify.
    FencedError: another writer of the shard has taken over since its own log was read. StaleError: what follows was
    merged and deleted since the state was made.

    `ids_max` (0: no matter): past so many recent ids they are sealed on the way, so that memory stays bounded where
    every checkpoint is lost."""
    progress = state.progress(slot)
    seal_at = ids_max
    number = log_of(shard, slot)
    start = progress.following
    for segment in read_log(store, number, progress, at_least=at_least):
        try:
            _fold(state, segment)
        except CorruptError:
            check_not_deleted(store, number, start)
            raise
        if ids_max and state.recent.count >= seal_at:
            seal_at = ids_max if _seal_recent(store, shard, state) else state.recent.count + ids_max


def _fold(state: ShardState, segment: Segment) -> None:
    commit: Commit = read_commit(state, segment)
    try:
        apply(state, commit, segment.digest)
    except InvalidError as e:
        raise CorruptError(segment.name, "numbers", str(e)) from e


def _seal_recent(store: Store, shard: int, state: ShardState) -> bool:
    """Whether the recent ids are in a file now."""
    freeze(state)
    try:
        made = seal_frozen(store, snapshot(state, shard, with_rows=False))
    except StorageError as e:
        log.warning("shard %d: ids stay in memory: %s", shard, e)
        thaw(state)
        return False
    table = sealed(state, [*state.sealed, made])
    if table is not None:
        table.clear()
        state.spare = table
    return True


def become_writer(
    store: Store,
    shard: int,
    seed: int,
    now_ms: Callable[[], int],
    notes: list[str] | None = None,
    on_unwritable: Callable[[Readable], None] = lambda _: None,
    ids_max: int = 0,
) -> tuple[ShardState, Writer]:
    """Recover a shard and fence off every earlier writer, those of its partitions included.

    `notes` are told which derived files were passed over, `ids_max` is as for `replay`. `on_unwritable` gets what was
    recovered where the store takes no fence. CorruptError: the log does not verify, a person must look. StorageError:
    the fence could not be written. FencedError, UnavailableError: others keep taking the next number.

    Whoever slept while what it reads was merged and deleted (`StaleError`) begins anew, here."""
    for _ in range(_RESTORES_MAX):
        told: list[str] = []
        before = checkpoint.checkpoints(store, shard)
        history = _History(store, shard, seed, told)
        state = checkpoint.restore(store, shard, seed, told, history.recovered)
        restored = list(state.sealed)
        try:
            writer = _fence_all(store, shard, state, now_ms, ids_max, history)
        except StorageError:
            _offer(store, shard, state, on_unwritable, history)
            raise
        except StaleError as e:
            log.warning("shard %d begins anew: %s", shard, e)
            _forget(store, state, restored)
            continue
        except BaseException:
            _forget(store, state, restored)
            raise
        # a predecessor may have made a checkpoint, and removed what it replaces, until it was fenced
        if checkpoint.checkpoints(store, shard)[-1:] <= before[-1:]:
            if len(state.sealed) > len(restored):
                told.append(f"{len(state.sealed) - len(restored)} intervals were sealed while the log was read")
            if notes is not None:
                notes += told
            return state, writer
        writer.close()
        _forget(store, state, restored)
    raise UnavailableError(
        f"shard {shard}: another writer keeps making checkpoints, or its log is merged faster than read"
    )


class _History:
    """The history of a shard, opened where no checkpoint serves and some of its logs was deleted."""

    def __init__(self, store: Store, shard: int, seed: int, notes: list[str]) -> None:
        self._args = (store, shard, seed)
        self._notes = notes
        self._state: HistoryState | None = None
        self._has_partitions = True

    def recovered(self) -> ShardState:
        """The state to fold the logs into."""
        store, shard, seed = self._args
        if not is_needed(store, shard):
            return ShardState(seed)
        self._notes.append("no checkpoint serves: the state is made from the history")
        self._state = HistoryState(store, shard, seed)
        self._has_partitions = False
        return self._state.recovered()

    def add_partitions(self, state: ShardState) -> None:
        """The shard's own log was folded: go on with its partitions. Once."""
        if self._state is not None and not self._has_partitions:
            self._has_partitions = True
            self._state.add_partitions(state)


def _forget(store: Store, state: ShardState, restored: list[SealedIds]) -> None:
    """Remove what was sealed on the way."""
    for made in state.sealed[len(restored) :]:
        assert isinstance(made, SealedInterval)
        remove(store, made.interval)


def _fence_all(
    store: Store, shard: int, state: ShardState, now_ms: Callable[[], int], ids_max: int, history: _History
) -> Writer:
    # its own log first: then no earlier incarnation can make a further partition, or move a ceiling
    end = last_segment(store, shard, state.log.segment)
    writer = fence_log(store, shard, state.log, 0, lambda: replay(store, shard, state, 0, end, ids_max), now_ms)
    history.add_partitions(state)
    for slot in sorted(state.partitions):
        try:
            fence_partition(store, shard, slot, state, now_ms, ids_max)
        except FencedError as e:
            if not writer.is_last():
                raise  # whoever took over fenced the shard's own log before this one
            name = segment_name(log_of(shard, slot), state.partitions[slot].following)
            raise CorruptError(name, "grants", f"no valid grant: {e}, says this file, but no log of that epoch") from e
    return writer


def _offer(
    store: Store, shard: int, state: ShardState, on_unwritable: Callable[[Readable], None], history: _History
) -> None:
    """Read what can be read without a fence, make sure that it is durable, and hand it over."""
    partitions_read = True
    try:
        replay(store, shard, state)
        store.sync(segment_prefix(shard))
        history.add_partitions(state)
        for slot in sorted(state.partitions):
            try:
                replay(store, shard, state, slot)
                store.sync(segment_prefix(log_of(shard, slot)))
            except (CorruptError, FencedError, StaleError):
                partitions_read = False  # a live predecessor's grants: without a fence they cannot be judged
    except (StorageError, CorruptError, StaleError) as e:
        log.warning("shard %d cannot be read either: %s", shard, e)
        return
    on_unwritable(Readable(state, partitions_read))


def fence_partition(
    store: Store, shard: int, slot: int, state: ShardState, now_ms: Callable[[], int], ids_max: int = 0
) -> None:
    """Put the home shard's fence into a partition's log and fold what landed before it.

    Whoever writes there next has read the fence, and takes no grants of an older epoch than the state's."""
    number = log_of(shard, slot)
    end = last_segment(store, number, state.partitions[slot].segment)
    fence_log(
        store, number, state.partitions[slot], state.log.epoch,
        lambda: replay(store, shard, state, slot, end, ids_max), now_ms, by_home=True,
    ).close()  # fmt: skip


def become_partition_writer(
    store: Store, shard: int, slot: int, now_ms: Callable[[], int]
) -> tuple[LogProgress, Writer]:
    """Become the writer of a partition's log. Errors as `become_writer`.

    Numbers and ids are its home shard's business: here the segments are verified and counted."""
    number = log_of(shard, slot)
    try:
        progress = checkpoint.partition_progress(store, shard, slot)
    except CorruptError as e:
        merged = Table(store).snapshot().end(number)
        if merged is None or merged.segment < marked(store, number):
            raise
        log.warning("log %d: %s; the history's table says where it goes on", number, e)
        progress = merged.progress()
    end = last_segment(store, number, progress.segment)

    def follow() -> None:
        for segment in read_log(store, number, progress, at_least=end):
            step(progress, segment)

    writer = fence_log(store, number, progress, None, follow, now_ms)
    return progress, writer


def step(progress: LogProgress, segment: Segment) -> None:
    """One more verified segment of a log that is not folded."""
    progress.advance(segment.meta.segment, segment.meta.epoch, segment.digest, segment.meta.fence)
    progress.sequencer = max(progress.sequencer, segment.meta.sequencer)


def fence_log(
    store: Store,
    log: int,
    progress: LogProgress,
    sequencer: int | None,
    read_on: Callable[[], None],
    now_ms: Callable[[], int],
    by_home: bool = False,
) -> Writer:
    """Read a log to its end (`read_on` advances `progress`) and take the next number; repeat until the fence directly
    follows the last segment read.

    StaleError: this slept between reading and fencing, while what follows was written, merged and deleted: the name
    that its fence took had been another's, and nothing may be concluded from it.

    `sequencer`: what the fence names; None: what the log named last."""
    for _ in range(_FENCE_TRIES_MAX):
        read_on()
        named = progress.sequencer if sequencer is None else sequencer
        writer = Writer(store, log, progress, named, by_home)
        if writer.fence(now_ms()):
            check_not_deleted(store, log, writer.segment)  # before anything is concluded from the fence
            read_on()  # the fence itself, by the one way that everything takes
            if progress.segment == writer.segment:
                return writer  # else another one fenced this one off already
    raise UnavailableError(f"log {log}: other writers keep taking it; is a second deployment using this data?")
