"""The commits of the history's table: Delta's actions as JSON lines, with a digest of the whole and its predecessor's.

Owns the format of a commit, and how a file of a run is told in it. Owns no rules of which commit may follow which
(`imray.history.changes`) and reads no store (`imray.history.table_reading`).
Delta's protocol asks readers to ignore what they do not know: ours stands in `commitInfo` and in the tags of a file.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import pyarrow as pa

import imray
from imray.core.errors import CorruptError, InvalidError
from imray.history.layout import FORMAT_VERSION, HISTORY_SCHEMA, TABLE
from imray.history.snapshot import Covered, RunFile, TableSnapshot
from imray.log import digest as digests
from imray.log.marks import LogEnd

TABLE_NAME = "imray"
PARTITION_COLUMN = "shard"
READER_VERSION = 1
WRITER_VERSION = 2
_FORMAT_KEY = "imray.format"
_LOG_APP = "imray/log="
_FENCE_APP = "imray/fence="
_DELTA_TYPES = {
    pa.string(): "string",
    pa.binary(): "binary",
    pa.int8(): "byte",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.timestamp("us", tz="UTC"): "timestamp",
}


class CommitSeal(msgspec.Struct, frozen=True):
    """Ours in `commitInfo`: the first thing in the file, so that no text of a user stands before the digest."""

    digest: str
    previous: str
    """Hex digest of the commit before; empty in the first."""
    version: int
    format: int


class CommitInfo(msgspec.Struct, frozen=True):
    """Delta's action of this name."""

    imray: CommitSeal
    timestamp: int
    operation: str
    operationParameters: dict[str, str]
    engineInfo: str


class DeltaProtocol(msgspec.Struct, frozen=True):
    """Delta's action `protocol`."""

    minReaderVersion: int = READER_VERSION
    minWriterVersion: int = WRITER_VERSION


class DeltaFormat(msgspec.Struct, frozen=True):
    """Delta's format of data files."""

    provider: str = "parquet"
    options: dict[str, str] = {}


class DeltaMetaData(msgspec.Struct, frozen=True):
    """Delta's action `metaData`."""

    id: str
    name: str
    format: DeltaFormat
    schemaString: str
    partitionColumns: list[str]
    configuration: dict[str, str]
    createdTime: int


class DeltaAdd(msgspec.Struct, frozen=True):
    """Delta's action `add`."""

    path: str
    partitionValues: dict[str, str]
    size: int
    modificationTime: int
    dataChange: bool
    stats: str
    tags: dict[str, str]


class DeltaRemove(msgspec.Struct, frozen=True):
    """Delta's action `remove`."""

    path: str
    deletionTimestamp: int
    dataChange: bool


class DeltaTxn(msgspec.Struct, frozen=True):
    """Delta's action `txn`. Without `lastUpdated`: one that has it may expire."""

    appId: str
    version: int


class DeltaLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a commit: one action."""

    commitInfo: CommitInfo | None = None
    protocol: DeltaProtocol | None = None
    metaData: DeltaMetaData | None = None
    txn: DeltaTxn | None = None
    remove: DeltaRemove | None = None
    add: DeltaAdd | None = None


class FileStatistics(msgspec.Struct, frozen=True):
    """Delta's statistics of a file: of no column, as deltalake's datasets take columns without statistics for empty
    where others have some. What a file begins and ends with is in its tags."""

    numRecords: int


@dataclass(frozen=True)
class TableChange:
    """What a commit is to do."""

    add: tuple[RunFile, ...]
    remove: tuple[str, ...]
    moves: Mapping[int, tuple[int, int]]
    """By log: the last merged segment before and after."""
    operation: str
    now_ms: int
    fence: int | None = None
    """A shard whose unfinished runs are shut out."""

    def is_made_by(self, commit: TableCommit) -> bool:
        """Whether a commit does just this: an earlier try of ours that landed. The names of files are nobody else's."""
        merged = {log: after for log, (_, after) in self.moves.items()}
        return bool(self.add) and (self.add, self.remove, merged) == (commit.add, commit.remove, commit.merged)


@dataclass(frozen=True)
class TableCommit:
    """A verified commit."""

    version: int
    digest: str
    previous: str
    operation: str
    now_ms: int
    add: tuple[RunFile, ...] = ()
    remove: tuple[str, ...] = ()
    merged: Mapping[int, int] = field(default_factory=dict)
    fences: Mapping[int, int] = field(default_factory=dict)
    meta: DeltaMetaData | None = None


def encode_commit(change: TableChange, base: TableSnapshot) -> tuple[bytes, TableCommit]:
    """The file of the commit that makes `change` on top of `base`, and what it says."""
    version = base.version + 1
    seal = CommitSeal(digests.BLANK, base.digest, version, FORMAT_VERSION)
    engine = f"imray/{imray.__version__}"
    lines = [DeltaLine(commitInfo=CommitInfo(seal, change.now_ms, change.operation, {}, engine))]
    meta = None
    if version == 0:
        # the same whoever makes it, for a try that is made again
        table_id = str(uuid.uuid5(uuid.NAMESPACE_OID, " ".join([str(change.now_ms), *(f.name for f in change.add)])))
        meta = meta_data(table_id, change.now_ms)
        lines += [DeltaLine(protocol=DeltaProtocol()), DeltaLine(metaData=meta)]
    merged = {log: after for log, (_, after) in change.moves.items()}
    fences = {} if change.fence is None else {change.fence: base.fences.get(change.fence, 0) + 1}
    lines += [DeltaLine(txn=txn) for txn in transactions(merged, fences)]
    # what is only sorted anew is no change for who follows the table's changes
    news = bool(change.moves)
    lines += [DeltaLine(remove=DeltaRemove(path_of(name), change.now_ms, news)) for name in change.remove]
    lines += [DeltaLine(add=add_of(file, change.now_ms, news)) for file in change.add]
    data = digests.seal_json(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    digest = digests.verify_json(data, "<new commit>").hex()
    commit = TableCommit(
        version=version,
        digest=digest,
        previous=base.digest,
        operation=change.operation,
        now_ms=change.now_ms,
        add=change.add,
        remove=change.remove,
        merged=merged,
        fences=fences,
        meta=meta,
    )
    return data, commit


def decode_commit(data: bytes, name: str, version: int) -> TableCommit:
    """The content of a commit. CorruptError where it does not verify or is not `version`'s; InvalidError where a newer
    imray wrote it."""
    digest = digests.verify_json(data, name)
    try:
        first, *rest = data.splitlines()
        info = msgspec.json.decode(first, type=DeltaLine).commitInfo
        if info is None:
            raise CorruptError(name, "line 1", "it is no commitInfo")
        check_format(info.imray.format)
        lines = [msgspec.json.decode(line, type=DeltaLine) for line in rest]
        if info.imray.version != version:
            raise CorruptError(name, "line 1", f"it is version {info.imray.version}: another commit's file")
        meta = next((line.metaData for line in lines if line.metaData is not None), None)
        if meta is not None:
            check_meta(meta)
        merged, fences = progress_of([line.txn for line in lines if line.txn is not None])
        return TableCommit(
            version=version,
            digest=digest.hex(),
            previous=info.imray.previous,
            operation=info.operation,
            now_ms=info.timestamp,
            add=tuple(file_of(line.add) for line in lines if line.add is not None),
            remove=tuple(TABLE + line.remove.path for line in lines if line.remove is not None),
            merged=merged,
            fences=fences,
            meta=meta,
        )
    except (ValueError, KeyError, msgspec.MsgspecError) as e:
        raise CorruptError(name, "the whole file", f"not what this version of imray writes: {e}") from e


def meta_data(table_id: str, created_ms: int) -> DeltaMetaData:
    """The table's `metaData`."""
    fields = [{"name": f.name, "type": _DELTA_TYPES[f.type], "nullable": f.nullable} for f in HISTORY_SCHEMA]
    fields.append({"name": PARTITION_COLUMN, "type": "integer", "nullable": False})
    schema = {"type": "struct", "fields": [{**f, "metadata": {}} for f in fields]}
    return DeltaMetaData(
        id=table_id,
        name=TABLE_NAME,
        format=DeltaFormat(),
        schemaString=msgspec.json.encode(schema).decode(),
        partitionColumns=[PARTITION_COLUMN],
        # another program that writes a Delta checkpoint would remove commits that we still need
        configuration={_FORMAT_KEY: str(FORMAT_VERSION), "delta.enableExpiredLogCleanup": "false"},
        createdTime=created_ms,
    )


def check_meta(meta: DeltaMetaData) -> None:
    """InvalidError where the table is of a newer format."""
    check_format(int(meta.configuration.get(_FORMAT_KEY, FORMAT_VERSION)))


def check_format(version: int) -> None:
    """InvalidError where the table is of a newer format."""
    if version > FORMAT_VERSION:
        raise InvalidError(
            f"the history's table has format {version}, this imray reads up to {FORMAT_VERSION}: upgrade imray"
        )


def transactions(merged: Mapping[int, int], fences: Mapping[int, int]) -> list[DeltaTxn]:
    """How far each log is merged, and the fences of shards, as Delta's application transactions."""
    logs = [DeltaTxn(f"{_LOG_APP}{log}", segment) for log, segment in sorted(merged.items())]
    return logs + [DeltaTxn(f"{_FENCE_APP}{shard}", count) for shard, count in sorted(fences.items())]


def progress_of(txns: list[DeltaTxn]) -> tuple[dict[int, int], dict[int, int]]:
    """The inverse of `transactions`. ValueError for one that is not ours."""
    merged: dict[int, int] = {}
    fences: dict[int, int] = {}
    for txn in txns:
        app, _, number = txn.appId.partition("=")
        into = {_LOG_APP: merged, _FENCE_APP: fences}.get(f"{app}=")
        if into is None:
            raise ValueError(f"application transaction {txn.appId!r}")
        into[int(number)] = txn.version
    return merged, fences


def path_of(name: str) -> str:
    """The name of a file as the table has it: relative to its root."""
    return name.removeprefix(TABLE)


def add_of(file: RunFile, committed_ms: int, news: bool) -> DeltaAdd:
    """The `add` of a file."""
    statistics = FileStatistics(file.rows)
    return DeltaAdd(
        path=path_of(file.name),
        partitionValues={PARTITION_COLUMN: str(file.shard)},
        size=file.bytes,
        modificationTime=committed_ms,
        dataChange=news,
        stats=msgspec.json.encode(statistics).decode(),
        tags={
            "run": file.run,
            "tier": str(file.tier),
            "first": file.first,
            "last": file.last,
            "covers": msgspec.json.encode(file.covers).decode(),
            "ends": msgspec.json.encode(file.ends).decode(),
        },
    )


def file_of(add: DeltaAdd) -> RunFile:
    """The inverse of `add_of`. KeyError, ValueError or msgspec's errors for one that is not ours."""
    statistics = msgspec.json.decode(add.stats, type=FileStatistics)
    return RunFile(
        name=TABLE + add.path,
        shard=int(add.partitionValues[PARTITION_COLUMN]),
        run=add.tags["run"],
        tier=int(add.tags["tier"]),
        bytes=add.size,
        rows=statistics.numRecords,
        first=add.tags["first"],
        last=add.tags["last"],
        covers=msgspec.json.decode(add.tags["covers"], type=tuple[Covered, ...]),
        ends=msgspec.json.decode(add.tags["ends"], type=tuple[LogEnd, ...]),
    )
