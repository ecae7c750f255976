"""Which files of a data folder are whole, unchanged and in their place: DuckDB checks nothing, and reads only these.

Owns the verification of a log as a whole and the memory of what was verified. Owns no query.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from imray.core.errors import CorruptError, InvalidError
from imray.log.manifest import Manifest, read
from imray.log.segment import FIRST_PREVIOUS, SegmentMeta, open_segment, segment_name, segment_number, segment_prefix
from imray.log.store import LocalStore

_REMEMBERED_MAX = 200_000
_Key = tuple[int, int, int, int]


@dataclass(frozen=True)
class VerifiedSegment:
    """A segment's file whose every byte was checked."""

    name: str
    path: Path
    meta: SegmentMeta
    digest: bytes
    bytes: int


class Verifier:
    """Verifies segments, and remembers a file for as long as it cannot have changed: inode, size and both times.

    What rots under an unchanged inode is for a scrub, which starts with an empty memory."""

    def __init__(self, data: Path | str) -> None:
        self.data = Path(data)
        self.store = LocalStore(self.data)
        self._known: OrderedDict[str, tuple[_Key, VerifiedSegment]] = OrderedDict()

    def manifest(self) -> Manifest:
        """The folder's manifest; InvalidError where it is no data folder."""
        manifest = read(self.store)
        if manifest is None:
            raise InvalidError(f"{self.data} is no data folder of imray: it has no imray.json")
        return manifest

    def segment(self, shard: int, number: int) -> VerifiedSegment:
        """One segment; CorruptError where it is missing, changed, or another one in its place."""
        name = segment_name(shard, number)
        path = self.data / name
        try:
            stat = path.stat()
        except FileNotFoundError as e:
            raise CorruptError(name, "the whole file", "the log goes on after it, but it is not there") from e
        key = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = self._known.get(name)
        if known is not None and known[0] == key:
            return known[1]
        segment = open_segment(path.read_bytes(), name)
        if (segment.meta.shard, segment.meta.segment) != (shard, number):
            raise CorruptError(name, "metadata", f"it is segment {segment.meta.segment} of shard {segment.meta.shard}")
        verified = VerifiedSegment(name, path, segment.meta, segment.digest, stat.st_size)
        self._known[name] = (key, verified)
        while len(self._known) > _REMEMBERED_MAX:
            self._known.popitem(last=False)
        return verified

    def segments(self, shard: int, numbers: Iterable[int]) -> list[VerifiedSegment]:
        """Several segments, verified side by side."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda n: self.segment(shard, n), numbers))

    def log(self) -> list[VerifiedSegment]:
        """Every segment that is there now, of every shard, the chain checked. CorruptError at the first fault."""
        return [s for shard in range(self.manifest().shards) for s in self.shard_log(shard)]

    def shard_log(self, shard: int) -> list[VerifiedSegment]:
        """As `log`, of one shard."""
        numbers = [segment_number(n) for n in self.store.list(segment_prefix(shard))]
        for expected, number in enumerate(numbers, 1):
            if number != expected:
                name = segment_name(shard, expected)
                raise CorruptError(name, "the whole file", "the log goes on after it, but it is not there")
        found = self.segments(shard, numbers)
        previous, epoch = FIRST_PREVIOUS, 0
        for segment in found:
            if segment.meta.previous != previous:
                raise CorruptError(
                    segment.name, "metadata", "it does not follow the segment before it: the chain breaks"
                )
            if segment.meta.epoch < epoch:
                raise CorruptError(segment.name, "metadata", f"epoch {segment.meta.epoch} after epoch {epoch}")
            previous, epoch = segment.digest.hex(), segment.meta.epoch
        return found
