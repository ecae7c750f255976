"""How far a log was read or written, and how it goes on: segments in their order, fences and what they leave out.

Pure: the segments themselves are `imray.log.segment`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from imray.core.errors import InvalidError


@dataclass(frozen=True)
class Fence:
    """What a fence says of how the log goes on."""

    window: int
    """How many puts its writer may have on their way, counted from the lowest name that is not acked."""
    following: int
    """The number of the segment after it. Names between the two are no part of the log: the writer that was fenced off
    may still be putting them."""


@dataclass
class LogProgress:
    """How far a log was folded."""

    segment: int = 0
    epoch: int = 0
    digest: bytes = bytes(16)
    epoch_starts: list[tuple[int, int]] = field(default_factory=list)
    """(first segment, epoch), ascending."""
    sequencer: int = 0
    """A partition's log: the newest epoch of the home shard that it names. It may use no older one's grants."""
    window: int = 1
    """As the last fence declared it (`Fence.window`)."""
    following: int = 0
    """The number of the next segment; 0 where it is made: the one after `segment`."""

    def __post_init__(self) -> None:
        self.following = self.following or self.segment + 1

    def check(self, segment: int, epoch: int) -> None:
        """InvalidError where a segment does not follow."""
        if segment != self.following or epoch < self.epoch:
            raise InvalidError(
                f"segment {segment} of epoch {epoch} cannot follow segment {self.segment} of epoch {self.epoch}"
                f": the next one is {self.following}"
            )

    def advance(self, segment: int, epoch: int, digest: bytes, fence: Fence | None = None) -> None:
        """One more segment; `fence` where it is one. InvalidError where it does not follow."""
        self.check(segment, epoch)
        if epoch != self.epoch:
            self.epoch_starts.append((segment, epoch))
        self.segment = segment
        self.epoch = epoch
        self.digest = digest
        self.following = segment + 1
        if fence is not None:
            self.window = fence.window
            self.following = fence.following

    def epoch_of(self, segment: int) -> int:
        """The epoch that wrote a segment."""
        return next((e for first, e in reversed(self.epoch_starts) if first <= segment), 0)

    def copy(self) -> LogProgress:
        """As it is now."""
        return replace(self, epoch_starts=list(self.epoch_starts))
