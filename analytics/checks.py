"""What makes a single file sound: every byte under its digest, and the metadata of what its name says.

Each check returns the file's digest and what it says of itself, or raises CorruptError. Owns no reading of files.
"""

from __future__ import annotations

from imray.core.errors import CorruptError
from imray.core.intervals import Interval
from imray.log import digest as digests
from imray.log.checkpoint_meta import CheckpointMeta
from imray.log.marks import LogEnd
from imray.log.segment import FIRST_PREVIOUS, META_KEY, SegmentMeta, open_segment, read_meta, segment_name


def check_segment(log: int, number: int, data: memoryview, name: str) -> tuple[bytes, SegmentMeta]:
    """A segment of a log."""
    segment = open_segment(data, name)
    if (segment.meta.shard, segment.meta.segment) != (log, number):
        raise CorruptError(name, "metadata", f"it is segment {segment.meta.segment} of shard {segment.meta.shard}")
    return segment.digest, segment.meta


def check_checkpoint(home: int, data: memoryview, name: str) -> tuple[bytes, CheckpointMeta]:
    """A checkpoint of a shard."""
    digest = digests.verify(data, name)
    meta = read_meta(data, name, META_KEY, CheckpointMeta)
    if meta.shard != home:
        raise CorruptError(name, "metadata", f"it is a checkpoint of shard {meta.shard}")
    return digest, meta


def check_postings(interval: Interval, data: memoryview, name: str) -> tuple[bytes, Interval]:
    """The postings of a sealed interval."""
    digest = digests.verify(data, name)
    if read_meta(data, name, META_KEY, Interval) != interval:
        raise CorruptError(name, "metadata", "it is another interval's file")
    return digest, interval


def check_digest(data: memoryview, name: str) -> tuple[bytes, None]:
    """Any file with a digest."""
    return digests.verify(data, name), None


def check_chain(before: SegmentMeta | None, digest: bytes, meta: SegmentMeta) -> CorruptError | None:
    """What is wrong between a segment and the one before it, whose digest is given (None: there is none, or it is not
    the one just before)."""
    if meta.segment == 1:
        previous = FIRST_PREVIOUS
    elif before is None or before.segment != meta.segment - 1:
        return None
    else:
        return _check_follows(meta, digest.hex(), before.epoch)
    return _check_follows(meta, previous, 0)


def check_chain_after(end: LogEnd, meta: SegmentMeta) -> CorruptError | None:
    """What is wrong between the first segment that is not merged and the last one that is."""
    return _check_follows(meta, end.digest, end.epoch)


def _check_follows(meta: SegmentMeta, previous: str, epoch: int) -> CorruptError | None:
    name = segment_name(meta.shard, meta.segment)
    if meta.epoch < epoch:
        return CorruptError(name, "metadata", f"epoch {meta.epoch} after epoch {epoch}")
    if meta.previous != previous:
        text = f"it follows a segment with digest {meta.previous}, but the one before it has {previous}"
        return CorruptError(name, "metadata", f"{text}: one of the two was changed or put in another's place")
    return None
