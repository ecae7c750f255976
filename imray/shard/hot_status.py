"""What operators see of a home shard's hot groups."""

from __future__ import annotations

from imray.core.state import HotGroup
from imray.core.status import HotGroupStatus
from imray.shard.grants import Grants


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
