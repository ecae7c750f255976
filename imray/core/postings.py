"""Which segments hold which numbers of a conversation, for the segments that no sealed file covers yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from imray.core.hashing import I32, I64


@dataclass(frozen=True)
class Posting:
    """One segment: the conversations it numbers (ascending) and the first and last number of each in it."""

    segment: int
    conv: I32
    first: I64
    last: I64


@dataclass
class Postings:
    """The postings since a checkpoint, in the order of the log; as long as segments between two checkpoints."""

    entries: list[Posting] = field(default_factory=list)

    def add(self, segment: int, conv: I32, first: I64, last: I64) -> None:
        """Record one commit's numbers."""
        order = np.argsort(conv, kind="stable")
        self.entries.append(Posting(segment, conv[order], first[order], last[order]))

    def spans(self, conv: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """(segment, first, last) of every segment with numbers of `conv` in low..high, ascending."""
        found = []
        for entry in reversed(self.entries):
            at = int(np.searchsorted(entry.conv, conv))
            while at < len(entry.conv) and entry.conv[at] == conv:
                first, last = int(entry.first[at]), int(entry.last[at])
                if first <= high and last >= low:
                    found.append((entry.segment, first, last))
                at += 1
            if found and found[-1][1] <= low:
                break
        return sorted(found, key=lambda span: span[1])
