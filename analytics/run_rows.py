"""Rows of a conversation in runs: which of them to look into for some numbers, and what is remembered of each.

Owns the order in which runs are asked, and a bounded memory of conversations: of one with few rows in a run all of
them, since its row group is mostly other conversations'. Owns no reading of files (`imray.history.run_groups`).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analytics.cache import Cache
from analytics.page_rows import ROWS_SCHEMA, ConversationRows
from imray.core.pages import SEQ_MAX
from imray.history.layout import HISTORY_SCHEMA
from imray.history.run_groups import GroupReader, decode
from imray.history.run_index import RunIndex
from imray.history.snapshot import Run, RunFile
from imray.log.schema import RecordKind
from imray.log.store import Store

_FEW_GROUPS = 2
"""That hold a conversation in a file: its rows are remembered. Where they are more, these are."""
_INDEX_COST = 2
"""Memory of an index, in bytes of its footer."""
_COLUMNS = ["conv_id", *ROWS_SCHEMA.names]


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
        self._reader = GroupReader(store)
        self._cache: Cache[tuple[str, str | int | None], RunIndex | pa.Table | _Known] = Cache(cache_bytes)
        """Of a file's name: its index, of a conversation what is known of it there, of a row group its rows."""

    @property
    def bytes_read(self) -> int:
        """Bytes that the store gave so far."""
        return self._reader.bytes_read

    def read(self, runs: Sequence[Run], conv_id: str, asked: tuple[int, int], head: int) -> Iterator[pa.Table]:
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
                waiting = late
                late = []
            at = waiting.pop(0)
            known = [self._look(file, conv_id) for file in files[at]]
            for file, one in zip(files[at], known, strict=True):
                if one.first <= high and (one.last >= low or one.rows is None or one.rows.has_voids):
                    yield self._rows(file, one, conv_id, low, high)
            there = [one for one in known if one.first <= one.last]
            if there:
                is_below = max(one.last for one in there) < low
                is_above = min(one.first for one in there) > high
                late += [i for i in waiting if (is_below and i < at) or (is_above and i > at)]
                waiting = [i for i in waiting if i not in late]

    def _rows(self, file: RunFile, known: _Known, conv_id: str, low: int, high: int) -> pa.Table:
        if known.rows is not None:
            return known.rows.between(low, high)
        index = self._index(file)
        groups = index.groups_of(conv_id, low, high)
        found = []
        for group in [*index.open_at(groups.start), *groups]:
            rows = ConversationRows.of(_rows_of(self._group(index, group), conv_id))
            found.append(rows.between(low, high))
        return pa.concat_tables([ROWS_SCHEMA.empty_table(), *found])

    def _look(self, file: RunFile, conv_id: str) -> _Known:
        key = (file.name, conv_id)
        known = self._cache.get(key)
        if not isinstance(known, _Known):
            known = self._first_look(file, conv_id)
            self._cache.put(key, known, known.rows.table.nbytes if known.rows is not None else 0)
        return known

    def _first_look(self, file: RunFile, conv_id: str) -> _Known:
        index = self._index(file)
        groups = index.groups_of(conv_id, 1, SEQ_MAX)
        if len(groups) > _FEW_GROUPS:
            first, last = (index.note.groups[group] for group in (groups[0], groups[-1]))
            return _Known(
                None,
                first.first[1] if first.first[0] == conv_id else 1,
                last.last[1] if last.last[0] == conv_id else SEQ_MAX,
            )
        table = self._decoded(index, groups) if len(groups) else HISTORY_SCHEMA.empty_table()
        rows = _rows_of(table, conv_id)
        # a copy, or it would hold its group
        rows = rows.take(pa.array(np.arange(rows.num_rows)))
        seq = rows["conv_seq"].to_numpy()
        return _Known(ConversationRows.of(rows), *((int(seq[0]), int(seq[-1])) if len(seq) else (1, 0)))

    def _group(self, index: RunIndex, group: int) -> pa.Table:
        key = (index.name, group)
        table = self._cache.get(key)
        if not isinstance(table, pa.Table):
            table = self._decoded(index, range(group, group + 1))
            self._cache.put(key, table, table.nbytes)
        return table

    def _decoded(self, index: RunIndex, groups: range) -> pa.Table:
        return decode(index, groups, self._reader.groups(index, groups), _COLUMNS)

    def _index(self, file: RunFile) -> RunIndex:
        index = self._cache.get((file.name, None))
        if not isinstance(index, RunIndex):
            index = self._reader.index(file)
            self._cache.put((file.name, None), index, _INDEX_COST * index.tail_bytes)
        return index


def _rows_of(table: pa.Table, conv_id: str) -> pa.Table:
    """The messages and voids of a conversation in some row groups, as a page has them."""
    names = table["conv_id"]
    rows = range(table.num_rows)
    first = bisect.bisect_left(rows, conv_id, key=lambda row: names[row].as_py())
    end = bisect.bisect_right(rows, conv_id, lo=first, key=lambda row: names[row].as_py())
    own = table.slice(first, end - first)
    # casting a column costs 15 us, whether there is anything to do or not
    columns = [own[f.name] if own[f.name].type == f.type else own[f.name].cast(f.type) for f in ROWS_SCHEMA]
    found = pa.Table.from_arrays(columns, schema=ROWS_SCHEMA)
    kind = found["kind"].to_numpy()
    return found.take(pa.array(np.flatnonzero(kind <= RecordKind.VOID))) if (kind > RecordKind.VOID).any() else found


def _by_distance(sizes: Sequence[int], low: int, high: int, head: int) -> list[int]:
    """Runs in the order of how far they should be from some numbers, were a conversation written at an even pace."""
    ends = np.cumsum(sizes)
    if not len(ends):
        return []
    middle = (low + min(high, head)) / 2 / max(head, 1) * int(ends[-1])
    distances: npt.NDArray[np.float64] = np.maximum(np.maximum(ends - sizes - middle, middle - ends), 0)
    return [int(i) for i in np.argsort(distances, kind="stable")]
