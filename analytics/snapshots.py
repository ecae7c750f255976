"""One view of a data folder for a question that takes a while: a version of the table, pinned, and the logs above it.

Owns the beginning anew where merging outran the reader. Owns no reading of rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from analytics.replaced import STARTS_MAX, was_replaced
from analytics.verified import VerifiedSegment, Verifier
from analytics.verified_runs import VerifiedRuns
from analytics.views import Sources
from imray.core.errors import CorruptError, StorageError, UnavailableError
from imray.history.pins import Pin
from imray.history.snapshot import RunFile, TableSnapshot
from imray.history.table import Table
from imray.log.marks import MergeMark, marked_logs, newest_mark
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

    @property
    def files(self) -> list[RunFile]:
        """The runs' files, in the order of the shards, the runs and their rows."""
        return list(self.table.files.values())

    def raise_if_replaced(self, fault: CorruptError) -> None:
        """ReplacedError where a fault is that a file was merged, and deleted, since."""
        if was_replaced(fault.file, self.table, self._newest(self.table)):
            raise ReplacedError from fault


def on_snapshot(data: Path | str, settings: Settings, work: Callable[[Opened], T]) -> T:
    """What `work` makes of a data folder; it is called again where what it reads was replaced meanwhile.

    InvalidError where there is no data folder; CorruptError as `work` raises it, or where the table does not verify;
    UnavailableError where merging outran it again and again."""
    verifier = Verifier(data)
    verifier.manifest()
    runs = VerifiedRuns(data)
    table = Table(verifier.store)
    for _ in range(STARTS_MAX):
        marks = [m for log in marked_logs(verifier.store) if (m := newest_mark(verifier.store, log)) is not None]
        snapshot = table.snapshot()
        _check_marks(table, snapshot, marks)
        verifier.begin_after(snapshot)
        opened = Opened(verifier, runs, snapshot, table.snapshot)
        with _pinned(verifier.store, snapshot, settings) as is_lost, contextlib.suppress(ReplacedError):
            try:
                done = work(opened)
            except CorruptError as e:
                opened.raise_if_replaced(e)
                raise
            if not is_lost():
                return done
    raise UnavailableError("what is read was merged and deleted again and again: try again")


def sources_of(opened: Opened, segments: Sequence[VerifiedSegment]) -> Sources:
    """What the views are made of."""
    paths = {file.name: opened.runs.path(file) for file in opened.files}
    notes = [paths[file.name] for file in opened.files if file.first == ""]
    return Sources(segments, list(paths.values()), notes)


def _check_marks(table: Table, snapshot: TableSnapshot, marks: list[MergeMark]) -> None:
    """Marks that were read before the table was: it has what they say, or has lost commits."""
    for mark in marks:
        table.check_mark(snapshot, mark)


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
