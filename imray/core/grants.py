"""What a partition and its home shard say to one another about blocks of numbers: asks are answered, writes reported.

Owns the values only. When there is a grant, and what becomes of it: `imray.core.blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from imray.core.columns import Plan
from imray.kernels.arrays import I64


@dataclass(frozen=True)
class Report:
    """A partition says: this grant's segment is durable."""

    grant: int
    segment: int
    server_ts: int
    digest: bytes


@dataclass(frozen=True)
class Granted:
    """The answer to an ask: which rows are new, and their numbers. `grant` 0: none was needed.

    `plan` None stands for the plain case: every row is new, in one conversation, numbered from `first`."""

    sequencer: int
    grant: int
    rows: int
    first: int
    plan: Plan | None
    stable: I64 | int
    partitions: dict[str, int]
    """How many partitions each hot conversation has now."""

    def expanded(self) -> Plan:
        """The plan, whichever way it came. Conversations are the asker's own (`touched` aside)."""
        if self.plan is not None:
            return self.plan
        n = self.rows
        return Plan(
            status=np.zeros(n, np.uint8),
            seq=np.arange(self.first, self.first + n),
            new_rows=None,
            row_in_segment=np.arange(n, dtype=np.uint32),
            log_position=None,
            epoch=None,
            server_ts=None,
            conv=np.zeros(n, np.int32),
            fresh=np.empty(0, np.int32),
            touched=np.zeros(1, np.int32),
            touched_first=np.array([self.first]),
            touched_last=np.array([self.first + n - 1]),
        )


class DeclineReason(StrEnum):
    """Why there is no grant, by what the partition must do."""

    FENCED = "fenced"
    """Open the log anew and register."""
    MOVED = "moved"
    """The home shard takes these sends."""
    BUSY = "busy"
    """The home shard takes no more now."""
    SENDERS = "senders"
    """Ask again, and say who sends each row: the conversation has members."""
    OLD_IDS = "old_ids"
    """Ask again without the requests of some rows: whether these ids are old takes longer to find out than an ask may.
    The home shard takes them."""
    WAIT = "wait"
    """Ask again."""


@dataclass(frozen=True)
class Declined:
    """No grant, and nothing changed."""

    why: DeclineReason
    rows: I64 | None = field(default=None, compare=False)
    """Of OLD_IDS: which rows, ascending."""
