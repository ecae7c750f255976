"""What operators see of a home shard's hot groups."""

from __future__ import annotations

from typing import Any

from imray.core.grants import Declined, Granted
from imray.core.state import HotGroup
from imray.core.status import HotGroupStatus
from imray.shard.grants import Grants
from imray.shard.old_ids import LookUp
from imray.shard.runtime import Runtime

_TIMED_EVERY = 16
"""One ask of so many is timed, and stands for them: asking the kernel twice took a tenth of a small block's time."""


class TimedAsks:
    """The asks of one incarnation of a home shard, counted."""

    def __init__(self, grants: Grants, runtime: Runtime) -> None:
        self._grants = grants
        self._runtime = runtime
        self._tried = 0
        self.answered = 0
        self.cpu_s = 0.0

    def ask(self, *what: Any) -> Granted | Declined | LookUp:
        """As `Grants.ask`, in the thread of the state."""
        self._tried += 1
        is_timed = self._tried % _TIMED_EVERY == 0
        before_s = self._runtime.thread_cpu_s() if is_timed else 0.0
        answer = self._grants.ask(*what)
        if is_timed:
            self.cpu_s += _TIMED_EVERY * (self._runtime.thread_cpu_s() - before_s)
        self.answered += not isinstance(answer, LookUp)
        return answer


def group_statuses(grants: Grants, now_s: float) -> list[HotGroupStatus]:
    """Of each hot group. `now_s`: by the clock that grants were dated with."""
    return [_status_of(grants, conv, group, now_s) for conv, group in grants.committer.state.hot.items()]


def _status_of(grants: Grants, conv: int, group: HotGroup, now_s: float) -> HotGroupStatus:
    committer = grants.committer
    conversations = committer.state.conversations
    mine = [b for b in grants.blocks.outstanding.values() if (b.touched == conv).any()]
    oldest = min(mine, key=lambda b: b.asked_at, default=None)
    name = conversations.name(conv)
    head = int(conversations.heads[conv])
    stable = int(conversations.stable[conv])
    return HotGroupStatus(
        conv_id=name,
        partitions=group.partitions,
        head=head,
        stable_seq=stable,
        lag=head - stable,
        grants=len(mine),
        oldest_grant_age_s=round(now_s - oldest.asked_at, 3) if oldest else None,
        oldest_grant_slot=oldest.slot if oldest else None,
        rate_per_s=round(committer.hot_detector.rates.get(conv, 0.0)),
        voids=grants.voids[name],
        by_rate=group.by_rate,
    )
