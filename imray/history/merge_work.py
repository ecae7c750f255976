"""What a merger knows of one shard, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass, field

from imray.history.cut import Cuts
from imray.history.holds import Holds
from imray.history.own_files import PreparedCommit
from imray.history.retiring import LiveFiles, SegmentDeleter
from imray.history.retiring_files import FileDeleter


@dataclass
class Merged:
    """What a merger has done."""

    segments: int = 0
    runs: int = 0
    """That were made."""
    bytes: int = 0
    """Of them."""
    files_replaced: int = 0
    segments_deleted: int = 0
    files_deleted: int = 0
    conflicts: int = 0


@dataclass
class ShardWork:
    """What is known of one shard."""

    cuts: Cuts
    live: LiveFiles
    files: FileDeleter
    holds: Holds
    """By stage, or by "log N"."""
    segments: dict[int, SegmentDeleter] = field(default_factory=dict)
    prepared: dict[str, PreparedCommit] = field(default_factory=dict)
    """By operation."""
    next: int = 0
    """The stage that is looked at first: work that never ends keeps none of the others waiting."""
