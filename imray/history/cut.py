"""Up to where a shard's logs may be merged, and up to where their merged segments may be deleted.

Both are said by checkpoints: at a checkpoint everything that was granted before is settled in the shard's own log and
in its partitions', so nothing below it changes any more, and it contains every row up to its `stable_seq`.
"""

from __future__ import annotations

from collections.abc import Callable

from imray.core.checkpoint_chain import ChainLink
from imray.core.errors import DerivedError, StorageError
from imray.core.routing import log_of
from imray.log.checkpoint import whole_checkpoint_meta
from imray.log.checkpoint_file import checkpoints
from imray.log.checkpoint_meta import CheckpointMeta
from imray.log.marks import LogEnd
from imray.log.store import Store

_NEEDED = 2
"""Checkpoints that cover what is deleted: the newest, and the one that serves where the newest is damaged."""
_INTERVAL_VERSION_MIN = 2
"""From this version on an interval answers a retry without the segments that it covers."""
_LISTINGS_MAX = 10
AGAIN_S = 60.0
"""So long one that does not verify is not read again: a person restores it, or a new one takes its place."""


class Cuts:
    """What the newest checkpoints of a shard say. Each is read and verified once, unless it is asked for again."""

    def __init__(self, store: Store, shard: int, monotonic_s: Callable[[], float] = lambda: 0.0) -> None:
        self._store = store
        self._shard = shard
        self._monotonic_s = monotonic_s
        self._known: dict[str, CheckpointMeta] = {}
        """By name."""
        self._damaged: dict[str, float] = {}
        """By name: until when it is not read again."""
        self._verified: set[ChainLink] = set()
        """Files that checkpoints build on."""

    def cut(self) -> dict[int, LogEnd]:
        """By log: where the newest checkpoint that verifies has it; empty where there is none."""
        newest = self._newest(1)
        return ends_of(newest[0]) if newest else {}

    def deletable(self, again: bool = False) -> dict[int, int] | None:
        """By log: the last segment that the two newest checkpoints which verify both cover. None where there are no
        two, or ids of theirs are answered from segments still. `again`: every file is read now, whatever is known."""
        if again:
            self._known.clear()
            self._verified.clear()
        newest = self._newest(_NEEDED)
        if len(newest) < _NEEDED or not all(map(_answers_without_log, newest)):
            return None
        first, second = (ends_of(meta) for meta in newest)
        return {log: min(end.segment, second[log].segment) for log, end in first.items() if log in second}

    def _newest(self, count: int) -> list[CheckpointMeta]:
        """The newest ones that verify, newest first."""
        for _ in range(_LISTINGS_MAX):
            names = checkpoints(self._store, self._shard)
            found: list[CheckpointMeta] = []
            for name in reversed(names):
                if len(found) == count:
                    break
                meta = self._read(name)
                if meta is not None:
                    found.append(meta)
            if len(found) < min(count, len(names)) and checkpoints(self._store, self._shard) != names:
                continue  # what was listed was replaced before it was read
            self._known = {name: meta for name, meta in self._known.items() if name in names}
            self._damaged = {name: until_s for name, until_s in self._damaged.items() if name in names}
            self._verified = {link for meta in self._known.values() for link in meta.chain}
            return found
        raise StorageError(f"checkpoints of shard {self._shard}: they are replaced faster than they can be read")

    def _read(self, name: str) -> CheckpointMeta | None:
        if name in self._known:
            return self._known[name]
        until_s = self._damaged.get(name)
        if until_s is not None and self._monotonic_s() < until_s:
            return None
        try:
            meta = whole_checkpoint_meta(self._store, name, self._verified)
        except DerivedError:
            meta = None
        if meta is None or meta.shard != self._shard:
            self._damaged[name] = self._monotonic_s() + AGAIN_S
            return None
        self._damaged.pop(name, None)
        self._known[name] = meta
        return meta


def cut_of(store: Store, shard: int) -> dict[int, LogEnd]:
    """As `Cuts.cut`."""
    return Cuts(store, shard).cut()


def deletable_up_to(store: Store, shard: int) -> dict[int, int] | None:
    """As `Cuts.deletable`."""
    return Cuts(store, shard).deletable()


def ends_of(meta: CheckpointMeta) -> dict[int, LogEnd]:
    """By log: where a checkpoint has it."""
    own = LogEnd(
        log=meta.shard,
        segment=meta.segment,
        epoch=meta.epoch,
        digest=meta.digest,
        epoch_starts=list(meta.epoch_starts),
        window=meta.window,
        following=meta.following,
    )
    ends = {meta.shard: own}
    for p in meta.partitions:
        log = log_of(meta.shard, p.slot)
        ends[log] = LogEnd(log, p.segment, p.epoch, p.digest, list(p.epoch_starts), p.sequencer, p.window, p.following)
    return ends


def _answers_without_log(meta: CheckpointMeta) -> bool:
    return all(interval.version >= _INTERVAL_VERSION_MIN for interval in meta.intervals)
