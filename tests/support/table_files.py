"""Small runs for tests of the history's table, and what other programs read of it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import deltalake
import polars
import pyarrow as pa
import pyarrow.parquet as pq

from imray.history.layout import HISTORY_SCHEMA, run_name
from imray.history.snapshot import Covered, RunFile, TableSnapshot
from imray.history.table import Table
from imray.log.marks import LogEnd
from imray.log.store import Store

NOW_MS = 1_700_000_000_000


def run_file(
    store: Store | None, shard: int, run: str, conversations: Sequence[str], covers: Iterable[tuple[int, int, int]]
) -> RunFile:
    """A file with a message in each conversation, numbered by the last segment that it covers; in a store, or only
    said to be."""
    covered = tuple(Covered(*c) for c in covers)
    names = sorted(conversations)
    name = run_name(shard, run, 0, "0" * 32)
    data = _parquet(names, covered[-1]) if store is not None else b""
    if store is not None:
        assert store.put_if_absent(name, [data])
    last = {c.log: c.last for c in covered}
    ends = tuple(LogEnd(log, segment, 1, f"{segment:032x}", [(1, 1)]) for log, segment in last.items())
    return RunFile(name, shard, run, 0, len(data), len(names), names[0], names[-1], covered, ends)


def merge(
    table: Table, base: TableSnapshot, store: Store, shard: int, segments: int = 10, names: Sequence[str] = ("a", "b")
) -> TableSnapshot:
    """A commit as a merge of a shard's log makes it."""
    before = base.merged.get(shard, 0)
    run = f"s{shard}to{before + segments}"
    add = run_file(store, shard, run, names, [(shard, before + 1, before + segments)])
    return table.commit(base, [add], [], {shard: (before, before + segments)}, "merge", NOW_MS)


def compact(table: Table, base: TableSnapshot, store: Store, shard: int, count: int = 2) -> TableSnapshot:
    """A commit that replaces the last `count` runs of a shard, all of one file, by one with the rows of all."""
    runs = list(base.runs[shard])[-count:]
    covers = [(shard, runs[0].covers[0].first, runs[-1].covers[-1].last)]
    names = [name for run in runs for name in conversations_in(store, run.files)]
    add = run_file(store, shard, f"c{base.version}", names, covers)
    return table.commit(base, [add], [run.files[0].name for run in runs], {}, "compact", NOW_MS)


def conversations_in(store: Store, files: Iterable[RunFile]) -> list[str]:
    """The conv_id of each row of some files."""
    tables = [pq.read_table(io.BytesIO(store.get(file.name) or b"")) for file in files]
    return [str(name) for table in tables for name in table["conv_id"].to_pylist()]


def rows_of(store: Store, snapshot: TableSnapshot) -> list[tuple[int, str, int]]:
    """(shard, conv_id, conv_seq) of each row of the table, as we read it."""
    found = []
    for file in snapshot.files.values():
        table = pq.read_table(io.BytesIO(store.get(file.name) or b""))
        found += [
            (file.shard, *row) for row in zip(table["conv_id"].to_pylist(), table["conv_seq"].to_pylist(), strict=True)
        ]
    return sorted(found)


def rows_for_others(folder: Path) -> list[tuple[int, str, int]]:
    """As `rows_of`, and the same for delta-rs and Polars (an assertion)."""
    root = str(folder / "history")
    columns = ["shard", "conv_id", "conv_seq"]
    by_delta = pa.table(deltalake.DeltaTable(root).to_pyarrow_table(columns=columns)).to_pylist()
    by_polars = polars.read_delta(root, columns=columns).to_dicts()
    rows = [sorted((r["shard"], r["conv_id"], r["conv_seq"]) for r in found) for found in (by_delta, by_polars)]
    assert rows[0] == rows[1]
    return rows[0]


def _parquet(names: Sequence[str], last: Covered) -> bytes:
    n = len(names)
    columns = {field.name: pa.nulls(n, field.type) for field in HISTORY_SCHEMA}
    columns |= {
        "conv_id": pa.array(names),
        "conv_seq": pa.array([last.last] * n, pa.int64()),
        "kind": pa.array([0] * n, pa.int8()),
        "client_msg_id": pa.array([bytes(16)] * n),
        "server_ts": pa.array([NOW_MS * 1000] * n, pa.timestamp("us", tz="UTC")),
        "body": pa.array([b"text"] * n),
        "log": pa.array([last.log] * n, pa.int32()),
        "segment": pa.array([last.last] * n, pa.int64()),
        "row": pa.array(range(n), pa.int32()),
        "epoch": pa.array([1] * n, pa.int64()),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=HISTORY_SCHEMA), sink, compression="zstd")
    return sink.getvalue().to_pybytes()
