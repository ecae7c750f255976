"""Which conversations are plainly in order, found by array arithmetic over sorted rows: the rest is asked in SQL.

A conversation is plainly in order if it has messages only (and records of members and cursors), numbered 1, 2, 3 …
without a hole, in the order of its home shard's log, each with an id of its own, a sender and a body. No question of
`analytics.queries` about conversations has a row for such a one; all others' rows are handed on. Ranges of
conversations are read one after the other, so memory does not grow with the history.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imray.core.routing import shard_of
from imray.history.layout import US
from imray.history.run_groups import GroupReader
from imray.history.snapshot import RunFile
from imray.log.schema import RecordKind
from imray.log.store import LocalStore

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RANGE_ROWS = 1_000_000
"""Rows that are in memory at once, about: some 300 bytes each."""
_COLUMNS = [
    "conv_id",
    "conv_seq",
    "kind",
    "client_msg_id",
    "sender",
    "server_ts",
    "body",
    "log",
    "segment",
    "row",
    "epoch",
]
_TEXT = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("conv_id", _TEXT), ("conv_seq", pa.int64()), ("kind", pa.int8()), ("client_msg_id", pa.binary()),
        ("sender", _TEXT), ("server_ts", US), ("body", pa.binary()), ("log", pa.int32()), ("segment", pa.int64()),
        ("row", pa.int32()), ("epoch", pa.int64()),
    ]
)  # fmt: skip
_PAYLOAD = ["sender", "body"]
"""Half of the time that reading takes: read only where a file is not known to have them in every message."""
_LIGHT = [name for name in _SCHEMA.names if name not in _PAYLOAD]
_FIRST_NAME = "\x01"
"""Below all names of conversations, and above what rows that stand for segments have."""
_ID_BYTES = 16
_SEQ_BITS = 40
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


@dataclass
class ScreenSums:
    """Of each segment: how many rows there are, when the first and the last were committed, and of which epochs."""

    _logs: dict[int, tuple[int, I64, I64, I64]] = field(default_factory=dict)
    """By log: the first segment, and by segment from there: rows, and of both values the lowest and the highest."""

    def add(self, log: I32, segment: I64, values: I64) -> None:
        """Rows, as columns. `values`: (2, rows), their times and their epochs."""
        if (log == log[0]).all():
            self._add(int(log[0]), segment, values)
            return
        for number in np.unique(log).tolist():
            of = log == number
            self._add(number, segment[of], values[:, of])

    def _add(self, log: int, segment: I64, values: I64) -> None:
        low = int(segment.min())
        high = int(segment.max())
        if log in self._logs:
            first, rows, *_ = self._logs[log]
            low = min(low, first)
            high = max(high, first + len(rows) - 1)
        first, rows, lowest, highest = self._grown(log, low, high)
        at = segment - first
        rows += np.bincount(at, minlength=len(rows))
        for which, value in enumerate(values):
            np.minimum.at(lowest[which], at, value)
            np.maximum.at(highest[which], at, value)

    def _grown(self, log: int, low: int, high: int) -> tuple[int, I64, I64, I64]:
        known = self._logs.get(log)
        size = high - low + 1
        if known is not None and known[0] == low and len(known[1]) == size:
            return known
        limits = np.iinfo(np.int64)
        grown = (np.zeros(size, np.int64), np.full((2, size), limits.max), np.full((2, size), limits.min))
        if known is not None:
            first, *columns = known
            for new, old in zip(grown, columns, strict=True):
                new[..., first - low : first - low + old.shape[-1]] = old
        self._logs[log] = (low, *grown)
        return self._logs[log]

    def table(self) -> pa.Table:
        """The rows of `segment_sums`, of segments with rows."""
        parts = []
        for log, (first, rows, lowest, highest) in self._logs.items():
            at = np.flatnonzero(rows)
            limits = [limit[at] for pair in zip(lowest, highest, strict=True) for limit in pair]
            columns = (np.full(len(at), log), at + first, rows[at], *limits)
            parts.append(pa.table([pa.array(c.astype(np.int64)) for c in columns], names=_SUMS.names).cast(_SUMS))
        return pa.concat_tables([_SUMS.empty_table(), *parts])


_SUMS = pa.schema(
    [
        *((name, pa.int64()) for name in ("shard", "segment", "rows_there")), ("first_ts", US), ("last_ts", US),
        ("first_epoch", pa.int64()), ("last_epoch", pa.int64()),
    ]
)  # fmt: skip


def screen_shard(part: ShardRows, sums: ScreenSums) -> Iterator[pa.Table]:
    """The rows (columns as `log_rows`, some left out) of a shard's conversations that are not plainly in order.

    All rows are added to `sums`."""
    own = [_RunGroups.open(part.data, file, file.name in part.lacking) for file in part.files]
    tail = _like_runs(part.tail)
    edges = _edges([group for run in own for group in run.groups], tail)
    for low, high in zip([_FIRST_NAME, *edges], [*edges, None], strict=True):
        tables = [*(run.read(low, high) for run in own), _in_range(tail, low, high)]
        suspects = sorted({name for table in tables for name in _without_payload(table)})
        rows = pa.concat_tables([table.select(_LIGHT) for table in tables])
        if rows.num_rows:
            suspects = sorted({*suspects, *_screen(rows, part, sums)})
        if suspects:
            found = [*(run.rows_of(suspects) for run in own), _of(tail, suspects)]
            yield _as_log_rows(pa.concat_tables(found))


@dataclass(frozen=True)
class ShardRows:
    """Where a shard's rows are."""

    data: str
    shards: int
    """Of the whole folder."""
    home: int
    files: Sequence[RunFile]
    """Verified."""
    lacking: Collection[str]
    """Those (their names) in which a message may lack its sender or its body."""
    tail: pa.Table
    """Rows of `log_rows` that are not merged, sorted by conv_id."""


@dataclass(frozen=True)
class _RunGroups:
    """A verified file of a run, and its row groups: first and last conversation, and rows."""

    path: str
    groups: list[tuple[str, str, int]]
    columns: list[str]

    @classmethod
    def open(cls, data: str, file: RunFile, is_lacking: bool) -> _RunGroups:
        index = GroupReader(LocalStore(data)).index(file)
        groups = [(g.first[0], g.last[0], g.rows) for g in index.note.groups]
        return cls(f"{data}/{file.name}", groups, _SCHEMA.names if is_lacking else _LIGHT)

    def read(self, low: str, high: str | None) -> pa.Table:
        """The rows of low <= conv_id < high; without senders and bodies where all messages have them."""
        which = [i for i, (first, last, _) in enumerate(self.groups) if last >= low and (high is None or first < high)]
        return _in_range(self._read(which, self.columns), low, high)

    def rows_of(self, names: Sequence[str]) -> pa.Table:
        """All rows of some conversations, ascending."""
        which = []
        for i, (first, last, _) in enumerate(self.groups):
            at = bisect.bisect_left(names, first)
            if at < len(names) and names[at] <= last:
                which.append(i)
        return _of(self._read(which, _SCHEMA.names), names)

    def _read(self, groups: Sequence[int], columns: list[str]) -> pa.Table:
        schema = pa.schema([_SCHEMA.field(name) for name in columns])
        if not groups:
            return schema.empty_table()
        file = pq.ParquetFile(self.path, read_dictionary=["conv_id", "sender"])
        return file.read_row_groups(groups, columns=columns, use_threads=False).select(columns).cast(schema)


def _edges(groups: Sequence[tuple[str, str, int]], tail: pa.Table) -> list[str]:
    """Names of conversations, ascending: so many rows stand between two of them."""
    step = max(1, RANGE_ROWS // 16)
    inner = [(tail["conv_id"][at].as_py(), min(step, tail.num_rows - at)) for at in range(0, tail.num_rows, step)]
    edges: list[str] = []
    rows = 0
    for first, count in sorted([*((first, rows) for first, _, rows in groups), *inner]):
        if rows >= RANGE_ROWS and first and (not edges or edges[-1] < first):
            edges.append(first)
            rows = 0
        rows += count
    return edges


def _in_range(table: pa.Table, low: str | None, high: str | None) -> pa.Table:
    """The rows of low <= conv_id < high, of sorted ones."""
    names = table["conv_id"]
    rows = range(table.num_rows)
    first = 0 if low is None else bisect.bisect_left(rows, low, key=lambda row: names[row].as_py())
    end = len(rows) if high is None else bisect.bisect_left(rows, high, lo=first, key=lambda row: names[row].as_py())
    return table.slice(first, end - first)


def _of(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows of some conversations."""
    return table.filter(pc.is_in(table["conv_id"], pa.array(names, pa.string())))


def _without_payload(table: pa.Table) -> set[str]:
    """Conversations with a message without a sender or a body, as far as they were read."""
    found: set[str] = set()
    for name in set(_PAYLOAD).intersection(table.column_names):
        if table[name].null_count:
            lacking = pc.and_(table[name].is_null(), pc.equal(table["kind"], RecordKind.MESSAGE))
            found.update(table["conv_id"].filter(lacking).to_pylist())
    return found


def _like_runs(tail: pa.Table) -> pa.Table:
    columns = {name: tail["shard" if name == "log" else name] for name in _SCHEMA.names}
    for name in ("conv_id", "sender"):
        columns[name] = columns[name].dictionary_encode()
    return pa.table(columns).cast(_SCHEMA)


def _screen(rows: pa.Table, part: ShardRows, sums: ScreenSums) -> list[str]:
    """The conversations that are not plainly in order."""
    conv = rows["conv_id"].unify_dictionaries().combine_chunks()
    names = conv.dictionary.to_pylist()
    code = conv.indices.to_numpy()
    kind, log, segment, seq, row = (rows[name].to_numpy() for name in ("kind", "log", "segment", "conv_seq", "row"))
    sums.add(log, segment, np.stack([rows[name].cast(pa.int64()).to_numpy() for name in ("server_ts", "epoch")]))
    suspect = np.array([shard_of(name, part.shards) != part.home for name in names], np.bool_)
    suspect[code[_odd_records(kind, seq, log != part.home)]] = True
    message = kind == RecordKind.MESSAGE
    which = slice(None) if message.all() else np.flatnonzero(message)
    suspect[_out_of_order(code[which], seq[which], segment[which], row[which])] = True
    suspect[_with_repeated_ids(rows["client_msg_id"].combine_chunks(), code, which)] = True
    there = np.bincount(code, minlength=len(names)) > 0
    return [names[at] for at in np.flatnonzero(suspect & there)]


def _odd_records(kind: npt.NDArray[np.int8], seq: I64, elsewhere: Bools) -> Bools:
    """All but messages, records of members and records of cursors, in the home shard's log, with possible numbers."""
    plain = (kind == RecordKind.MESSAGE) | (kind == RecordKind.MEMBERS) | (kind == RecordKind.CURSORS)
    odd: Bools = ~plain | elsewhere | (seq < (kind == RecordKind.MESSAGE))
    return odd


def _out_of_order(code: I32, seq: I64, segment: I64, row: I32) -> I32:
    """The conversations (their codes) of messages that are not the next one, or stand before the one before them."""
    if not len(code):
        return code
    key = code.astype(np.int64) << _SEQ_BITS | seq
    # of several sorted runs one after the other: merging them is nearly linear
    order = np.lexsort((seq, code)) if (seq >> _SEQ_BITS).any() else np.argsort(key, kind="stable")
    code = code[order]
    seq = seq[order]
    segment = segment[order]
    row = row[order]
    same = code[1:] == code[:-1]
    wrong = np.empty(len(code), np.bool_)
    wrong[0] = seq[0] != 1
    wrong[1:] = seq[1:] != np.where(same, seq[:-1] + 1, 1)
    wrong[1:] |= same & ((segment[1:] < segment[:-1]) | ((segment[1:] == segment[:-1]) & (row[1:] <= row[:-1])))
    found: I32 = code[wrong]
    return found


def _with_repeated_ids(ids: pa.Array, code: I32, which: slice | I64) -> I32:
    """The conversations (their codes) of messages that have an id twice, or one that is no id. Of 64 bits of a hash: an
    accident hands on a conversation that is in order."""
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1]
    is_id = np.diff(offsets)[which] == _ID_BYTES
    begins = offsets[:-1][which][is_id]
    odd: I32 = code[which][~is_id]
    of = code[which][is_id].astype(np.uint64)
    if not len(begins):
        return odd
    data = np.frombuffer(ids.buffers()[2], np.uint8)
    if begins[-1] - begins[0] == _ID_BYTES * (len(begins) - 1):
        words = data[begins[0] : begins[-1] + _ID_BYTES].reshape(-1, _ID_BYTES).view(np.uint64)
    else:
        words = data[begins[:, None] + np.arange(_ID_BYTES)].view(np.uint64)
    prints = (words[:, 0] ^ (of * _MIX[0])) * _MIX[1]
    prints ^= prints >> np.uint64(29)
    prints = (prints ^ words[:, 1]) * _MIX[2]
    prints ^= prints >> np.uint64(32)
    ordered = np.sort(prints)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    again = of[np.isin(prints, repeated)] if len(repeated) else of[:0]
    return np.concatenate([odd, again.astype(np.int32)])


def _as_log_rows(rows: pa.Table) -> pa.Table:
    """Columns as `log_rows` has them, without bodies of messages."""
    is_message = pc.equal(rows["kind"], RecordKind.MESSAGE)
    return pa.table(
        {
            "shard": rows["log"].cast(pa.int64()),
            "segment": rows["segment"],
            "row": rows["row"].cast(pa.int64()),
            "epoch": rows["epoch"],
            "conv_id": rows["conv_id"].cast(pa.string()),
            "conv_seq": rows["conv_seq"],
            "kind": rows["kind"],
            "client_msg_id": rows["client_msg_id"],
            "sender": rows["sender"].cast(pa.string()),
            "server_ts": rows["server_ts"],
            "bytes": pc.binary_length(rows["body"]).cast(pa.int64()),
            "body": pc.if_else(is_message, pa.scalar(None, pa.binary()), rows["body"]),
        }
    )
