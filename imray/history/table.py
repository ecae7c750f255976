"""The history's table: Delta commits of our own, put if absent, each with a digest and its predecessor's.

Owns who may add a version, Delta checkpoints, and the removal of old commits. Owns no runs
(`imray.history.run_file`) and no marks (`imray.log.marks`).

A commit is durable when `Table.commit` returns. Two mergers by accident do no harm: a commit is put under the next
version's name after a look at what it builds on; who loses the name reads the winner's commit, and goes on where that
concerns other runs and other logs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from imray.core.errors import CorruptError, DerivedError
from imray.history.actions import TableChange, TableCommit, encode_commit
from imray.history.changes import TableConflictError as TableConflictError  # who calls `commit` meets it
from imray.history.changes import apply_commit, check_change, find_conflict
from imray.history.layout import DELTA_LOG, commit_name
from imray.history.snapshot import RunFile, TableSnapshot
from imray.history.table_checkpoint import checkpoint_name, encode_checkpoint
from imray.history.table_reading import (
    TableLogNames,
    fence_from,
    follow,
    read_checkpoint,
    read_commit,
    read_whole,
    removable_commits,
)
from imray.log.marks import MergeMark, mark_name, marked_logs, newest_mark
from imray.log.store import Store

_COMMIT_TRIES = 100
"""Each lost to a commit of somebody else: with so many mergers something is wrong."""
_CHECKPOINTS_KEPT = 2
_SAYS_SOMETHING_ELSE = "it says something else than the commits"


class Table:
    """The table of a data folder. Holds no state but what it found damaged: safe for threads and processes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.damaged: dict[str, str] = {}
        """Checkpoints that were passed over, by name, and why."""

    def snapshot(self, known: TableSnapshot | None = None) -> TableSnapshot:
        """The newest version; of what is `known` only what came after is read, by names. CorruptError with file and
        place where the table's log does not verify; InvalidError where a newer imray wrote it.

        Who deletes anything on its word calls `make_durable` first: the writer of a commit may have died before its
        name was."""
        if known is not None and known.version >= 0:
            state, is_newest = self._follow(known)
            if is_newest:
                return state
        return self._read_whole()

    def snapshot_with_marks(self, known: TableSnapshot) -> TableSnapshot:
        """As `snapshot`; CorruptError also where some log's mark knows of more: the table has lost its newest commits,
        or all, and what they named would be taken for nobody's."""
        state = self.snapshot(known)
        self._check_marks(state)
        return state

    def make_durable(self) -> None:
        """All commits that can be read are durable when this returns. StorageError where the store refuses."""
        self._store.sync(DELTA_LOG)

    def commit(
        self,
        base: TableSnapshot,
        add: Sequence[RunFile],
        remove: Sequence[str],
        moves: Mapping[int, tuple[int, int]],
        operation: str,
        now_ms: int,
    ) -> TableSnapshot:
        """Add files of runs, remove by name those that they replace, and move logs (log -> last merged segment before
        and after), all or nothing. Returns a version that has it; it is durable.

        `base` is the snapshot that was read before the first of these files was put: `fence_runs` shuts out older
        ones. TableConflictError: void, or it cannot be told: start anew. StorageError: unknown, start anew as well.
        InvalidError: what is asked for would lose rows or have them twice."""
        return self._commit(base, TableChange(tuple(add), tuple(remove), dict(moves), operation, now_ms))

    def fence_runs(self, base: TableSnapshot, shard: int, now_ms: int) -> TableSnapshot:
        """Shut out all commits of runs of a shard that were begun before this. Files of its folder that were listed
        before, and that the snapshot which this returns does not have, belong to nobody: they may be deleted.

        Without it a merger could sleep between its runs and its commit, and then commit files that are deleted."""
        return self._commit(base, TableChange((), (), {}, "FENCE", now_ms, fence=shard))

    def _commit(self, base: TableSnapshot, change: TableChange) -> TableSnapshot:
        state = base
        seen_all = True
        for _ in range(_COMMIT_TRIES):
            commits: list[TableCommit] = []
            state, is_newest = self._follow(state, commits.append)
            if is_newest and any(change.is_made_by(commit) for commit in commits):
                # an earlier try landed and its answer was lost: its name may not be durable
                self.make_durable()
                return state
            if not is_newest:
                state = self._read_whole()
                seen_all = False
            why = find_conflict(state, base, change) or self._missing_file(change)
            self._check_marks(state)
            if why is not None:
                detail = f"{change.operation} on version {state.version} of the history's table: {why}"
                raise TableConflictError(detail, seen_all)
            if change.fence is None:
                check_change(state, change)
            data, commit = encode_commit(change, state)
            if self._store.put_if_absent(commit_name(commit.version), [data]):
                self._check_landed(commit)
                return apply_commit(state, commit)
        raise TableConflictError(f"{change.operation}: {_COMMIT_TRIES} times somebody else committed first", seen_all)

    def _follow(
        self, state: TableSnapshot, visit: Callable[[TableCommit], None] = lambda _: None
    ) -> tuple[TableSnapshot, bool]:
        try:
            return follow(self._store, state, visit)
        except CorruptError:
            # maybe of those who slept, in names that were removed: what counts is what can be read from a checkpoint
            return state, False

    def _read_whole(self) -> TableSnapshot:
        state, self.damaged = read_whole(self._store)
        return state

    def _missing_file(self, change: TableChange) -> str | None:
        gone = (file.name for file in change.add if not self._store.exists(file.name))
        return next((f"{name} is not there: it was removed before it was committed" for name in gone), None)

    def _check_marks(self, state: TableSnapshot) -> None:
        """Before every commit, too: one on top of a table that has lost its newest ones would take their names."""
        for log in marked_logs(self._store):
            mark = newest_mark(self._store, log)
            if mark is not None and not _has(state, mark):
                self.check_mark(state, mark)

    def _check_landed(self, commit: TableCommit) -> None:
        """A look after every commit: it slept, maybe, and its name had been another's who was removed since."""
        fence = fence_from(commit.version)
        if fence != commit.version and self._store.exists(commit_name(fence)):
            raise TableConflictError(
                f"version {commit.version} of the history's table is long past: whether this commit counts is unknown",
                is_void=False,
            )
        following = read_commit(self._store, commit.version + 1)
        if following is not None and following.previous != commit.digest:
            raise CorruptError(
                commit_name(commit.version), "the whole file", "the commit after it follows another one, which is lost"
            )

    def checkpoint(self, snapshot: TableSnapshot) -> bool:
        """Write a Delta checkpoint, reread and verify it. False: it does not hold what it should, which is noted in
        `damaged`; readers pass it over, and that of a later version serves. StorageError where the store refuses."""
        self._store.put_if_absent(checkpoint_name(snapshot.version), encode_checkpoint(snapshot))
        there = self._verified_checkpoint(snapshot.version)
        if there is not None and there != snapshot:
            self.damaged[checkpoint_name(snapshot.version)] = _SAYS_SOMETHING_ELSE
        return there == snapshot

    def clean(self) -> int:
        """Remove commits and checkpoints below the second newest checkpoint that verifies: how many files. Commits that
        are fences stay, and so do those above the last fence below that checkpoint."""
        self.make_durable()
        names = TableLogNames.listed(self._store)
        verified: list[int] = []
        for version in reversed(names.checkpoints):
            if len(verified) < _CHECKPOINTS_KEPT and self._verified_checkpoint(version) is not None:
                verified.append(version)
        if len(verified) < _CHECKPOINTS_KEPT:
            return 0
        kept_from = verified[-1]
        old = [commit_name(v) for v in removable_commits(names.commits, kept_from)]
        old += [checkpoint_name(v) for v in names.checkpoints if v < kept_from]
        for name in old:
            self._store.delete(name)
            self.damaged.pop(name, None)
        return len(old)

    def verify(self) -> TableSnapshot:
        """Read every byte of the table's log: the newest version. CorruptError with file and place; checkpoints that
        do not verify, or say something else than the commits, are noted in `damaged`."""
        newest = self._read_whole()
        names = TableLogNames.listed(self._store)
        state = TableSnapshot()
        for version in sorted({*names.commits, *names.checkpoints}):
            commit = read_commit(self._store, version)
            if commit is not None and version == state.version + 1:
                state = apply_commit(state, commit)
            elif commit is not None and names.checkpoints and state.version >= names.checkpoints[0]:
                raise CorruptError(
                    commit_name(state.version + 1),
                    "the whole file",
                    f"it is missing, though version {version} is there",
                )
            if version not in names.checkpoints:
                continue
            base = self._verified_checkpoint(version)
            if base is not None and base != state and (state.version == version or not _stands_for(base, commit)):
                self.damaged[checkpoint_name(version)] = _SAYS_SOMETHING_ELSE
            elif base is not None:
                state = base
        return max(newest, state, key=lambda s: s.version)

    def _verified_checkpoint(self, version: int) -> TableSnapshot | None:
        try:
            return read_checkpoint(self._store, version)
        except DerivedError as e:
            self.damaged[e.file] = e.check
            return None

    def check_mark(self, snapshot: TableSnapshot, mark: MergeMark) -> None:
        """CorruptError where a log's mark knows of more than the table: commits were lost, and with them rows whose
        segments may be deleted. A snapshot that is older than the mark is no matter: the table is looked at again."""
        end = mark.end
        for state in (snapshot, self.snapshot(snapshot)):
            if _has(state, mark):
                return
        raise CorruptError(
            mark_name(end.log, end.segment),
            "version",
            f"segments up to {end.segment} of log {end.log} are merged in version {mark.version} of the history's "
            f"table, which is at version {state.version} and has them up to {state.merged.get(end.log, 0)}",
        )


def _has(state: TableSnapshot, mark: MergeMark) -> bool:
    return mark.version <= state.version and mark.end.segment <= state.merged.get(mark.end.log, 0)


def _stands_for(checkpoint: TableSnapshot, commit: TableCommit | None) -> bool:
    return commit is None or checkpoint.digest == commit.digest
