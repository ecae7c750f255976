"""How far ahead of the grants a hot group's ceiling is logged, and what a crash voids below it. Pure."""

from __future__ import annotations

from imray.core.state import HotGroup, ShardState

_STEP_MIN = 1 << 10
_STEP_BLOCKS = 8
_STEP_S = 1.0
"""A ceiling is logged so many numbers, blocks of each partition, or seconds ahead, whatever is most: seldom enough to
cost little (a record is a commit of the home shard, 2 ms), near enough that a crash voids little. The next one is
logged when half of that is left."""


def next_ceiling(group: HotGroup, head: int, block: int, rate_per_s: float) -> int | None:
    """The ceiling to log now, while half of the way to the old one is left; None: not yet. `block`: the largest that
    was lately asked for; `rate_per_s`: numbers given out a second, where that is known."""
    step = max(_STEP_MIN, _STEP_BLOCKS * group.partitions * block, int(_STEP_S * rate_per_s))
    return head + step if group.ceiling - head < step // 2 else None


def unexplained(state: ShardState) -> list[tuple[int, int, int]]:
    """After recovery, every log fenced and read: (conversation, first, last) of all that was granted and not written.

    They will never be messages. Nothing below the ceiling may be granted again."""
    found = []
    for conv, group in sorted(state.hot.items()):
        head = int(state.conversations.heads[conv])
        found += [(conv, first, last) for first, last in group.holes(max(group.ceiling, head))]
    return found
