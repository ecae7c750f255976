"""What a checkpoint says beside its rows: JSON in the metadata of its file. Who writes it: `imray.log.checkpoint`."""

from __future__ import annotations

import msgspec

from imray.core.checkpoint_chain import ChainLink
from imray.core.intervals import Interval


class PartitionMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How far a partition's log is covered."""

    slot: int
    segment: int
    epoch: int
    digest: str
    epoch_starts: list[tuple[int, int]]
    sequencer: int
    window: int = 1
    following: int = 0
    """As in `LogProgress`; 0: the next number."""


class HotMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation (its row in the checkpoint) that is hot."""

    row: int
    partitions: int = msgspec.field(name="topics")
    ceiling: int
    by_rate: bool


class CheckpointMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a checkpoint says beside its rows: of all conversations (conv_id, head), or of those that changed since the
    one before (row, conv_id, head)."""

    shard: int
    segment: int
    epoch: int
    digest: str
    conversations: int
    """All of the shard's."""
    epoch_starts: list[tuple[int, int]]
    intervals: list[Interval]
    partitions: list[PartitionMeta] = msgspec.field(default_factory=list, name="topics")
    hot: list[HotMeta] = []
    users: int = 0
    """How many users members and cursors name: those are columns beside (conv_id, head) then."""
    window: int = 1
    following: int = 0
    """As in `LogProgress`, of the shard's own log; 0: the next number."""
    chain: list[ChainLink] = []
    """The files that this one builds on, the one with all conversations first; empty: it has all of them itself."""
    rows: int = 0
    """Of one that builds on others: how many conversations it has."""

    @property
    def rows_in_file(self) -> int:
        """How many rows its file has."""
        return self.rows if self.chain else self.conversations
