"""When a reader must begin anew: what it was to read was merged, and deleted, since it read the table."""

from __future__ import annotations

from imray.history.snapshot import TableSnapshot
from imray.log.segment import segment_number, segment_prefix

STARTS_MAX = 5
"""Merging outruns a reader once in a while, not again and again."""


def was_replaced(name: str, before: TableSnapshot, now: TableSnapshot) -> bool:
    """Whether a file that one snapshot needs may be gone because of what was merged since."""
    if now.version == before.version:
        return False
    if name in before.files:
        return name not in now.files
    log = next((log for log in now.merged if name.startswith(segment_prefix(log))), None)
    return log is not None and before.merged.get(log, 0) < segment_number(name) <= now.merged[log]
