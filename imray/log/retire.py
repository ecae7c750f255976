"""Derived files that nobody needs any more, and the only place that deletes them.

The rule: a file is deleted only by who retired it, after a checkpoint without it is durable, and while it is still the
writer. A successor looks for a newer checkpoint after its fence (`imray.shard.recovery`), so it either fences before
the look here, and nothing is deleted, or it reads a checkpoint that does not name what is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from imray.core.checkpoint_chain import ChainLink
from imray.core.errors import DerivedError
from imray.core.intervals import sealed_prefix
from imray.log.checkpoint import checkpoints, whole_checkpoint_meta
from imray.log.checkpoint_file import other_name
from imray.log.checkpoint_meta import CheckpointMeta
from imray.log.sealed import SealedInterval
from imray.log.store import Store

_KEEP = 2
"""How many checkpoints stay, with all that they build on: the newest, and the one that serves where that is damaged."""


class Retired:
    """The derived files of one writer that wait for their deletion. Not thread-safe."""

    def __init__(self, store: Store, shard: int, is_writer: Callable[[], bool]) -> None:
        """Begin with what earlier writers left; `is_writer` looks whether the log has no other writer by now."""
        self._store = store
        self._shard = shard
        self._is_writer = is_writer
        self._names = set(store.list(sealed_prefix(shard)))
        """Files that were there when this writer began: none of them is a successor's."""

    def add(self, intervals: Iterable[SealedInterval]) -> None:
        """The list of intervals does not have these any more."""
        for sealed in intervals:
            self._names.update(sealed.interval.names)

    def collect(self, in_use: Iterable[SealedInterval]) -> int:
        """Delete older checkpoints and what no newer one names: how many files. Call it when this writer's own
        checkpoint is durable, and no other is being written.

        The two newest that verify, with all that they build on and the twins of that, stay; so does what is newer: it
        is damaged, and its place is taken by the next one. Where none verifies, nothing goes."""
        kept: list[CheckpointMeta] = []
        needed = {file for sealed in in_use for file in sealed.interval.names}
        others: list[str] = []
        verified: set[ChainLink] = set()
        for name in reversed(checkpoints(self._store, self._shard)):
            meta = self._serving(name, verified) if len(kept) < _KEEP else None
            if meta is not None:
                kept.append(meta)
                needed.update(file for interval in meta.intervals for file in interval.names)
            elif kept:
                others.append(name)
        if not kept:
            return 0
        built_on = {link.name for meta in kept for link in meta.chain}
        old = [name for name in others if name not in built_on and other_name(name) not in built_on]
        doomed = sorted(self._names - needed)
        if not (old or doomed) or not self._is_writer():
            return 0
        for name in [*old, *doomed]:
            self._store.delete(name)
        self._names.difference_update(doomed)
        return len(old) + len(doomed)

    def _serving(self, name: str, verified: set[ChainLink]) -> CheckpointMeta | None:
        """What a checkpoint says, where it verifies and all that it builds on does."""
        try:
            return whole_checkpoint_meta(self._store, name, verified)
        except DerivedError:
            return None
