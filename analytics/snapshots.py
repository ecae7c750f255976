"""One view of a data folder for a question that takes a while: a version of the table, pinned, and the logs above it.

Owns the beginning anew where merging outran the reader, and what of a folder is sound where its table or a mark is
damaged. Owns no reading of rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from analytics.replaced import STARTS_MAX, was_replaced
from analytics.verified import VerifiedSegment, Verifier
from analytics.verified_runs import VerifiedRuns
from analytics.views import Sources
from imray.core.errors import CorruptError, StorageError, UnavailableError
from imray.core.routing import home_of
from imray.history.pins import Pin
from imray.history.snapshot import RunFile, TableSnapshot
from imray.history.table import Table
from imray.log.marks import LogEnd, MergeMark, marked_logs, newest_mark
from imray.log.store import LocalStore
from imray.settings import Settings

T = TypeVar("T")


class ReplacedError(Exception):
    """What was to be read was merged and deleted meanwhile."""


@dataclass
class Opened:
    """A version of a data folder. The verifier begins where the table ends."""

    verifier: Verifier
    runs: VerifiedRuns
    table: TableSnapshot
    _newest: Callable[[TableSnapshot], TableSnapshot]
    faults: list[CorruptError] = field(default_factory=list)
    """What is wrong with the table and the marks."""
    lost: frozenset[int] = frozenset()
    """Home shards of which rows are in no run that the table names, nor in a log: nothing can be said of them."""

    @property
    def files(self) -> list[RunFile]:
        """The runs' files, in the order of the shards, the runs and their rows."""
        return list(self.table.files.values())

    def raise_if_replaced(self, fault: CorruptError) -> None:
        """ReplacedError where a fault is that a file was merged, and deleted, since; or where the table was damaged
        since. Nothing is merged into a table that does not verify."""
        if self.faults and self.table.version < 0:
            return
        try:
            newest = self._newest(self.table)
        except CorruptError as e:
            raise ReplacedError from e
        if was_replaced(fault.file, self.table, newest):
            raise ReplacedError from fault


@dataclass(frozen=True)
class _Begun(TableSnapshot):
    """Where each log begins, as the table has it, and the marks where they know of more."""

    ends: Mapping[int, LogEnd] = field(default_factory=dict)

    def end(self, log: int) -> LogEnd | None:
        return self.ends.get(log)


def on_snapshot(
    data: Path | str, settings: Settings, work: Callable[[Opened], T], whatever_is_damaged: bool = False
) -> T:
    """What `work` makes of a data folder; it is called again where what it reads was replaced meanwhile.

    InvalidError where there is no data folder; CorruptError as `work` raises it, or where the table or a mark does not
    verify (with `whatever_is_damaged` they are `Opened.faults`, and the work is what is sound); UnavailableError where
    merging outran it again and again."""
    verifier = Verifier(data)
    verifier.manifest()
    runs = VerifiedRuns(data)
    for _ in range(STARTS_MAX):
        opened = _open(verifier, runs)
        if opened.faults and not whatever_is_damaged:
            raise opened.faults[0]
        with _pinned(verifier.store, opened.table, settings) as is_lost, contextlib.suppress(ReplacedError):
            try:
                done = work(opened)
            except CorruptError as e:
                opened.raise_if_replaced(e)
                raise
            if not is_lost():
                return done
    raise UnavailableError("what is read was merged and deleted again and again: try again")


def _open(verifier: Verifier, runs: VerifiedRuns) -> Opened:
    """The newest version, or of a table that does not verify none; the verifier begins after it."""
    table = Table(verifier.store)
    marks, faults = _marks(verifier.store)
    try:
        snapshot = table.snapshot()
    except CorruptError as e:
        # segments up to the marks may be deleted, and which runs have them nobody knows
        faults.append(e)
        snapshot = TableSnapshot()
        lost = marks
    else:
        lost = []
        for mark in marks:  # read before the table was: it has what they say, or has lost commits
            try:
                table.check_mark(snapshot, mark)
            except CorruptError as e:
                faults.append(e)
                lost.append(mark)
    if lost:
        ends = {log: end for log in snapshot.merged if (end := snapshot.end(log)) is not None}
        ends |= {mark.end.log: mark.end for mark in lost}
        verifier.begin_after(_Begun(merged={log: end.segment for log, end in ends.items()}, ends=ends))
    else:
        verifier.begin_after(snapshot)
    homes = frozenset(home_of(mark.end.log)[0] for mark in lost)
    return Opened(verifier, runs, snapshot, table.snapshot, faults, homes)


def _marks(store: LocalStore) -> tuple[list[MergeMark], list[CorruptError]]:
    """The newest mark of each log, and those that do not verify."""
    marks: list[MergeMark] = []
    faults: list[CorruptError] = []
    for log in marked_logs(store):
        try:
            mark = newest_mark(store, log)
        except CorruptError as e:
            faults.append(e)
        else:
            marks += [mark] if mark is not None else []
    return marks, faults


def sources_of(opened: Opened, segments: Sequence[VerifiedSegment], files: Sequence[RunFile] | None = None) -> Sources:
    """What the views are made of: of all runs' files, or of some."""
    files = opened.files if files is None else files
    paths = {file.name: opened.runs.path(file) for file in files}
    notes = [paths[file.name] for file in files if file.first == ""]
    return Sources(segments, list(paths.values()), notes)


@contextlib.contextmanager
def _pinned(store: LocalStore, snapshot: TableSnapshot, settings: Settings) -> Iterator[Callable[[], bool]]:
    """Whether the pin was lost. Nothing was ever merged: there is nothing to pin."""
    with contextlib.ExitStack() as stack:
        pin = None
        if snapshot.version >= 0:
            # a folder that we may not write to is read all the same; what is replaced then is read anew
            with contextlib.suppress(StorageError):
                pin = stack.enter_context(Pin(store, snapshot.version, settings.pin_s_max))
        yield lambda: pin is not None and pin.lost
