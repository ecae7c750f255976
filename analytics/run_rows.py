"""Rows of a conversation in runs: which of them to look into for some numbers, and what is remembered of each.

Owns the order in which runs are asked, and a bounded memory of conversations: of one with few rows in a run all of
them, since its row group is mostly other conversations'. Owns no reading of files (`imray.history.run_reader`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics.cache import Cache
from analytics.page_rows import ROWS_SCHEMA, ConversationRows
from imray.core.pages import SEQ_MAX
from imray.history.run_reader import RunReader
from imray.history.snapshot import Run, RunFile
from imray.log.schema import RecordKind
from imray.log.store import Store

_FEW_ROWS = 256
"""Of a conversation in a file: all of them are remembered. More are read where they lie, in row groups of their own."""


@dataclass(frozen=True)
class _Known:
    """What is known of a conversation in a file of a run."""

    rows: ConversationRows | None
    """All of it; None: too many."""
    first: int
    last: int
    """The numbers that it has there, about; `first` above `last`: none."""


class RunRows:
    """Reads a conversation's rows from runs. Not thread-safe."""

    def __init__(self, store: Store, cache_bytes: int) -> None:
        # footers take most of it: half a megabyte for each file of a run
        self._reader = RunReader(store, cache_bytes // 4 * 3)
        self._known: Cache[tuple[str, str], _Known] = Cache(cache_bytes // 4)

    @property
    def bytes_read(self) -> int:
        """Bytes that the store gave so far."""
        return self._reader.bytes_read

    def read(
        self, runs: Sequence[Run], conv_id: str, asked: tuple[int, int], head: int, descending: bool
    ) -> Iterator[pa.Table]:
        """The rows (ROWS_SCHEMA) of a conversation for the numbers `asked`, run by run, until the caller has enough:
        first from the runs that should have them, since its numbers ascend from run to run, for the most part."""
        low, high = asked
        files = [[f for f in run.files if f.first <= conv_id <= f.last] for run in runs]
        waiting = [
            i for i in _by_distance([sum(f.rows for f in run.files) for run in runs], low, high, head) if files[i]
        ]
        late: list[int] = []
        while waiting or late:
            if not waiting:
                waiting, late = late, []
            at = waiting.pop(0)
            known = [self._look(file, conv_id) for file in files[at]]
            for file, one in zip(files[at], known, strict=True):
                if one.first <= high and (one.last >= low or one.rows is None or one.rows.has_voids):
                    yield self._rows(file, one, conv_id, low, high, descending)
            there = [one for one in known if one.first <= one.last]
            if there:
                is_below = max(one.last for one in there) < low
                is_above = min(one.first for one in there) > high
                late += [i for i in waiting if (is_below and i < at) or (is_above and i > at)]
                waiting = [i for i in waiting if i not in late]

    def _rows(self, file: RunFile, known: _Known, conv_id: str, low: int, high: int, descending: bool) -> pa.Table:
        if known.rows is not None:
            return known.rows.between(low, high)
        return _page_rows(self._reader.rows(file, conv_id, low, high, None, descending))

    def _look(self, file: RunFile, conv_id: str) -> _Known:
        key = (file.name, conv_id)
        known = self._known.get(key)
        if known is None:
            known, size = self._first_look(file, conv_id)
            self._known.put(key, known, size)
        return known

    def _first_look(self, file: RunFile, conv_id: str) -> tuple[_Known, int]:
        table = _page_rows(self._reader.rows(file, conv_id, 1, SEQ_MAX, _FEW_ROWS, False))
        seq = table["conv_seq"].to_numpy()
        if not len(seq):
            return _Known(ConversationRows.of(table), 1, 0), 0
        is_message = table["kind"].to_numpy() == RecordKind.MESSAGE
        if np.count_nonzero(is_message) < _FEW_ROWS:
            rows = ConversationRows.of(table.take(pa.array(np.arange(len(seq)))))  # a copy, or it would hold its group
            return _Known(rows, int(seq[0]), int(seq[-1])), rows.table.nbytes
        return _Known(None, int(seq[0]), SEQ_MAX), 0


def _page_rows(table: pa.Table) -> pa.Table:
    """Rows of a run as a page has them."""
    return table.select(ROWS_SCHEMA.names).cast(ROWS_SCHEMA)


def _by_distance(sizes: Sequence[int], low: int, high: int, head: int) -> list[int]:
    """Runs in the order of how far they should be from some numbers, were a conversation written at an even pace."""
    ends = np.cumsum(sizes)
    if not len(ends):
        return []
    middle = (low + min(high, head)) / 2 / max(head, 1) * int(ends[-1])
    distances: npt.NDArray[np.float64] = np.maximum(np.maximum(ends - sizes - middle, middle - ends), 0)
    return [int(i) for i in np.argsort(distances, kind="stable")]
