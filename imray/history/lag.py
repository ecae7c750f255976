"""How many segments of each log are not merged yet, and not deleted yet: counted in the folders."""

from __future__ import annotations

from imray.core.errors import CorruptError
from imray.core.routing import PARTITIONS_MAX, log_of
from imray.core.status import LogLag
from imray.history.snapshot import TableSnapshot
from imray.log.segment import segment_number, segment_prefix
from imray.log.store import Store

_WAL = "wal/"


def logs_of(store: Store, shard: int) -> list[int]:
    """The logs of a shard and of its partitions that have a folder."""
    own = {segment_prefix(log).rstrip("/"): log for log in (log_of(shard, slot) for slot in range(PARTITIONS_MAX + 1))}
    return sorted(own[name] for name in (found.rstrip("/") for found in store.list(_WAL)) if name in own)


def lag_of(store: Store, log: int, merged: int, fences: int = 0) -> LogLag:
    """The lag of one log of which segments up to `merged` are in the history; `fences`: how many of those are known to
    be fences, which stay. Lists the folder: seconds where it is large."""
    numbers = list(filter(None, map(_number, store.list(segment_prefix(log)))))
    unmerged = sum(number > merged for number in numbers)
    return LogLag(log, max(unmerged, len(numbers) - fences), unmerged)


def lags_of(store: Store, shard: int, snapshot: TableSnapshot) -> list[LogLag]:
    """The lag of each log of a shard."""
    return [lag_of(store, log, snapshot.merged.get(log, 0)) for log in logs_of(store, shard)]


def _number(name: str) -> int:
    try:
        return segment_number(name)
    except CorruptError:
        return 0  # a foreign file: who reads the log says so
