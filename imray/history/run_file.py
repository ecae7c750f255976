"""Writing runs: Parquet files of sorted rows, in row groups that are found, read and verified one by one.

Owns the encoding and the cut into groups and files. Owns no order (`imray.history.sorting`) and no list of the files
that count (`imray.history.table`): a file that no commit names is nothing.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from imray.core.errors import CorruptError, StorageError
from imray.history.layout import FORMAT_VERSION, HISTORY_SCHEMA, run_name
from imray.history.run_index import META_KEY, GroupNote, Key, RunNote, key_at
from imray.history.segment_rows import CODED_SCHEMA, TEXT_COLUMNS
from imray.history.snapshot import Covered, RunFile
from imray.kernels.arrays import I32, I64
from imray.kernels.row_order import compact_codes
from imray.log.marks import LogEnd
from imray.log.posix import aligned_memory
from imray.log.schema import RecordKind, VoidRecord, dictionary_rows
from imray.log.store import Store
from imray.settings import Settings

_DICTIONARY = list(TEXT_COLUMNS)
_ENCODING = {
    "conv_seq": "DELTA_BINARY_PACKED",
    "kind": "DELTA_BINARY_PACKED",
    "client_msg_id": "DELTA_LENGTH_BYTE_ARRAY",
    "client_ts": "DELTA_BINARY_PACKED",
    "server_ts": "DELTA_BINARY_PACKED",
    "body": "DELTA_LENGTH_BYTE_ARRAY",
    "log": "DELTA_BINARY_PACKED",
    "segment": "DELTA_BINARY_PACKED",
    "row": "DELTA_BINARY_PACKED",
    "epoch": "DELTA_BINARY_PACKED",
}
_COMPRESSION = dict.fromkeys(HISTORY_SCHEMA.names, "zstd")
_ZSTD_LEVEL = 1
_STATISTICS = ["conv_id", "conv_seq"]
_WRITE_BATCH_ROWS = 64 * 1024
_ROW_BYTES = 120
"""Of a row in memory, without its body."""
_GROUP_FOOTER_BYTES = 4096
"""The most that a group takes of the footer, and of the index beside its names."""
_NO_NAMES = pa.array([], pa.string())
_SLACK_BYTES = 256 * 1024
_FIRST_RATIO = 0.4
"""Encoded to memory bytes, before the first group is written."""
_RATIO_MIN = 0.02
"""Rows that compress better make smaller groups than asked for: they are in memory, too, when one of them is read."""


def write_run(
    store: Store,
    shard: int,
    tier: int,
    tables: Iterable[pa.Table],
    covers: Sequence[Covered],
    ends: Sequence[LogEnd],
    settings: Settings,
) -> list[RunFile]:
    """Make the rows of `tables` (HISTORY_SCHEMA, texts plain or as dictionaries; sorted overall) durable as one run of
    files of about `run_file_bytes`: its files, in order. None is part of the history before a commit names it.

    StorageError where the store refuses: what was written stays as orphans."""
    maker = _RunMaker(store, shard, tier, tuple(covers), tuple(ends), settings)
    for table in tables:
        maker.add(table)
    return maker.finish()


class _RunMaker:
    """Cuts rows into groups and groups into files."""

    def __init__(
        self, store: Store, shard: int, tier: int, covers: tuple[Covered, ...], ends: tuple[LogEnd, ...], s: Settings
    ) -> None:
        self._store = store
        self._shard = shard
        self._tier = tier
        self._covers = covers
        self._ends = ends
        self._settings = s
        self._run = secrets.token_hex(8)
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._files: list[RunFile] = []
        self._file: _FileMaker | None = None
        self._ratio = _FIRST_RATIO
        self._compactor = _Compactor()
        self._memory = memoryview(b"")

    def add(self, table: pa.Table) -> None:
        """More rows."""
        if table.num_rows:
            self._waiting.append(table)
            self._waiting_bytes += table.nbytes
        if self._waiting_bytes * self._ratio >= self._settings.run_group_bytes:
            self._write_waiting()

    def _write_waiting(self) -> None:
        # few rows wait for those that follow, so that no group is small
        table = self._waiting[0] if len(self._waiting) == 1 else _joined(self._waiting)
        self._waiting = []
        self._waiting_bytes = 0
        table = table.combine_chunks()
        sizes = _row_sizes(table)
        edges = _edges(sizes, self._settings.run_group_bytes / self._ratio)
        for first, end in itertools.pairwise(edges):
            raw = int(sizes[first:end].sum())
            group = self._compactor.compact(table.slice(first, end - first))
            file = self._with_room(group.nbytes + raw)
            written = file.add(group, raw)
            self._ratio = max(_RATIO_MIN, 0.8 * self._ratio + 0.2 * written / raw)
            if file.size >= self._settings.run_file_bytes:
                self._close()

    def finish(self) -> list[RunFile]:
        """All files of the run."""
        if self._waiting:
            self._write_waiting()
        self._close()
        return self._files

    def _with_room(self, size: int) -> _FileMaker:
        if self._file is not None and self._file.room < size:
            self._close()
        if self._file is None:
            needed = max(self._settings.run_file_bytes + self._settings.run_file_bytes // 4, size) + _SLACK_BYTES
            if len(self._memory) < needed:
                self._memory = aligned_memory(needed)
            self._file = _FileMaker(self._memory)
        return self._file

    def _close(self) -> None:
        file = self._file
        if file is None:
            return
        self._file = None
        note = RunNote(FORMAT_VERSION, self._shard, self._run, len(self._files), file.groups, file.voids.groups())
        data, digest = file.close(note)
        name = run_name(self._shard, self._run, note.part, digest)
        if not self._store.put_if_absent(name, [data]):
            raise StorageError(f"put {name}: the name of a run is taken, though it is random")
        self._files.append(
            RunFile(
                name=name,
                shard=self._shard,
                run=self._run,
                tier=self._tier,
                bytes=len(data),
                rows=sum(g.rows for g in note.groups),
                first=note.groups[0].first[0],
                last=note.groups[-1].last[0],
                covers=self._covers,
                ends=self._ends,
            )
        )


class _FileMaker:
    """One file, group after group, in memory that is there before."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._sink = pa.FixedSizeBufferWriter(pa.py_buffer(memory))
        self._writer = pq.ParquetWriter(
            self._sink,
            CODED_SCHEMA,
            use_dictionary=_DICTIONARY,
            column_encoding=_ENCODING,
            compression=_COMPRESSION,
            compression_level={name: _ZSTD_LEVEL for name, way in _COMPRESSION.items() if way == "zstd"},
            write_statistics=_STATISTICS,
            write_batch_size=_WRITE_BATCH_ROWS,
            store_schema=False,
        )
        self.groups: list[GroupNote] = []
        self.voids = _OpenVoids()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.groups[-1].end if self.groups else 0

    @property
    def room(self) -> int:
        """Bytes that a group may take at most."""
        return len(self._memory) - self.size - (len(self.groups) + 1) * _GROUP_FOOTER_BYTES - _SLACK_BYTES // 2

    def add(self, group: pa.Table, memory: int) -> int:
        """One row group, with its bytes in memory: those in the file."""
        start = self.size
        self._writer.write_table(group, row_group_size=group.num_rows)
        end: int = self._sink.tell()
        kind = group.column("kind").to_numpy()
        last = key_at(group, group.num_rows - 1)
        before = self.voids.groups()
        self.voids.add(len(self.groups), group, kind, last)
        self.groups.append(
            GroupNote(
                end=end,
                digest=xxhash.xxh3_128_hexdigest(self._memory[start:end]),
                rows=group.num_rows,
                memory=memory,
                first=key_at(group, 0),
                last=last,
                shown=int(np.count_nonzero((kind == RecordKind.MESSAGE) | (kind == RecordKind.VOID))),
                open=before,
            )
        )
        return end - start

    def close(self, note: RunNote) -> tuple[memoryview, str]:
        """The whole file, and its footer's digest."""
        self._writer.add_key_value_metadata({META_KEY: msgspec.json.encode(note)})
        self._writer.close()
        size = self._sink.tell()
        return self._memory[:size], xxhash.xxh3_128_hexdigest(self._memory[note.groups[-1].end : size])


@dataclass
class _OpenVoids:
    """The voids of the conversation that was written last, which reach beyond its last number so far."""

    conv_id: str = ""
    found: list[tuple[int, int]] = field(default_factory=list)
    """Group and last number."""

    def groups(self) -> list[int]:
        """The groups that hold them, ascending."""
        return sorted({group for group, _ in self.found})

    def add(self, number: int, group: pa.Table, kind: np.ndarray, last: Key) -> None:
        """One more group, whose last row has the key `last`."""
        conv_id, seq = last[:2]
        if conv_id != self.conv_id:
            self.conv_id = conv_id
            self.found = []
        for at in np.flatnonzero(kind == RecordKind.VOID).tolist():
            if group.column("conv_id")[at].as_py() == conv_id:
                self.found.append((number, void_at(group, at).last))
        self.found = [(g, end) for g, end in self.found if end > seq]


def void_at(table: pa.Table, row: int) -> VoidRecord:
    """What a row of kind VOID says; CorruptError where it is no void record."""
    try:
        return msgspec.json.decode(table.column("body")[row].as_py(), type=VoidRecord)
    except msgspec.DecodeError as e:
        log, segment, at = (table.column(name)[row].as_py() for name in ("log", "segment", "row"))
        raise CorruptError(f"segment {segment} of log {log}", f"row {at}", f"no record of a void: {e}") from e


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables as one, with texts as dictionaries."""
    coded = [table if table.schema.equals(CODED_SCHEMA) else table.cast(CODED_SCHEMA) for table in tables]
    return pa.concat_tables(coded).unify_dictionaries()


def _row_sizes(table: pa.Table) -> I64:
    """Bytes of each row in memory, about."""
    body = table.column("body").chunk(0)
    offsets = np.frombuffer(body.buffers()[1], np.int32)[body.offset : body.offset + len(body) + 1]
    return np.diff(offsets).astype(np.int64) + _ROW_BYTES


def _edges(sizes: I64, group_bytes: float) -> list[int]:
    """Where groups of about so many bytes begin and end. A row that is larger is one by itself: nobody else's reader
    should read it."""
    ends = np.cumsum(sizes)
    count = max(1, round(int(ends[-1]) / group_bytes))
    marks = np.searchsorted(ends, np.arange(1, count) * (ends[-1] / count)) + 1
    large = np.flatnonzero(sizes > group_bytes)
    edges = np.unique(np.concatenate([[0, len(sizes)], marks, large, large + 1]))
    found: list[int] = edges[edges <= len(sizes)].tolist()
    return found


class _Compactor:
    """Leaves in dictionaries only what a row group uses: the whole of one would be written with every group."""

    def __init__(self) -> None:
        self._renumbered: dict[str, I32] = {}

    def compact(self, group: pa.Table) -> pa.Table:
        """The same rows, as CODED_SCHEMA."""
        arrays: list[pa.Array] = []
        for name, column in zip(group.schema.names, group.columns, strict=True):
            chunk = column.chunk(0)
            arrays.append(self._compact(name, chunk) if name in TEXT_COLUMNS else chunk)
        return pa.Table.from_arrays(arrays, schema=CODED_SCHEMA)

    def _compact(self, name: str, column: pa.Array) -> pa.DictionaryArray:
        rows = len(column)
        if column.null_count == rows:
            return pa.DictionaryArray.from_arrays(pa.nulls(rows, pa.int32()), _NO_NAMES)
        if not isinstance(column, pa.DictionaryArray):
            return column.dictionary_encode()
        names = column.dictionary
        renumbered = self._renumbered.get(name)
        if renumbered is None or len(renumbered) < len(names):
            renumbered = self._renumbered[name] = np.full(len(names), -1, np.int32)
        out = np.empty(rows, np.int32)
        used = np.empty(rows, np.int32)
        count = compact_codes(dictionary_rows(column), renumbered, out, used)
        indices = pa.array(out, mask=out < 0) if column.null_count else pa.array(out)
        return pa.DictionaryArray.from_arrays(indices, names.take(pa.array(used[:count])))
