"""Reading the log of the history's table: a base (a checkpoint or nothing), and the commits after it by their names.

Owns how the newest version is found and proved. A name that is missing is the end of the log, unless it was removed:
versions that are multiples of FENCE_EVERY are never removed, and what stands before one of them is removed only when
it is there. So one look at the next of them tells an end from a log that went on long ago.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from imray.core.errors import CorruptError, DerivedError, StorageError
from imray.history.actions import TableCommit, decode_commit
from imray.history.changes import apply_commit
from imray.history.layout import DELTA_LOG, commit_name
from imray.history.snapshot import TableSnapshot
from imray.history.table_checkpoint import checkpoint_name, decode_checkpoint
from imray.log.store import Store

FENCE_EVERY = 256
"""Versions: one commit in so many stays for ever (2 KB), for who slept since before those around it were removed."""
_TRIES = 10
"""Each time somebody made two checkpoints and removed what was being read."""

_COMMIT = re.compile(re.escape(DELTA_LOG) + r"(\d{20})\.json")
_CHECKPOINT = re.compile(re.escape(DELTA_LOG) + r"(\d{20})\.checkpoint\.parquet")


@dataclass(frozen=True)
class TableLogNames:
    """What a listing of the table's log shows; names of others (Spark's, delta-rs') are left out."""

    commits: list[int]
    """Versions, ascending."""
    checkpoints: list[int]

    @classmethod
    def listed(cls, store: Store) -> TableLogNames:
        """As they are now."""
        names = store.list(DELTA_LOG)
        commits = [int(found[1]) for name in names if (found := _COMMIT.fullmatch(name))]
        checkpoints = [int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))]
        return cls(commits, checkpoints)

    @property
    def newest(self) -> int:
        """The highest version; -1: there is none."""
        return max([*self.commits, *self.checkpoints], default=-1)

    def has_all_of(self, earlier: TableLogNames) -> bool:
        """Whether nothing was removed since an earlier listing, nor since before it: that takes a new checkpoint."""
        return {*self.commits} >= {*earlier.commits} and self.checkpoints == earlier.checkpoints


class _MissingError(Exception):
    """What was listed is not there, or a version is not, though a higher one is: removed since, or lost."""

    def __init__(self, name: str, version: int) -> None:
        super().__init__(name, version)
        self.name = name
        self.version = version


def fence_from(version: int) -> int:
    """The lowest version from `version` on that is never removed."""
    return -(-version // FENCE_EVERY) * FENCE_EVERY


def removable_commits(commits: list[int], kept_from: int) -> list[int]:
    """Which commits may be removed where those from `kept_from` on are kept: the fence after them is there, too."""
    there = set(commits)
    return [v for v in commits if v < fence_from(v) <= kept_from and fence_from(v) in there]


def read_commit(store: Store, version: int) -> TableCommit | None:
    """A commit, verified; None where there is none. CorruptError with file and place otherwise."""
    name = commit_name(version)
    data = store.get(name)
    return None if data is None else decode_commit(data, name, version)


def read_checkpoint(store: Store, version: int) -> TableSnapshot:
    """A checkpoint, verified. DerivedError where there is none that does."""
    name = checkpoint_name(version)
    data = store.get(name)
    if data is None:
        raise DerivedError(name, "it is missing")
    return decode_checkpoint(data, name, version)


def follow(
    store: Store, state: TableSnapshot, visit: Callable[[TableCommit], None] = lambda _: None
) -> tuple[TableSnapshot, bool]:
    """The last version that can be read from `state` on by names, and whether it is the newest: if not, the name after
    it was removed long ago. `visit` gets each commit. CorruptError for one that does not verify or does not chain."""
    while True:
        commit = read_commit(store, state.version + 1)
        if commit is None:
            break
        state = apply_commit(state, commit)
        visit(commit)
    fence = fence_from(state.version + 1)
    return state, fence == state.version + 1 or not store.exists(commit_name(fence))


def read_whole(store: Store) -> tuple[TableSnapshot, dict[str, str]]:
    """The newest version, read from the newest checkpoint that verifies; and which checkpoints did not, and why.

    CorruptError with file and place where the log does not verify or lacks a version."""
    names = TableLogNames.listed(store)
    for _ in range(_TRIES):
        damaged: dict[str, str] = {}
        try:
            return _read_listed(store, names, damaged), damaged
        except _MissingError as e:
            listed = TableLogNames.listed(store)
            if e.version <= names.newest and listed.has_all_of(names):
                above = f"it is missing, though version {names.newest} is there"
                raise CorruptError(
                    e.name, "the whole file", "; ".join([above, *map(": ".join, damaged.items())])
                ) from e
            names = listed
    raise StorageError("the history's table: its log is replaced faster than it can be read")


def _read_listed(store: Store, names: TableLogNames, damaged: dict[str, str]) -> TableSnapshot:
    for version in (*reversed(names.checkpoints), -1):
        try:
            base = read_checkpoint(store, version) if version >= 0 else TableSnapshot()
            _check_base(store, base)
        except DerivedError as e:
            if not store.exists(e.file):
                raise _MissingError(e.file, version) from e
            damaged[e.file] = e.check
            continue
        state, is_newest = follow(store, base)
        if not is_newest or state.version < names.newest:
            raise _MissingError(commit_name(state.version + 1), state.version + 1)
        return state
    raise AssertionError("nothing, which the first commit follows, is the last base")


def _check_base(store: Store, base: TableSnapshot) -> None:
    """DerivedError for a checkpoint that the commit after it does not follow."""
    if base.version < 0:
        return
    following = read_commit(store, base.version + 1)
    if following is not None and following.previous != base.digest:
        raise DerivedError(checkpoint_name(base.version), "the commit after it follows another version than it says")
