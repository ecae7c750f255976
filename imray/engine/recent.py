"""The last batches of a conversation in memory, so that who was away for a moment needs no read.

Owns nothing but the batches, which follow one another without a hole. Bounded by bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from operator import attrgetter

from imray.engine.batches import cut
from imray.engine.listening import Batch

_after = attrgetter("after")


class Recent:
    """Of one conversation."""

    def __init__(self, position: int) -> None:
        """Nothing is there yet of what is at or below `position`."""
        self.after = position
        """Everything above it is here."""
        self.upto = position
        self.bytes = 0
        self._batches: list[Batch] = []
        self._sizes: list[int] = []

    def add(self, batch: Batch, size: int) -> None:
        """The next batch, and the bytes that it takes."""
        assert batch.after == self.upto
        self._batches.append(batch)
        self._sizes.append(size)
        self.bytes += size
        self.upto = batch.upto

    def trim(self, bytes_max: int) -> int:
        """Let the oldest go until no more than that is left; how many bytes went."""
        gone = 0
        freed = 0
        while gone < len(self._batches) and self.bytes - freed > bytes_max:
            freed += self._sizes[gone]
            gone += 1
        if gone:
            self.after = self._batches[gone - 1].upto
            del self._batches[:gone]
            del self._sizes[:gone]
            self.bytes -= freed
        return freed

    def following(self, after: int) -> Iterator[Batch]:
        """What follows `after`, which must not be below `self.after`. The batches may be trimmed meanwhile."""
        at = bisect_right(self._batches, after, key=_after) - 1
        if at < 0:
            return
        for batch in self._batches[at:]:
            if batch.upto > after:
                yield cut(batch, after, batch.upto)
