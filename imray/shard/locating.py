"""Where the numbers of a conversation are, as a shard's state has it: what a reader outside the shard begins with."""

from __future__ import annotations

from imray.core.replies import Located
from imray.core.state import ShardState


def located(state: ShardState, conv_id: str, low: int, high: int) -> Located:
    """Where numbers low..high of a conversation are, as a state has them."""
    index = state.conversations.index(conv_id)
    head = int(state.conversations.stable[index]) if index >= 0 else 0
    spans: list[tuple[int, int, int]] = []
    if index >= 0 and low <= min(high, head):
        spans = state.frozen_postings.spans(index, low, high) + state.postings.spans(index, low, high)
    intervals = [sealed.interval for sealed in state.sealed]  # type: ignore[attr-defined]
    given = int(state.conversations.heads[index]) if index in state.hot else head
    return Located(given, head, state.log.epoch, state.covered.get(0, 0), intervals, spans)
