"""From Arrow to the columns that the core numbers: of a batch that came in, and of a segment read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imray.core.columns import Commit, Control, LookedUp, Rows, Senders
from imray.core.errors import CorruptError, InvalidError
from imray.core.fold import ReadBack, check_sequencer, commit_read_back
from imray.core.members import CursorsChange, MembersChange
from imray.core.routing import home_of, log_position_of
from imray.core.state import ShardState
from imray.kernels.hashing import hash_rows, id_fingerprints
from imray.log.schema import (
    CursorsRecord,
    HotRecord,
    MembersRecord,
    RecordKind,
    VoidRecord,
    body_parts,
    check_batch,
    dictionary_rows,
    id_words,
    payload_fingerprints,
    payloads_of,
)
from imray.log.segment import Segment

Item = TypeVar("Item", bound=np.generic)


_COPIED_BYTES_MAX = 128 * 1024
"""Of a request, on average over a commit: copying so much costs what each chunk more does in encoding, 12 us."""
_BYTES_BUT_BODY = 50
"""Of a row in memory, about."""
_TOGETHER_ROWS_MAX = 100
"""Of a request: the fingerprints of so few cost less than the calls that ask for them, which are made once a commit."""


@dataclass(frozen=True)
class Prepared:
    """One request's batch, checked, with all that is worth doing before its turn."""

    batch: pa.RecordBatch
    columns: Sequence[pa.Array]
    """Those of the batch: each is 1 us of pyarrow's, in a cold cache 2."""
    seed: int
    rows: Rows | None
    """Its rows as columns; None: there are few, and the columns are made for all of a commit at once."""
    looked: LookedUp | None = None
    """What files said of its ids, where they were asked."""

    def __len__(self) -> int:
        return self.batch.num_rows  # type: ignore[no-any-return]


def prepare(batch: pa.RecordBatch, seed: int) -> Prepared:
    """Check a batch and, where it is large, compute its fingerprints. InvalidError where its columns are not as
    agreed."""
    columns = check_batch(batch)
    names = columns[0].dictionary
    if len(names) > 1:
        keys = hash_rows(*body_parts(names))
        # two names may share a key, so the names themselves decide
        if len(np.unique(keys)) != len(keys) and len(names.unique()) != len(names):
            raise InvalidError("the dictionary of conv_id names a conversation twice")
    rows = _rows_of(columns, seed) if batch.num_rows > _TOGETHER_ROWS_MAX else None
    return Prepared(batch, columns, seed, rows)


def _rows_of(columns: Sequence[pa.Array], seed: int) -> Rows:
    """The columns of a checked batch, with fingerprints."""
    conv, ids, sender, topic, content_type, _, body = columns
    names_data, names_offsets = body_parts(conv.dictionary)
    local = dictionary_rows(conv)
    words = id_words(ids)
    return Rows(
        names_data=names_data,
        names_offsets=names_offsets,
        conv=local,
        ids=words,
        fps=id_fingerprints(words, local, hash_rows(names_data, names_offsets), np.uint64(seed)),
        payload=payloads_of(body, (sender, topic, content_type), seed),
    )


def gather(requests: Sequence[Prepared]) -> tuple[pa.Table, Rows]:
    """The requests of one commit as one table (dictionaries unified) and its rows as columns. Large requests are not
    copied: each is a chunk."""
    batches = [r.batch for r in requests]
    copied = len(batches) > 1 and sum(map(_size, requests)) <= _COPIED_BYTES_MAX * len(batches)
    if copied:
        batches = [pa.concat_batches(batches)]
    table = pa.Table.from_batches(batches)
    if copied and all(r.rows is None for r in requests):
        return table, _rows_of(batches[0].columns, requests[0].seed)
    each = [r.rows or _rows_of(r.columns, r.seed) for r in requests]
    if len(each) == 1:
        return table, each[0]
    if not copied:
        table = table.unify_dictionaries()
    conv = table.column("conv_id").chunks
    names_data, names_offsets = body_parts(conv[0].dictionary)
    return table, Rows(
        names_data=names_data,
        names_offsets=names_offsets,
        conv=_join([dictionary_rows(c) for c in conv]),
        ids=np.concatenate([r.ids for r in each]),
        fps=np.concatenate([r.fps for r in each]),
        payload=np.concatenate([r.payload for r in each]),
    )


def _size(request: Prepared) -> int:
    """Its bytes, about: pyarrow takes 12 us to tell them."""
    data = request.columns[-1].buffers()[2]
    return len(request) * _BYTES_BUT_BODY + (data.size if data else 0)


def _join(columns: list[npt.NDArray[Item]]) -> npt.NDArray[Item]:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def senders_of(table: pa.Table) -> Senders:
    """The senders of a table that `gather` made."""
    chunks = table.column("sender").chunks
    return Senders(*body_parts(chunks[0].dictionary), _join([dictionary_rows(c) for c in chunks]))


def read_commit(state: ShardState, segment: Segment) -> Commit:
    """What `apply` takes to replay a verified segment of one of the state's logs. CorruptError where it does not
    follow the state. FencedError as `imray.core.fold.check_sequencer`."""
    meta = segment.meta
    table = segment.table().combine_chunks()
    if table.num_rows != meta.rows:
        raise CorruptError(segment.name, "metadata", f"it says {meta.rows} rows, there are {table.num_rows}")
    _, slot = home_of(meta.shard)
    try:
        found = read_back(table, state.seed)
        if slot:
            grants = _grants(state, segment, slot, table)
            found = replace(found, grants=grants, sequencer=meta.sequencer)
        log_position = log_position_of(slot, meta.segment)
        commit = commit_read_back(state, log_position, meta.epoch, meta.server_ts, found)
        return commit if meta.fence is None else replace(commit, fence=meta.fence)
    except (InvalidError, msgspec.DecodeError) as e:
        raise CorruptError(segment.name, "numbers", str(e)) from e


def _grants(state: ShardState, segment: Segment, slot: int, table: pa.Table) -> tuple[tuple[int, int, int], ...]:
    """The blocks that a partition's segment uses, by the index of their conversation's name."""
    meta = segment.meta
    check_sequencer(state, slot, meta.sequencer)
    if len({g.grant for g in meta.grants}) > 1:
        raise InvalidError("it uses the numbers of more than one grant: no valid grant")
    names: list[str] = table.column("conv_id").chunk(0).dictionary.to_pylist() if table.num_rows else []
    index_of = {name: i for i, name in enumerate(names)}
    if {g.conv_id for g in meta.grants} - index_of.keys():
        raise InvalidError("it names a grant for a conversation of which it has no row")
    return tuple((index_of[g.conv_id], g.first, g.count) for g in meta.grants)


def no_rows() -> Rows:
    """The rows of a segment without messages."""
    none = np.empty(0, np.uint64)
    return Rows(
        names_data=np.empty(0, np.uint8),
        names_offsets=np.zeros(1, np.int32),
        conv=np.empty(0, np.int32),
        ids=none.reshape(0, 2),
        fps=none,
        payload=none,
    )


def read_back(table: pa.Table, seed: int) -> ReadBack:
    """The columns of a segment's table (one chunk)."""
    if not table.num_rows:
        return ReadBack(no_rows(), np.empty(0, np.int64), np.empty(0, np.uint32))
    batch = table.to_batches()[0]
    kind = batch.column("kind").to_numpy()
    conv = batch.column("conv_id")
    names_data, names_offsets = body_parts(conv.dictionary)
    local = dictionary_rows(conv)
    where = np.flatnonzero(kind == RecordKind.MESSAGE).astype(np.uint32)
    voids: tuple[tuple[int, int, int], ...] = ()
    controls: tuple[Control, ...] = ()
    members: tuple[MembersChange, ...] = ()
    cursors: tuple[CursorsChange, ...] = ()
    messages = batch
    if len(where) != len(kind):
        messages = batch.take(pa.array(where))
        seq = batch.column("conv_seq")
        voids = tuple(
            (int(local[i]), seq[i].as_py(), void_of(batch, int(i)).last)
            for i in np.flatnonzero(kind == RecordKind.VOID)
        )
        controls = tuple(
            control_of(batch, int(i), int(local[i]))
            for i in np.flatnonzero((kind == RecordKind.HOT) | (kind == RecordKind.COLD))
        )
        members = tuple(members_of(batch, int(i), int(local[i])) for i in np.flatnonzero(kind == RecordKind.MEMBERS))
        cursors = tuple(cursors_of(batch, int(i), int(local[i])) for i in np.flatnonzero(kind == RecordKind.CURSORS))
    local = dictionary_rows(messages.column("conv_id"))
    ids = id_words(messages.column("client_msg_id"))
    fps = id_fingerprints(ids, local, hash_rows(names_data, names_offsets), np.uint64(seed))
    rows = Rows(
        names_data=names_data,
        names_offsets=names_offsets,
        conv=local,
        ids=ids,
        fps=fps,
        payload=payload_fingerprints(messages, seed),
    )
    return ReadBack(
        rows=rows,
        seq=messages.column("conv_seq").to_numpy(),
        row=where,
        voids=voids,
        controls=controls,
        members=members,
        cursors=cursors,
    )


def control_of(batch: pa.RecordBatch, row: int, conv: int) -> Control:
    """The record in a row that turns a conversation (its index) hot or cold."""
    number = batch.column("conv_seq")[row].as_py()
    if batch.column("kind")[row].as_py() == RecordKind.COLD:
        return Control(conv=conv, partitions=0, number=number, ceiling=number)
    hot = msgspec.json.decode(batch.column("body")[row].as_py(), type=HotRecord)
    return Control(
        conv=conv,
        partitions=hot.partitions,
        number=number,
        ceiling=hot.ceiling,
        by_rate=hot.by_rate,
        exact=hot.exact is True,
    )


def members_of(batch: pa.RecordBatch, row: int, conv: int) -> MembersChange:
    """The record of members in a row."""
    body = msgspec.json.decode(batch.column("body")[row].as_py(), type=MembersRecord)
    return MembersChange(
        conv=conv,
        after=batch.column("conv_seq")[row].as_py(),
        created=body.created,
        public=body.public,
        roles=body.set,
        removed=tuple(body.removed),
    )


def cursors_of(batch: pa.RecordBatch, row: int, conv: int) -> CursorsChange:
    """The record of cursors in a row."""
    return CursorsChange(conv, msgspec.json.decode(batch.column("body")[row].as_py(), type=CursorsRecord).seqs)


def void_of(batch: pa.RecordBatch, row: int) -> VoidRecord:
    """The range and reason of a void record."""
    return msgspec.json.decode(batch.column("body")[row].as_py(), type=VoidRecord)
