"""When a checkpoint is made that no number of segments or ids asks for, and when the newest one gets a twin.

What a checkpoint covers may be merged into the history, and what the two newest cover may be deleted: so a shard that
is written slowly, or not at all any more, makes them by time. Does not make them: `imray.shard.upkeep` does.
"""

from __future__ import annotations

from collections.abc import Callable

from imray.settings import Settings
from imray.shard.committer import Committer

_LOOKS_A_WAIT = 8
_LOOK_S_MIN = 0.02
_QUIET_WAITS = 3
"""So many waits without a segment, and even a single one is covered: not sooner, since each checkpoint is a few files,
and what is sent once a minute would cause one each time."""


class CheckpointTiming:
    """What the clock says of one incarnation's checkpoints."""

    def __init__(self, committer: Committer, settings: Settings, now_s: Callable[[], float]) -> None:
        self._committer = committer
        self._wait_s = settings.checkpoint_wait_s
        self._segments_min = max(1, settings.checkpoint_segments_min)
        self._now_s = now_s
        self._made_at = now_s()
        """When the last checkpoint was made; of those before this incarnation nothing is known."""
        self._moved_at = self._made_at
        self._stands = self._segments()
        self._has_twin = False
        self.due = False
        """A checkpoint should be made."""

    @property
    def look_s(self) -> float:
        """How often to `look`."""
        return max(_LOOK_S_MIN, self._wait_s / _LOOKS_A_WAIT)

    def look(self) -> None:
        """See whether one is due by now."""
        now = self._now_s()
        stands = self._segments()
        if stands != self._stands:
            self._stands = stands
            self._moved_at = now
        waiting = self._uncovered(stands)
        if not waiting or now - self._made_at < self._wait_s or not self._may_be_called_after():
            return
        self.due = waiting >= self._segments_min or now - self._moved_at >= _QUIET_WAITS * self._wait_s

    def _segments(self) -> dict[int, int]:
        """The last segment of each log, by slot. In any thread."""
        state = self._committer.state
        return {0: state.log.segment} | {slot: p.segment for slot, p in list(state.partitions.items())}

    def _uncovered(self, stands: dict[int, int]) -> int:
        """Segments that no checkpoint covers, of the log that has most of them."""
        covered = self._committer.state.covered
        return max(segment - covered.get(slot, 0) for slot, segment in stands.items())

    def _may_be_called_after(self) -> bool:
        """Whether there is a segment of the shard's own log that it can be called after, or will be one when asked
        for."""
        return self._committer.log_moved or bool(self._committer.state.hot)

    def made(self) -> None:
        """A checkpoint is durable."""
        self._made_at = self._now_s()
        self._has_twin = False
        self.due = False

    @property
    def twin_due(self) -> bool:
        """Whether the newest checkpoint was the only one of what it covers for long enough."""
        return not self._has_twin and self._now_s() - self._made_at >= self._wait_s / 2

    def twin_made(self) -> None:
        """It has a twin, or there is nothing to make one of."""
        self._has_twin = True
