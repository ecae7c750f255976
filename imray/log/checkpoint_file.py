"""One file of a checkpoint: its name, how it is put and read. What a checkpoint is of them: `imray.log.checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.checkpoint_chain import ChainLink
from imray.core.errors import CorruptError, DerivedError, StorageError
from imray.log import digest as digests
from imray.log.checkpoint_meta import CheckpointMeta
from imray.log.derived import why
from imray.log.segment import META_KEY, encode_parquet, read_meta
from imray.log.store import Store

_SUFFIX = ".parquet"
_TWIN = "-twin"


@dataclass(frozen=True)
class CheckpointFile:
    """A verified file."""

    name: str
    meta: CheckpointMeta
    digest: bytes
    data: bytes

    @property
    def link(self) -> ChainLink:
        """As what builds on it names it."""
        return ChainLink(self.name, self.digest.hex(), self.meta.rows_in_file)

    def table(self) -> pa.Table:
        """Its rows, each column in one chunk. DerivedError where they are not those that it says."""
        try:
            table = pq.read_table(pa.BufferReader(self.data), use_threads=False).combine_chunks()
        except (pa.ArrowException, OSError) as e:
            raise DerivedError(self.name, f"it cannot be decoded: {e}") from e
        if table.num_rows != self.meta.rows_in_file:
            raise DerivedError(self.name, f"it says {self.meta.rows_in_file} conversations and has {table.num_rows}")
        return table


def checkpoint_prefix(shard: int) -> str:
    """The folder of a shard's checkpoints."""
    return f"checkpoint/shard={shard:04d}/"


def checkpoint_name(shard: int, segment: int) -> str:
    """The name of the checkpoint that is called after a segment of the shard's own log."""
    return f"{checkpoint_prefix(shard)}{segment:020d}{_SUFFIX}"


def other_name(name: str) -> str:
    """The name of a checkpoint's twin, or of that whose twin it is. A twin sorts right before the other."""
    stem = name.removesuffix(_SUFFIX)
    return (stem.removesuffix(_TWIN) if stem.endswith(_TWIN) else stem + _TWIN) + _SUFFIX


def checkpoints(store: Store, shard: int) -> list[str]:
    """The names of a shard's checkpoints, oldest first."""
    return store.list(checkpoint_prefix(shard))


def read_checkpoint(store: Store, name: str) -> CheckpointFile:
    """A file, verified. DerivedError where it is missing or does not verify."""
    data = store.get(name)
    if data is None:
        raise DerivedError(name, "it was listed, but it is not there")
    try:
        digest = digests.verify(data, name)
        return CheckpointFile(name, read_meta(memoryview(data), name, META_KEY, CheckpointMeta), digest, data)
    except CorruptError as e:
        raise DerivedError(name, f"it does not verify: {why(e)}") from e


def read_link(store: Store, link: ChainLink) -> CheckpointFile:
    """A file that another one builds on, or its twin. DerivedError where neither is as it was."""
    failed: DerivedError | None = None
    for name in (link.name, other_name(link.name)):
        try:
            file = read_checkpoint(store, name)
        except DerivedError as e:
            failed = failed or e
            continue
        if file.digest.hex() == link.digest:
            return file
        failed = failed or DerivedError(name, "it is another file than what builds on it names")
    assert failed is not None
    raise failed


def verify_links(store: Store, meta: CheckpointMeta, verified: set[ChainLink]) -> None:
    """DerivedError where something that a checkpoint builds on, or its twin, is not as it was. `verified`: files that
    were found to be, and need not be read again; it is added to."""
    for link in meta.chain:
        if link not in verified:
            read_link(store, link)
            verified.add(link)


def encode_checkpoint(meta: CheckpointMeta, rows: pa.Table) -> tuple[digests.Parts, bytes]:
    """The file of a checkpoint, and its digest."""
    return digests.seal(encode_parquet(rows, META_KEY, msgspec.json.encode(meta), "lz4"))


def put_checkpoint(store: Store, name: str, parts: digests.Parts, digest: bytes) -> bytes:
    """Make a file durable: the digest of what has its name. StorageError where the store refuses."""
    if store.put_if_absent(name, parts):
        return digest
    # an earlier try of this one, whose outcome was unknown: the number is the writer's own. Its intervals were durable
    # before it, so it serves as it is; one that does not verify is put anew
    try:
        return read_checkpoint(store, name).digest
    except DerivedError:
        store.delete(name)
    if not store.put_if_absent(name, parts):
        raise StorageError(f"put {name}: it was taken again")
    return digest
