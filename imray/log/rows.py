"""From Arrow to the columns that the core numbers: of a batch that came in, and of a segment read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from imray.core.errors import CorruptError, InvalidError
from imray.core.hashing import U64, hash_rows, id_fingerprints
from imray.core.sequencer import Commit, First, Rows, ShardState, commit_read_back
from imray.log.schema import (
    KIND_MESSAGE,
    KIND_VOID,
    body_parts,
    check_batch,
    dictionary_rows,
    id_words,
    payload_fingerprints,
)
from imray.log.segment import Segment


class Void(msgspec.Struct, frozen=True):
    """The body of a void record."""

    last: int
    reason: str


@dataclass(frozen=True)
class Prepared:
    """One request's batch with its fingerprints: all that can be done before its turn."""

    batch: pa.RecordBatch
    fps: U64
    payload: U64

    def __len__(self) -> int:
        return self.batch.num_rows


def prepare(batch: pa.RecordBatch, seed: int) -> Prepared:
    """Check a batch and compute its fingerprints. InvalidError where its columns are not as agreed."""
    check_batch(batch)
    names = batch.column("conv_id").dictionary
    keys = hash_rows(*body_parts(names))
    # two names may share a key, so the names themselves decide
    if len(names) > 1 and len(np.unique(keys)) != len(keys) and len(names.unique()) != len(names):
        raise InvalidError("the dictionary of conv_id names a conversation twice")
    fps = id_fingerprints(
        id_words(batch.column("client_msg_id")),
        dictionary_rows(batch.column("conv_id")),
        keys,
        np.uint64(seed),
    )
    return Prepared(batch, fps, payload_fingerprints(batch))


def gather(requests: Sequence[Prepared]) -> tuple[pa.Table, Rows]:
    """The requests of one commit as one table (dictionaries unified, nothing copied) and its rows as columns."""
    table = pa.Table.from_batches([r.batch for r in requests])
    if len(requests) > 1:
        table = table.unify_dictionaries()
    conv = table.column("conv_id").chunks
    names_data, names_offsets = body_parts(conv[0].dictionary)
    return table, Rows(
        names_data,
        names_offsets,
        _join([dictionary_rows(c) for c in conv]),
        _join([id_words(c) for c in table.column("client_msg_id").chunks]),
        _join([r.fps for r in requests]),
        _join([r.payload for r in requests]),
    )


def _join(columns: list[np.ndarray]) -> np.ndarray:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def read_commit(state: ShardState, segment: Segment) -> Commit:
    """What `apply` takes to replay a verified segment. CorruptError where it does not follow the state."""
    meta = segment.meta
    table = segment.table().combine_chunks()
    if table.num_rows != meta.rows:
        raise CorruptError(segment.name, "metadata", f"it says {meta.rows} rows, there are {table.num_rows}")
    batch = table.to_batches()[0] if table.num_rows else None
    if batch is None:
        rows, seq, where = no_rows(), np.empty(0, np.int64), np.empty(0, np.uint32)
        voids: tuple[tuple[int, int, int], ...] = ()
    else:
        rows, seq, where, voids = _columns(batch, state.seed)
    try:
        return commit_read_back(
            state, meta.segment, meta.epoch, meta.server_ts, segment.digest, rows, seq, where, voids
        )
    except InvalidError as e:
        raise CorruptError(segment.name, "numbers", str(e)) from e


def no_rows() -> Rows:
    """The rows of a segment without messages."""
    none = np.empty(0, np.uint64)
    return Rows(np.empty(0, np.uint8), np.zeros(1, np.int32), np.empty(0, np.int32), none.reshape(0, 2), none, none)


def _columns(batch: pa.RecordBatch, seed: int) -> tuple[Rows, np.ndarray, np.ndarray, tuple]:
    kind = batch.column("kind").to_numpy()
    conv = batch.column("conv_id")
    names_data, names_offsets = body_parts(conv.dictionary)
    local = dictionary_rows(conv)
    voids = tuple(
        (int(local[i]), batch.column("conv_seq")[i].as_py(), void_of(batch, int(i)).last)
        for i in np.flatnonzero(kind == KIND_VOID)
    )
    where = np.flatnonzero(kind == KIND_MESSAGE).astype(np.uint32)
    messages = batch if len(where) == len(kind) else batch.take(pa.array(where))
    local = dictionary_rows(messages.column("conv_id"))
    ids = id_words(messages.column("client_msg_id"))
    fps = id_fingerprints(ids, local, hash_rows(names_data, names_offsets), np.uint64(seed))
    rows = Rows(names_data, names_offsets, local, ids, fps, payload_fingerprints(messages))
    return rows, messages.column("conv_seq").to_numpy(), where, voids


def void_of(batch: pa.RecordBatch, row: int) -> Void:
    """The range and reason of a void record."""
    return msgspec.json.decode(batch.column("body")[row].as_py(), type=Void)


def first_at(segment: Segment, table: pa.Table, row: int) -> tuple[str, bytes, First]:
    """Conversation, id and numbers of the message in one row of a segment: to confirm a filter's "maybe"."""
    batch = table.slice(row, 1).combine_chunks().to_batches()[0]
    first = First(
        batch.column("conv_seq")[0].as_py(),
        int(payload_fingerprints(batch)[0]),
        segment.meta.segment,
        row,
        segment.meta.epoch,
        segment.meta.server_ts,
    )
    return batch.column("conv_id")[0].as_py(), batch.column("client_msg_id")[0].as_py(), first
