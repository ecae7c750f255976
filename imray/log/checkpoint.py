"""Checkpoints: a shard's state at one segment, so that recovery costs what came since, not the history.

A checkpoint holds the conversations with their heads, and names the sealed intervals that hold everything else.
Derived from the log, so never fatal: where one does not verify, an older one serves, or the whole log. Put under the
number of the last segment that it covers. Does not own the deletion of derived files (`imray.log.retire`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from imray.core.checkpoint_chain import ChainLink
from imray.core.dedup import IdTable
from imray.core.errors import CorruptError, DerivedError, StorageError
from imray.core.intervals import Interval, sealed_prefix
from imray.core.log_progress import LogProgress
from imray.core.routing import log_of
from imray.core.state import HotGroup, ShardState
from imray.log.checkpoint_file import (
    checkpoint_name,
    encode_checkpoint,
    other_name,
    put_checkpoint,
    read_checkpoint,
    read_link,
    verify_links,
)
from imray.log.checkpoint_file import checkpoint_prefix as checkpoint_prefix
from imray.log.checkpoint_file import checkpoints as checkpoints
from imray.log.checkpoint_meta import CheckpointMeta, PartitionMeta
from imray.log.checkpoint_rows import restore_rows, rows_of
from imray.log.checkpoint_snapshot import Snapshot, seal_frozen
from imray.log.marks import marked, newest_mark
from imray.log.reader import read_segment
from imray.log.sealed import SealedInterval, merge, merge_due, open_interval
from imray.log.segment import segment_name
from imray.log.store import Store

log = logging.getLogger("imray.log")

_LISTINGS_MAX = 10
"""Every new listing means that a live predecessor made a checkpoint meanwhile: seconds apart."""


def write(store: Store, snap: Snapshot, before: Sequence[SealedInterval]) -> list[SealedInterval]:
    """Make a checkpoint durable, with a sealed interval for the frozen ids: the intervals that it names, that one last.

    StorageError where the store refuses; nothing is lost then, since all of it can be made again. Where a file that it
    builds on is lost or damaged, the state's chain is empty afterwards, and the next one has everything again. Where
    not even a twin of that file serves, there is no checkpoint: it would serve nobody."""
    sealed = [*before, seal_frozen(store, snap)]
    try:
        is_whole = _is_whole(store, snap.before)
    except DerivedError as e:
        log.warning("shard %d: no checkpoint of segment %d, which would build on this: %s", snap.shard, snap.segment, e)
        snap.chain.made((), 0)
        return sealed
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
        users=snap.users,
        window=snap.window,
        following=_jump(snap.segment, snap.following),
        chain=list(snap.before),
        rows=len(snap.rows) if snap.before else 0,
    )
    name = checkpoint_name(snap.shard, snap.segment)
    digest = put_checkpoint(store, name, *encode_checkpoint(meta, rows_of(snap)))
    links = (*snap.before, ChainLink(name, digest.hex(), len(snap.rows))) if is_whole else ()
    snap.chain.made(links, len(snap.heads))
    return sealed


def _is_whole(store: Store, links: Sequence[ChainLink]) -> bool:
    """Whether all of these files are as they were, each under its own name: what only a twin is left of is one file
    away from being lost. DerivedError where there is no twin of one either."""
    found = [(link.name, read_link(store, link).name) for link in links]
    lost = [name for name, there in found if name != there]
    if lost:
        log.warning("%s: lost or damaged, only the twin serves: the next checkpoint has all again", ", ".join(lost))
    return not lost


def write_twin(store: Store, shard: int) -> bool:
    """Make a second file of the newest checkpoint that serves, which counts as one of the two newest: what the log has
    up to there may be deleted when two cover it. False: there is none, or it has its twin.

    StorageError where the store refuses."""
    verified: set[ChainLink] = set()
    for name in reversed(checkpoints(store, shard)):
        try:
            file = read_checkpoint(store, name)
            verify_links(store, file.meta, verified)
        except DerivedError:
            continue
        other = other_name(name)
        if store.exists(other) and serves(store, other):
            return False
        put_checkpoint(store, other, [file.data], file.digest)
        return True
    return False


def serves(store: Store, name: str) -> bool:
    """Whether a file is there and verifies; what it builds on is not looked at."""
    try:
        read_checkpoint(store, name)
    except DerivedError:
        return False
    return True


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
    newest = read_checkpoint(store, name)
    meta = newest.meta
    if meta.shard != shard or name not in (own := checkpoint_name(shard, meta.segment), other_name(own)):
        raise DerivedError(name, f"it is the checkpoint of segment {meta.segment} of shard {meta.shard}")
    _check_covered(store, shard, meta, name, notes)
    _check_log_is_there(store, meta, name)
    restore_rows(state, [*(read_link(store, link) for link in meta.chain), newest])
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
    """What a checkpoint says. DerivedError where its file is missing or does not verify; what it builds on is not
    looked at."""
    return read_checkpoint(store, name).meta


def whole_checkpoint_meta(store: Store, name: str, verified: set[ChainLink] | None = None) -> CheckpointMeta:
    """The same, where all that it builds on verifies, too. `verified`: files that were found to, and need not be read
    again; it is added to."""
    meta = checkpoint_meta(store, name)
    verify_links(store, meta, set() if verified is None else verified)
    return meta
