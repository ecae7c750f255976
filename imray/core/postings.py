"""Which segments hold which numbers of a conversation, for the segments that no sealed file covers yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from imray.core.routing import slot_of
from imray.kernels.arrays import I32, I64


@dataclass(frozen=True)
class Posting:
    """One segment, by its log position: the conversations it numbers (ascending), first and last number of each."""

    log_position: int
    conv: I32
    first: I64
    last: I64


@dataclass
class Postings:
    """The postings since a checkpoint, in the order of settlement; as long as segments between two checkpoints."""

    entries: list[Posting] = field(default_factory=list)
    ascending: bool = True
    """Whether a conversation's numbers ascend from entry to entry: not over several logs, nor in a hot group."""

    def add(self, log_position: int, conv: I32, first: I64, last: I64) -> None:
        """Record one commit's numbers."""
        self.ascending &= slot_of(log_position) == 0
        if len(conv) > 1:
            order = np.argsort(conv, kind="stable")
            conv = conv[order]
            first = first[order]
            last = last[order]
        self.entries.append(Posting(log_position, conv, first, last))

    def spans(self, conv: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """(log position, first, last) of every segment with numbers of `conv` in low..high, ascending."""
        found = []
        for entry in reversed(self.entries):
            at = int(np.searchsorted(entry.conv, conv))
            while at < len(entry.conv) and entry.conv[at] == conv:
                first = int(entry.first[at])
                last = int(entry.last[at])
                if first <= high and last >= low:
                    found.append((entry.log_position, first, last))
                at += 1
            if self.ascending and found and found[-1][1] <= low:
                break
        return sorted(found, key=lambda span: span[1])
