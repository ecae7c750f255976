"""Reading a shard's log in order: every segment verified, numbered without a hole, chained to the one before.

Owns the order. Owns no state of a shard (`imray.core.sequencer`) and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from imray.core.errors import CorruptError
from imray.log.segment import Segment, open_segment, segment_name, segment_number, segment_prefix
from imray.log.store import Store


def read_segment(store: Store, shard: int, number: int) -> Segment:
    """One verified segment. CorruptError where it is missing, changed, or another one in its place."""
    name = segment_name(shard, number)
    data = store.get(name)
    if data is None:
        raise CorruptError(name, "the whole file", "the log goes on after it, but it is not there")
    segment = open_segment(data, name)
    if (segment.meta.shard, segment.meta.segment) != (shard, number):
        raise CorruptError(name, "metadata", f"it is segment {segment.meta.segment} of shard {segment.meta.shard}")
    return segment


def last_segment(store: Store, shard: int, after: int = 0) -> int:
    """The highest published segment number (`after` where none is higher)."""
    names = store.list(segment_prefix(shard), segment_name(shard, after))
    return segment_number(names[-1]) if names else after


def read_log(store: Store, shard: int, after: int, digest: bytes, last: int | None = None) -> Iterator[Segment]:
    """The segments after number `after`, whose digest is `digest`, up to `last` (None: the end as it is now).

    CorruptError at the first one that does not verify or does not follow its predecessor."""
    end = last_segment(store, shard, after) if last is None else last
    epoch = 0
    for number in range(after + 1, end + 1):
        segment = read_segment(store, shard, number)
        if segment.meta.previous != digest.hex():
            raise CorruptError(
                segment.name,
                "metadata",
                f"it follows a segment with digest {segment.meta.previous}, but segment {number - 1} has "
                f"{digest.hex()}: one of the two was changed or put in another's place",
            )
        if segment.meta.epoch < epoch:
            raise CorruptError(segment.name, "metadata", f"epoch {segment.meta.epoch} after epoch {epoch}")
        digest, epoch = segment.digest, segment.meta.epoch
        yield segment
