"""Which files make up the newest checkpoint: a base with all conversations, and deltas of those that changed since.

Pure values. Who writes and reads the files: `imray.log.checkpoint`.
"""

from __future__ import annotations

import msgspec

DELTAS_MAX = 16
"""Each is one more file to read at a start."""
ALWAYS_BASE_ROWS = 4096
"""So few conversations are written whole, each time: 100 KB."""


class ChainLink(msgspec.Struct, frozen=True, array_like=True):
    """One file of a checkpoint."""

    name: str
    digest: str
    """Hex, of the whole file."""
    rows: int


class CheckpointChain:
    """The files of a shard's newest checkpoint, base first. Changed by whoever writes checkpoints, one at a time."""

    def __init__(self) -> None:
        self.links: tuple[ChainLink, ...] = ()
        """Empty: there is none to build on."""
        self.conversations = 0
        """That these files have."""

    def next_is_base(self, conversations: int, changed: int) -> bool:
        """Whether the next checkpoint, with so many changed conversations, should have all of them: deltas with half as
        many rows as the base has cost a start half as much as that."""
        if not self.links or conversations <= ALWAYS_BASE_ROWS:
            return True
        base = self.links[0]
        deltas = self.links[1:]
        return len(deltas) >= DELTAS_MAX or 2 * (changed + sum(link.rows for link in deltas)) > base.rows

    def made(self, links: tuple[ChainLink, ...], conversations: int) -> None:
        """A checkpoint of these files, with so many conversations, is durable."""
        self.links = links
        self.conversations = conversations
