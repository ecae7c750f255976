"""Reading a shard's log in order: every segment verified, numbered without a hole, chained to the one before.

Owns the order. Owns no state of a shard (`imray.core.sequencer`) and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from imray.core.errors import CorruptError
from imray.core.log_progress import LogProgress
from imray.log.marks import check_not_deleted
from imray.log.segment import Segment, open_segment, segment_name, segment_number, segment_prefix
from imray.log.store import Store


def read_segment(store: Store, shard: int, number: int) -> Segment:
    """One verified segment. CorruptError where it is missing, changed, or another one in its place."""
    found = _read(store, shard, number)
    if found is None:
        raise _missing(shard, number)
    return found


def _read(store: Store, shard: int, number: int) -> Segment | None:
    name = segment_name(shard, number)
    data = store.get(name)
    if data is None:
        return None
    segment = open_segment(data, name)
    if (segment.meta.shard, segment.meta.segment) != (shard, number):
        raise CorruptError(name, "metadata", f"it is segment {segment.meta.segment} of shard {segment.meta.shard}")
    return segment


def _missing(shard: int, number: int) -> CorruptError:
    return CorruptError(segment_name(shard, number), "the whole file", "the log goes on after it, but it is not there")


def last_segment(store: Store, shard: int, after: int = 0) -> int:
    """The highest published segment number (`after` where none is higher). Lists the folder: seconds where it is
    large, so never between a look at the end and a fence."""
    names = store.list(segment_prefix(shard), segment_name(shard, after))
    return segment_number(names[-1]) if names else after


def read_log(
    store: Store, shard: int, progress: LogProgress, last: int | None = None, at_least: int = 0
) -> Iterator[Segment]:
    """The segments of a log after those of `progress`, up to number `last` (None: the end as it is now).

    The end is found by following names, so a busy writer is caught up with however large the folder is. Following
    cannot tell a lost segment from the end: `at_least` is a number that is known to be there (`last_segment`). What a
    fence says of how the log goes on is followed. CorruptError at the first segment that does not verify or does not
    follow its predecessor. StaleError where some of what was read, or is not there, may have been deleted since
    `progress` was true: a fence that was put there by somebody who slept is no part of the log, though it chains."""
    epoch = 0
    start = progress.following
    number = start
    before = progress.segment
    digest = progress.digest
    window = progress.window
    while last is None or number <= last:
        try:
            segment = _read(store, shard, number)
            # a writer puts no name before the one that is a window below it is acked, so that one must be there
            if segment is None and (last is not None or number == at_least or number + window <= at_least):
                raise _missing(shard, number)
            if segment is not None:
                _check_follows(segment, before, digest, epoch)
        except CorruptError:
            check_not_deleted(store, shard, start)
            raise
        if segment is None:
            check_not_deleted(store, shard, start)
            return
        digest = segment.digest
        epoch = segment.meta.epoch
        before = number
        number += 1
        if (fence := segment.meta.fence) is not None:
            number = fence.following
            window = fence.window
        yield segment


def _check_follows(segment: Segment, before: int, digest: bytes, epoch: int) -> None:
    if segment.meta.previous != digest.hex():
        raise CorruptError(
            segment.name,
            "metadata",
            f"it follows a segment with digest {segment.meta.previous}, but segment {before} has "
            f"{digest.hex()}: one of the two was changed or put in another's place",
        )
    if segment.meta.epoch < epoch:
        raise CorruptError(segment.name, "metadata", f"epoch {segment.meta.epoch} after epoch {epoch}")
