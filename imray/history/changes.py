"""Which commit may follow which version of the history's table, and what the version after it consists of.

Pure: owns the rules that keep each row in the table once. Owns no bytes (`imray.history.actions`) and no store
(`imray.history.table`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from imray.core.errors import CorruptError, ImrayError, InvalidError
from imray.core.routing import home_of
from imray.history.actions import TableChange, TableCommit
from imray.history.layout import commit_name, run_prefix
from imray.history.snapshot import Covered, Run, RunFile, TableSnapshot

_PLAIN_NAME = re.compile(r"[A-Za-z0-9=._/-]+")
"""What a URI may hold as it is: Delta's paths are URIs."""


class TableConflictError(ImrayError):
    """Somebody committed what makes this commit void. Start anew from a new snapshot, with new runs.

    `is_void`: certainly. Otherwise it may have landed long ago, and its files may have been replaced since: leave them
    to who deletes orphans."""

    def __init__(self, detail: str, is_void: bool = True) -> None:
        super().__init__(detail)
        self.is_void = is_void


def apply_commit(state: TableSnapshot, commit: TableCommit) -> TableSnapshot:
    """The version that a verified commit makes. CorruptError where it cannot follow `state`."""
    name = commit_name(commit.version)
    if commit.version != state.version + 1 or commit.previous != state.digest:
        raise CorruptError(
            name, "line 1", f"its predecessor is {commit.previous or 'none'}, version {state.version} is {state.digest}"
        )
    if (commit.meta is not None) != (commit.version == 0):
        raise CorruptError(name, "metaData", "the first commit has one, and no other")
    live = _live(state, {*_shards_of(commit.add), *_shards_of_names(state, commit.remove)})
    for file in commit.add:
        if file.name in live:
            raise CorruptError(name, "add", f"{file.name} is in the table already")
    for removed in commit.remove:
        if removed not in live:
            raise CorruptError(name, "remove", f"{removed} is not in the table")
    for log, segment in commit.merged.items():
        if segment <= state.merged.get(log, 0):
            raise CorruptError(name, "txn", f"log {log} was merged up to {state.merged[log]}, and now up to {segment}")
    return _after(state, commit)


def check_change(state: TableSnapshot, change: TableChange) -> None:
    """InvalidError where `change` would not keep each segment in the table once: a mistake of who asks for it.

    Holds for a version on which `find_conflict` found none."""
    if not change.add:
        raise InvalidError("a commit without a file: there is nothing to merge")
    for run in runs_of(change.add):
        _check_run(run)
    names = [file.name for file in change.add]
    if len(set(names)) < len(names) or len(set(change.remove)) < len(change.remove):
        raise InvalidError("a commit names a file twice")
    for log, (before, after) in change.moves.items():
        if not 0 <= before < after:
            raise InvalidError(f"log {log} cannot be merged from {before} to {after}")
    shards = {file.shard for file in change.add}
    removed = set(change.remove)
    for shard in {*shards, *_shards_of_names(state, change.remove), *(home_of(log)[0] for log in change.moves)}:
        before_runs = state.runs.get(shard, ())
        for run in before_runs:
            if 0 < sum(file.name in removed for file in run.files) < len(run.files):
                raise InvalidError(f"run {run.files[0].run} must be removed with all of its files, or not at all")
        after_runs = _replace_runs(before_runs, [f for f in change.add if f.shard == shard], removed)
        moves = {log: move for log, move in change.moves.items() if home_of(log)[0] == shard}
        if not moves and _rows(before_runs) != _rows(after_runs):
            raise InvalidError(f"shard {shard} would have {_rows(after_runs)} rows instead of {_rows(before_runs)}")
        _check_covered(before_runs, after_runs, moves)


def find_conflict(state: TableSnapshot, base: TableSnapshot, change: TableChange) -> str | None:
    """Why `change`, which was made from `base`, cannot be committed on top of `state`; None: it can."""
    for log, (before, _) in change.moves.items():
        merged = state.merged.get(log, 0)
        if merged != before:
            return f"log {log} is merged up to segment {merged}, this merge began after {before}"
    live = state.files
    for name in change.remove:
        if name not in live:
            return f"{name} is not in the table any more"
    for file in change.add:
        if file.name in live:
            return f"{file.name} is in the table already"
        if state.fences.get(file.shard, 0) != base.fences.get(file.shard, 0):
            return f"unfinished runs of shard {file.shard} were shut out"
    return None


def _after(state: TableSnapshot, commit: TableCommit) -> TableSnapshot:
    removed = set(commit.remove)
    runs = {shard: tuple(of_shard) for shard, of_shard in state.runs.items()}
    for shard in {*_shards_of(commit.add), *_shards_of_names(state, commit.remove)}:
        runs[shard] = _replace_runs(runs.get(shard, ()), [f for f in commit.add if f.shard == shard], removed)
    committed_ms = {name: ms for name, ms in state.committed_ms.items() if name not in removed}
    committed_ms |= {file.name: commit.now_ms for file in commit.add}
    after = replace(
        state,
        version=commit.version,
        digest=commit.digest,
        runs={shard: of_shard for shard, of_shard in runs.items() if of_shard},
        merged={**state.merged, **commit.merged},
        fences={**state.fences, **commit.fences},
        committed_ms=committed_ms,
    )
    if commit.meta is None:
        return after
    return replace(after, table_id=commit.meta.id, created_ms=commit.meta.createdTime)


def _replace_runs(runs: Sequence[Run], add: Sequence[RunFile], removed: set[str]) -> tuple[Run, ...]:
    """Runs in the order of their segments: a new one stands where the first of those stood that it replaces."""
    kept: list[Run] = []
    begin: int | None = None
    for run in runs:
        files = tuple(file for file in run.files if file.name not in removed)
        if len(files) < len(run.files) and begin is None:
            begin = len(kept)
        if files:
            kept.append(Run(files))
    at = len(kept) if begin is None else begin
    return (*kept[:at], *runs_of(add), *kept[at:])


def runs_of(files: Iterable[RunFile]) -> list[Run]:
    """Files as runs, in the order in which they are given."""
    by_run: dict[str, list[RunFile]] = {}
    for file in files:
        by_run.setdefault(file.run, []).append(file)
    return [Run(tuple(of_run)) for of_run in by_run.values()]


def _check_run(run: Run) -> None:
    head = run.files[0]
    for file in run.files:
        if not file.name.startswith(run_prefix(file.shard)) or not _PLAIN_NAME.fullmatch(file.name):
            raise InvalidError(f"{file.name} is no name of a run of shard {file.shard}")
        if (file.shard, file.tier, file.covers, file.ends) != (head.shard, head.tier, head.covers, head.ends):
            raise InvalidError(f"{file.name} and {head.name} say different things of run {head.run}")
    for file, following in pairwise(run.files):
        if file.last > following.first:
            raise InvalidError(f"{following.name} must come before {file.name}: a run is sorted")
    last: dict[int, int] = {}
    for covered in head.covers:
        if home_of(covered.log)[0] != head.shard or not last.get(covered.log, 0) < covered.first <= covered.last:
            raise InvalidError(f"run {head.run} of shard {head.shard} cannot cover {covered}")
        last[covered.log] = covered.last
    if last != {end.log: end.segment for end in head.ends} or not last:
        raise InvalidError(f"run {head.run} covers logs up to {last}, its ends say otherwise")


def _check_covered(before: Sequence[Run], after: Sequence[Run], moves: dict[int, tuple[int, int]]) -> None:
    """What was covered still is, once; and beyond it only what the moves say."""
    old = _covered(before)
    new = _covered(after)
    for log in {*old, *new, *moves}:
        ranges = new.get(log, [])
        for one, two in pairwise(ranges):
            if two.first <= one.last:
                raise InvalidError(f"segments {two.first} to {one.last} of log {log} would be in two runs")
        merged_ranges = _coalesced(ranges)
        for had in old.get(log, []):
            if not any(r.first <= had.first and had.last <= r.last for r in merged_ranges):
                raise InvalidError(f"segments {had.first} to {had.last} of log {log} would be in no run any more")
        merged = max((r.last for r in old.get(log, [])), default=0)
        _, end = moves.get(log, (merged, merged))
        if max((r.last for r in ranges), default=0) != end:
            raise InvalidError(f"log {log} would be merged up to {end}, and its runs hold {ranges}")


def _covered(runs: Sequence[Run]) -> dict[int, list[Covered]]:
    by_log: dict[int, list[Covered]] = {}
    for run in runs:
        for covered in run.covers:
            by_log.setdefault(covered.log, []).append(covered)
    return {log: sorted(ranges) for log, ranges in by_log.items()}


def _coalesced(ranges: Sequence[Covered]) -> list[Covered]:
    joined: list[Covered] = []
    for r in ranges:
        if joined and joined[-1].last + 1 == r.first:
            joined[-1] = Covered(r.log, joined[-1].first, r.last)
        else:
            joined.append(r)
    return joined


def _rows(runs: Sequence[Run]) -> int:
    return sum(file.rows for run in runs for file in run.files)


def _live(state: TableSnapshot, shards: set[int]) -> set[str]:
    return {file.name for shard in shards for run in state.runs.get(shard, ()) for file in run.files}


def _shards_of(files: Iterable[RunFile]) -> set[int]:
    return {file.shard for file in files}


def _shards_of_names(state: TableSnapshot, names: Sequence[str]) -> set[int]:
    """The shards whose folders these files are in."""
    folders = {name.rpartition("/")[0] + "/" for name in names}
    return {shard for shard in state.runs if run_prefix(shard) in folders}
