"""Delta checkpoints of the history's table: one Parquet file that says what the table consists of at a version.

Derived: one that is missing or does not verify is passed over, an older one or the commits serve. Owns their bytes.
Removed files are left out (Delta keeps them for its vacuum, which is not used here; which files may go says
`imray.history.retiring`).
"""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.errors import CorruptError, DerivedError
from imray.history import actions
from imray.history.changes import runs_of
from imray.history.layout import DELTA_LOG, FORMAT_VERSION, TABLE
from imray.history.snapshot import Run, TableSnapshot
from imray.log import digest as digests
from imray.log.digest import Parts
from imray.log.segment import META_KEY, encode_parquet, read_meta

CHECKPOINT_EVERY = 64
"""Versions: who opens the table reads one checkpoint and at most so many commits of a few KB (some 0.1 ms each)."""

_STRING_MAP = pa.map_(pa.string(), pa.string())
_TXN = pa.struct([("appId", pa.string()), ("version", pa.int64())])
_ADD = pa.struct(
    [
        ("path", pa.string()),
        ("partitionValues", _STRING_MAP),
        ("size", pa.int64()),
        ("modificationTime", pa.int64()),
        ("dataChange", pa.bool_()),
        ("stats", pa.string()),
        ("tags", _STRING_MAP),
    ]
)
_REMOVE = pa.struct([("path", pa.string()), ("deletionTimestamp", pa.int64()), ("dataChange", pa.bool_())])
_META_DATA = pa.struct(
    [
        ("id", pa.string()),
        ("name", pa.string()),
        ("description", pa.string()),
        ("format", pa.struct([("provider", pa.string()), ("options", _STRING_MAP)])),
        ("schemaString", pa.string()),
        ("partitionColumns", pa.list_(pa.string())),
        ("createdTime", pa.int64()),
        ("configuration", _STRING_MAP),
    ]
)
_PROTOCOL = pa.struct([("minReaderVersion", pa.int32()), ("minWriterVersion", pa.int32())])
CHECKPOINT_SCHEMA = pa.schema(
    [("txn", _TXN), ("add", _ADD), ("remove", _REMOVE), ("metaData", _META_DATA), ("protocol", _PROTOCOL)]
)


class TableCheckpointMeta(msgspec.Struct, frozen=True):
    """What a checkpoint says of itself in its file metadata."""

    format: int
    version: int
    commit: str
    """Hex digest of the commit that it stands for: the next commit names it."""


def checkpoint_name(version: int) -> str:
    """The name of the checkpoint of a version."""
    return f"{DELTA_LOG}{version:020d}.checkpoint.parquet"


def encode_checkpoint(snapshot: TableSnapshot) -> Parts:
    """The file of a checkpoint."""
    meta = msgspec.to_builtins(actions.meta_data(snapshot.table_id, snapshot.created_ms))
    rows: list[dict[str, Any]] = [
        {"protocol": msgspec.to_builtins(actions.DeltaProtocol())},
        {"metaData": _with_maps(meta)},
    ]
    rows += [{"txn": msgspec.to_builtins(t)} for t in actions.transactions(snapshot.merged, snapshot.fences)]
    for name, file in snapshot.files.items():
        add = msgspec.to_builtins(actions.add_of(file, snapshot.committed_ms[name], False))
        rows.append({"add": _with_maps(add)})
    table = pa.Table.from_pylist(rows, CHECKPOINT_SCHEMA)
    own = TableCheckpointMeta(FORMAT_VERSION, snapshot.version, snapshot.digest)
    return digests.seal(encode_parquet(table, META_KEY, msgspec.json.encode(own), compression="zstd"))[0]


def decode_checkpoint(data: bytes, name: str, version: int) -> TableSnapshot:
    """The table as a checkpoint says it. DerivedError where it does not verify or is not `version`'s; InvalidError
    where a newer imray wrote it."""
    try:
        view = memoryview(data)
        digests.verify(view, name)
        own = read_meta(view, name, META_KEY, TableCheckpointMeta)
        actions.check_format(own.format)
        if own.version != version:
            raise DerivedError(name, f"it is the checkpoint of version {own.version}")
        return _snapshot_of(pq.read_table(pa.BufferReader(view), use_threads=False), own)
    except CorruptError as e:
        raise DerivedError(name, f"{e.where}: {e.check}") from e
    except (ValueError, KeyError, msgspec.MsgspecError, pa.ArrowException) as e:
        raise DerivedError(name, f"not what this version of imray writes: {e}") from e


def _snapshot_of(table: pa.Table, own: TableCheckpointMeta) -> TableSnapshot:
    meta = msgspec.convert(_actions(table, "metaData")[0], actions.DeltaMetaData)
    actions.check_meta(meta)
    txns = [actions.DeltaTxn(**txn) for txn in _actions(table, "txn")]
    merged, fences = actions.progress_of(txns)
    adds = [actions.DeltaAdd(**add) for add in _actions(table, "add")]
    runs: dict[int, list[Run]] = {}
    for run in runs_of(actions.file_of(add) for add in adds):
        runs.setdefault(run.files[0].shard, []).append(run)
    return TableSnapshot(
        version=own.version,
        digest=own.commit,
        runs={shard: tuple(of_shard) for shard, of_shard in runs.items()},
        merged=merged,
        fences=fences,
        committed_ms={TABLE + add.path: add.modificationTime for add in adds},
        table_id=meta.id,
        created_ms=meta.createdTime,
    )


def _actions(table: pa.Table, kind: str) -> list[dict[str, Any]]:
    """The actions of a kind, without the rows of the others: a tenth of the time of reading them all."""
    actions_of_kind = table[kind].combine_chunks()
    found: list[dict[str, Any]] = actions_of_kind.filter(actions_of_kind.is_valid()).to_pylist(maps_as_pydicts="strict")
    return found


def _with_maps(row: dict[str, Any]) -> dict[str, Any]:
    """The same with Delta's maps as Arrow takes them."""
    maps = {"options", "configuration", "partitionValues", "tags"}
    return {
        key: list(value.items()) if key in maps else _with_maps(value) if isinstance(value, dict) else value
        for key, value in row.items()
    }
