"""The files of which a shard's checkpoints are made, verified. Owns which are looked at; not how one is verified."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from analytics.checks import check_checkpoint
from imray.core.errors import CorruptError
from imray.log.checkpoint_file import checkpoints
from imray.log.checkpoint_meta import CheckpointMeta
from imray.log.store import Store

_LOOKED_AT = 2
"""The newest, and the one that serves where that is damaged: what was merged is deleted on the word of both."""


class _CheckedFile(Protocol):
    @property
    def digest(self) -> bytes: ...

    @property
    def meta(self) -> CheckpointMeta: ...


Check = Callable[[memoryview, str], tuple[bytes, CheckpointMeta]]


class CheckpointFiles:
    """The checkpoints of a folder's shards. `verified`: verifies one file; CorruptError where it is not sound."""

    def __init__(self, store: Store, verified: Callable[[str, Check], _CheckedFile]) -> None:
        self._store = store
        self._verified = verified

    def newest(self, home: int) -> CheckpointMeta | None:
        """What a shard's newest checkpoint says; None where there is none. CorruptError where it is damaged."""
        while names := checkpoints(self._store, home):
            try:
                return self._verified(names[-1], partial(check_checkpoint, home)).meta
            except CorruptError:
                if self._store.exists(names[-1]):
                    raise  # else newer ones took its place meanwhile
        return None

    def faults(self, home: int) -> list[CorruptError]:
        """What is wrong with a shard's two newest checkpoints and with what they build on, even where a twin serves."""
        names = checkpoints(self._store, home)
        while True:
            found = self._faults_of(home, names[-_LOOKED_AT:])
            there = checkpoints(self._store, home)
            if not found or there[-_LOOKED_AT:] == names[-_LOOKED_AT:]:
                return found
            names = there  # newer ones took their place meanwhile, and what only they built on is removed

    def _faults_of(self, home: int, names: list[str]) -> list[CorruptError]:
        check = partial(check_checkpoint, home)
        faults: dict[str, CorruptError] = {}
        links = set()
        for name in reversed(names):
            try:
                links.update(self._verified(name, check).meta.chain)
            except CorruptError as e:
                faults[name] = e
        for link in sorted(links, key=lambda link: (link.name, link.digest)):
            if link.name in faults:
                continue
            try:
                if self._verified(link.name, check).digest.hex() != link.digest:
                    text = "it is another file than what builds on it names"
                    faults[link.name] = CorruptError(link.name, "the whole file", text)
            except CorruptError as e:
                faults[link.name] = e
        return [faults[name] for name in sorted(faults)]
