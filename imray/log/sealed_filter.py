"""The filter in front of a shard's sealed intervals, made and kept up: `imray.core.dedup.SealedFilter`.

Derived from what is derived: without it every interval's own filter is asked, which is as right and slower.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from imray.core.dedup import SealedFilter
from imray.core.errors import DerivedError, StorageError
from imray.log import sealed
from imray.log.sealed import SealedInterval

log = logging.getLogger("imray.sealed")

_ROOM_MIN = 1 << 16


def grown(before: SealedFilter | None, intervals: Sequence[SealedInterval]) -> SealedFilter | None:
    """A filter over the ids of some intervals: `before`, with what it lacks put in, or a new one where it has no room.

    None: there is nothing to filter, or too much, or an ids file cannot be read now. For one thread at a time: two that
    put ids into one filter would undo each other's bits."""
    total = sum(each.interval.ids for each in intervals)
    if not total or total > sealed.FILTERED_IDS_MAX:
        return None
    lacking = intervals
    found = before
    if found is not None:
        lacking = [each for each in intervals if each not in found.holds]
        if not found.has_room(sum(each.interval.ids for each in lacking)):
            found = None
    try:
        if found is None:
            lacking = intervals
            found = SealedFilter(max(_ROOM_MIN, 2 * total))
        for each in lacking:
            _put(found, each)
    except Exception as e:
        known = isinstance(e, DerivedError | StorageError)
        log.warning("every filter of sealed ids is asked until there is one: %s", e, exc_info=not known)
        return None
    return found


def _put(front: SealedFilter, interval: SealedInterval) -> None:
    """In parts, so that no more than one is in memory; it is held when all are in."""
    last = interval.interval.parts - 1
    for part in range(last):
        front.add(interval.fingerprints(part))
    front.put(interval, interval.fingerprints(last))
