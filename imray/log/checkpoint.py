"""Checkpoints: a shard's state at one segment, so that recovery costs what came since, not the history.

A checkpoint holds the conversations with their heads, and names the sealed intervals that hold everything else.
Derived from the log, so never fatal: where one does not verify, an older one serves, or the whole log. Put under the
number of the last segment that it covers. Does not own the deletion of derived files (`imray.log.retire`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.dedup import IdTable
from imray.core.errors import CorruptError, DerivedError, InvalidError, StorageError
from imray.core.intervals import Interval, sealed_prefix
from imray.core.log_progress import LogProgress
from imray.core.routing import log_of
from imray.core.state import HotGroup, ShardState
from imray.log import digest as digests
from imray.log.checkpoint_members import member_columns, restored_members
from imray.log.checkpoint_meta import CheckpointMeta, PartitionMeta
from imray.log.checkpoint_snapshot import Snapshot, seal_frozen
from imray.log.marks import marked, newest_mark
from imray.log.reader import read_segment
from imray.log.schema import body_parts
from imray.log.sealed import SealedInterval, merge, merge_due, open_interval, why
from imray.log.segment import META_KEY, encode_parquet, read_meta, segment_name
from imray.log.store import Store

_SUFFIX = ".parquet"
_TWIN = "-twin"
_LISTINGS_MAX = 10
"""Every new listing means that a live predecessor made a checkpoint meanwhile: seconds apart."""


def write(store: Store, snap: Snapshot, before: Sequence[SealedInterval]) -> list[SealedInterval]:
    """Make a checkpoint durable, with a sealed interval for the frozen ids: the intervals that it names, that one last.

    StorageError where the store refuses; nothing is lost then, since all of it can be made again."""
    sealed = [*before, seal_frozen(store, snap)]
    meta = CheckpointMeta(
        shard=snap.shard,
        segment=snap.segment,
        epoch=snap.epoch,
        digest=snap.digest.hex(),
        conversations=len(snap.heads),
        epoch_starts=snap.epoch_starts,
        intervals=[s.interval for s in sealed],
        partitions=[
            PartitionMeta(
                slot=slot,
                segment=p.segment,
                epoch=p.epoch,
                digest=p.digest.hex(),
                epoch_starts=p.epoch_starts,
                sequencer=p.sequencer,
                window=p.window,
                following=_jump(p.segment, p.following),
            )
            for slot, p in snap.partitions.items()
        ],
        hot=snap.hot,
        users=0 if snap.members is None else len(snap.members.ends) - 1,
        window=snap.window,
        following=_jump(snap.segment, snap.following),
    )
    columns = {"conv_id": snap.names.cast(pa.string()), "head": snap.heads}
    if snap.members is not None:
        columns |= member_columns(snap.members)
    data = encode_parquet(pa.table(columns), META_KEY, msgspec.json.encode(meta), "lz4")
    _put(store, _name(snap.shard, snap.segment), digests.seal(data)[0])
    return sealed


def _put(store: Store, name: str, parts: digests.Parts) -> None:
    if store.put_if_absent(name, parts):
        return
    # an earlier try of this one, whose outcome was unknown: the number is the writer's own. Its intervals were durable
    # before it, so it serves as it is; one that does not verify is put anew
    if not _serves(store, name):
        store.delete(name)
        if not store.put_if_absent(name, parts):
            raise StorageError(f"put {name}: it was taken again")


def write_twin(store: Store, shard: int) -> bool:
    """Make a second file of the newest checkpoint that serves, which counts as one of the two newest: what the log has
    up to there may be deleted when two cover it. False: there is none, or it has its twin.

    StorageError where the store refuses."""
    for name in reversed(checkpoints(store, shard)):
        try:
            _, data = _verified(store, name)
        except DerivedError:
            continue
        other = _other_name(name)
        if store.exists(other) and _serves(store, other):
            return False
        _put(store, other, [data])
        return True
    return False


def _serves(store: Store, name: str) -> bool:
    try:
        checkpoint_meta(store, name)
    except DerivedError:
        return False
    return True


def _other_name(name: str) -> str:
    """The name of a checkpoint's twin, or of that whose twin it is. A twin sorts right before the other."""
    stem = name.removesuffix(_SUFFIX)
    return (stem.removesuffix(_TWIN) if stem.endswith(_TWIN) else stem + _TWIN) + _SUFFIX


def merge_step(store: Store, intervals: Sequence[SealedInterval]) -> tuple[list[SealedInterval], SealedInterval] | None:
    """Merge adjacent intervals where that is due: which, and what takes their place. The next checkpoint names it.

    Apart from `write`, since a merge takes seconds, and ids gather in memory until a checkpoint is written."""
    due = merge_due([s.interval for s in intervals])
    if due is None:
        return None
    parts = list(intervals[due])
    return parts, merge(store, parts)


def restore(
    store: Store,
    shard: int,
    seed: int,
    notes: list[str] | None = None,
    otherwise: Callable[[], ShardState] | None = None,
) -> ShardState:
    """The state at the newest checkpoint that serves; where there is none what `otherwise` makes, or the state of an
    empty log.

    A derived file that is missing or does not verify is passed over: an older checkpoint serves, an interval is opened
    without its filter. `notes` are told. CorruptError: the log itself does not verify."""
    told: list[str] = [] if notes is None else notes
    for _ in range(_LISTINGS_MAX):
        names = checkpoints(store, shard)
        for name in reversed(names):
            try:
                return _restored(store, shard, seed, name, told, names)
            except DerivedError as e:
                if checkpoints(store, shard) != names:
                    break
                told.append(f"{e}; an older checkpoint is read, or history and log")
        else:
            if not names and store.list(sealed_prefix(shard)):
                told.append("no checkpoint names the sealed files that are there: history and log are read")
            return ShardState(seed) if otherwise is None else otherwise()
    raise StorageError(f"checkpoints of shard {shard}: another writer keeps making them; retry")


def _restored(store: Store, shard: int, seed: int, name: str, notes: list[str], listed: list[str]) -> ShardState:
    state = ShardState(seed)
    meta, table = _read(store, name)
    if meta.shard != shard or name not in (own := _name(shard, meta.segment), _other_name(own)):
        raise DerivedError(name, f"it is the checkpoint of segment {meta.segment} of shard {meta.shard}")
    _check_covered(store, shard, meta, name, notes)
    _check_log_is_there(store, meta, name)
    if meta.conversations:
        _, offsets = parts = body_parts(table.column("conv_id").chunk(0))
        state.conversations.add(*parts, np.arange(len(offsets) - 1, dtype=np.int32))
        state.conversations.heads[: meta.conversations] = table.column("head").to_numpy()
        state.conversations.stable[: meta.conversations] = state.conversations.heads[: meta.conversations]
    state.log = LogProgress(
        segment=meta.segment,
        epoch=meta.epoch,
        digest=bytes.fromhex(meta.digest),
        epoch_starts=list(meta.epoch_starts),
        window=meta.window,
        following=meta.following,
    )
    state.partitions = {t.slot: _progress(t) for t in meta.partitions}
    state.covered = {0: meta.segment} | {t.slot: t.segment for t in meta.partitions}
    # nothing that was granted before a checkpoint is in flight when it is written
    heads = state.conversations.heads
    state.hot = {h.row: HotGroup(h.partitions, h.ceiling, int(heads[h.row]), h.by_rate) for h in meta.hot}
    if meta.users:
        try:
            state.members = restored_members(table, meta.users)
        except InvalidError as e:
            raise DerivedError(name, str(e)) from e
    state.recent = IdTable(meta.segment)
    state.sealed = [_opened(store, i, notes, listed) for i in meta.intervals]
    return state


def _check_covered(store: Store, shard: int, meta: CheckpointMeta, name: str, notes: list[str]) -> None:
    """The log under a checkpoint is the one that it was made of: DerivedError where another file is there, so that an
    older checkpoint, or none, shows which of the two was exchanged. CorruptError where there is no file.

    One that does not verify takes out its own messages only: the chain goes on with the digest that the checkpoint
    has. Where it is merged and may be deleted, or is, there is nothing to compare."""
    covered = segment_name(shard, meta.segment)
    there_is = store.exists(covered)
    if marked(store, shard) >= meta.segment:
        return
    if not there_is:
        raise CorruptError(covered, "the whole file", f"the checkpoint {name} covers it, but it is not there")
    try:
        there = read_segment(store, shard, meta.segment).digest.hex()
    except CorruptError as e:
        if marked(store, shard) >= meta.segment:
            return
        notes.append(f"the log is damaged, what stands there cannot be read: {e}")
        return
    if there != meta.digest:
        raise DerivedError(name, f"it covers another file than {covered}")


def _check_log_is_there(store: Store, meta: CheckpointMeta, name: str) -> None:
    """DerivedError where some of what stood in the log after a checkpoint was merged and may be deleted: a newer one
    serves, or the history."""
    covered = {meta.shard: meta.segment} | {log_of(meta.shard, p.slot): p.segment for p in meta.partitions}
    for log, segment in covered.items():
        if marked(store, log) > segment:
            raise DerivedError(name, f"log {log} was merged after segment {segment}, to which it goes, and is deleted")


def _opened(store: Store, interval: Interval, notes: list[str], listed: list[str]) -> SealedInterval:
    try:
        return open_interval(store, interval)
    except DerivedError as e:
        if checkpoints(store, interval.shard) != listed:
            raise  # a live predecessor made another checkpoint, and removed what that one replaces
        notes.append(f"{e}; every look-up goes on to the ids until it is made anew")
        return SealedInterval(store, interval, None)


def checkpoints(store: Store, shard: int) -> list[str]:
    """The names of a shard's checkpoints, oldest first."""
    return store.list(checkpoint_prefix(shard))


def _progress(partition: PartitionMeta) -> LogProgress:
    return LogProgress(
        segment=partition.segment,
        epoch=partition.epoch,
        digest=bytes.fromhex(partition.digest),
        epoch_starts=list(partition.epoch_starts),
        sequencer=partition.sequencer,
        window=partition.window,
        following=partition.following,
    )


def _jump(segment: int, following: int) -> int:
    """What is written of the next number: 0 where it is just that."""
    return 0 if following == segment + 1 else following


def partition_progress(store: Store, home: int, slot: int) -> LogProgress:
    """From where a partition's log must be read: a checkpoint of its home shard covers the rest, the newest that
    serves, or what was merged. CorruptError where the newest mark does not verify."""
    known = _covered_progress(store, home, slot)
    log = log_of(home, slot)
    if marked(store, log) <= known.segment:
        return known
    mark = newest_mark(store, log)
    assert mark is not None, "marks never go all at once"
    return mark.end.progress()


def _covered_progress(store: Store, home: int, slot: int) -> LogProgress:
    for name in reversed(checkpoints(store, home)):
        try:
            meta = checkpoint_meta(store, name)
        except DerivedError:
            continue  # it was removed meanwhile, or is damaged: an older one covers less, and more is read
        found = [_progress(t) for t in meta.partitions if t.slot == slot]
        return found[0] if found else LogProgress()
    return LogProgress()


def checkpoint_meta(store: Store, name: str) -> CheckpointMeta:
    """What a checkpoint says. DerivedError where it is missing or does not verify."""
    return _verified(store, name)[0]


def _verified(store: Store, name: str) -> tuple[CheckpointMeta, bytes]:
    data = store.get(name)
    if data is None:
        raise DerivedError(name, "it was listed, but it is not there")
    try:
        digests.verify(data, name)
        return read_meta(memoryview(data), name, META_KEY, CheckpointMeta), data
    except CorruptError as e:
        raise DerivedError(name, f"it does not verify: {why(e)}") from e


def _read(store: Store, name: str) -> tuple[CheckpointMeta, pa.Table]:
    """What a checkpoint says, and its rows (conv_id, head)."""
    meta, data = _verified(store, name)
    try:
        table = pq.read_table(pa.BufferReader(data), use_threads=False).combine_chunks()
    except (pa.ArrowException, OSError) as e:
        raise DerivedError(name, f"it cannot be decoded: {e}") from e
    if table.num_rows != meta.conversations:
        raise DerivedError(name, f"it says {meta.conversations} conversations and has {table.num_rows}")
    return meta, table


def checkpoint_prefix(shard: int) -> str:
    """The folder of a shard's checkpoints."""
    return f"checkpoint/shard={shard:04d}/"


def _name(shard: int, segment: int) -> str:
    return f"{checkpoint_prefix(shard)}{segment:020d}{_SUFFIX}"
