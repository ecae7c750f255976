"""Merging by hand, step by step, for tests of readers: what the merger does, when the test says so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from analytics.findings import AuditReport
from analytics.verified import Verifier
from imray.history.cut import cut_of
from imray.history.merging import merge_runs, merge_segments
from imray.history.snapshot import TableSnapshot
from imray.history.table import Table
from imray.log.marks import LogEnd, MergeMark, put_mark
from imray.log.segment import open_segment, segment_name, segment_number, segment_prefix
from imray.settings import Settings
from tests.support.analytics_logs import FastStore

SMALL = Settings(run_group_bytes=256, run_file_bytes=2048)
"""Many groups and files of few rows."""


def snapshot_of(root: Path) -> TableSnapshot:
    """The newest version of the table."""
    return Table(FastStore(root)).snapshot()


def merge(root: Path, shard: int = 0, cut: dict[int, LogEnd] | None = None, settings: Settings = SMALL) -> bool:
    """Merge a shard's segments up to its newest checkpoint, or up to a given cut; False: there is nothing to merge."""
    store = FastStore(root)
    table = Table(store)
    base = table.snapshot()
    ends = cut_of(store, shard) if cut is None else cut
    ends = {log: end for log, end in ends.items() if end.segment > base.merged.get(log, 0)}
    files, moved = merge_segments(store, shard, {log: base.end(log) for log in ends}, ends, settings)
    if not moved:
        return False
    moves = {log: (base.merged.get(log, 0), end.segment) for log, end in moved.items()}
    table.commit(base, files, [], moves, "MERGE", int(time.time() * 1000))
    return True


def compact(root: Path, shard: int = 0, first: int = 0, delete: bool = True, settings: Settings = SMALL) -> bool:
    """Make one run of a shard's runs from `first` on, and delete those; False: there are no two."""
    store = FastStore(root)
    table = Table(store)
    base = table.snapshot()
    runs = list(base.runs.get(shard, ()))[first:]
    if len(runs) < 2:
        return False
    files = merge_runs(store, shard, runs, settings)
    old = [file.name for run in runs for file in run.files]
    table.commit(base, files, old, {}, "OPTIMIZE", int(time.time() * 1000))
    for name in old if delete else ():
        store.delete(name)
    return True


def delete_merged(root: Path, shard: int = 0) -> int:
    """Mark what is merged, and delete all of it but fences: how many segments."""
    store = FastStore(root)
    snapshot = snapshot_of(root)
    deleted = 0
    for log in snapshot.merged:
        end = snapshot.end(log)
        assert end is not None
        put_mark(store, MergeMark(end, snapshot.version))
        for name in store.list(segment_prefix(log)):
            number = segment_number(name)
            data = store.get(segment_name(log, number))
            if number <= end.segment and data is not None and open_segment(data, name).meta.rows:
                store.delete(name)
                deleted += 1
    return deleted


def end_of_log(root: Path, log: int = 0) -> dict[int, LogEnd]:
    """A cut at a log's last segment, whatever no checkpoint says of it."""
    verifier = Verifier(root)
    found = [verifier.segment(log, number) for number in range(1, verifier.last(log) + 1)]
    last = found[-1]
    epochs = {segment.meta.epoch: segment.meta.segment for segment in reversed(found)}
    starts = sorted((segment, epoch) for epoch, segment in epochs.items())
    end = LogEnd(log, last.meta.segment, last.meta.epoch, last.digest.hex(), starts, last.meta.sequencer)
    return {log: end}


def found_by(report: AuditReport) -> dict[str, list[dict[str, Any]]]:
    """The violations of a report: the rows of each."""
    return {f.name: [dict(zip(f.columns, row, strict=True)) for row in f.rows] for f in report.findings if f.violated}
