"""Checkpoints: a shard's state at one segment, so that recovery costs what came since, not the history.

A checkpoint holds the conversations with their heads, and names the sealed intervals that hold everything else.
Derived from the log; put under the number of the last segment that it covers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.dedup import IdTable
from imray.core.errors import CorruptError
from imray.core.hashing import I64, U8
from imray.core.postings import Postings
from imray.core.state import HotGroup, Position, ShardState
from imray.log import digest as digests
from imray.log.reader import read_segment
from imray.log.schema import body_parts
from imray.log.sealed import Interval, SealedInterval, merge, merge_due, open_interval, seal
from imray.log.segment import META_KEY, encode_parquet, read_meta, segment_name
from imray.log.store import Store

_KEEP = 2
"""How many checkpoints stay: the newest, and the one a reader may have just been told of."""


class TopicMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a sub-topic's log is covered."""

    slot: int
    segment: int
    epoch: int
    digest: str
    epoch_starts: list[tuple[int, int]]
    sequencer: int


class HotMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation (its row in the checkpoint) that is hot."""

    row: int
    topics: int
    ceiling: int
    by_rate: bool


class CheckpointMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a checkpoint says beside its rows (conv_id, head)."""

    shard: int
    segment: int
    epoch: int
    digest: str
    conversations: int
    epoch_starts: list[tuple[int, int]]
    intervals: list[Interval]
    topics: list[TopicMeta] = []
    hot: list[HotMeta] = []


@dataclass(frozen=True)
class Snapshot:
    """What must be taken from the state at the moment of the freeze; the rest can be written while commits go on."""

    shard: int
    segment: int
    epoch: int
    digest: bytes
    epoch_starts: list[tuple[int, int]]
    table: IdTable
    postings: Postings
    text: U8
    ends: I64
    heads: I64
    hot: list[HotMeta]
    topics: dict[int, Position]
    """Goes on while grants of the frozen ids are settled: complete when none is in flight."""


def snapshot(state: ShardState, shard: int) -> Snapshot:
    """Snapshot of a state whose ids were just frozen (`imray.core.sequencer.freeze`)."""
    assert state.frozen is not None, "freeze first"
    log = state.log
    return Snapshot(
        shard, log.segment, log.epoch, log.digest, list(log.epoch_starts),
        state.frozen, state.frozen_postings, *state.conversations.copy_columns(),
        [HotMeta(row, g.topics, g.ceiling, g.by_rate) for row, g in state.hot.items()], state.frozen_topics,
    )  # fmt: skip


def write(store: Store, snap: Snapshot, before: list[SealedInterval]) -> list[SealedInterval]:
    """Make a checkpoint durable, with a sealed interval for the frozen ids: the intervals that it names.

    StorageError where the store refuses; nothing is lost then, since all of it can be made again."""
    offsets = pa.py_buffer(snap.ends.astype(np.int64))
    names = pa.Array.from_buffers(pa.large_string(), len(snap.heads), [None, offsets, pa.py_buffer(snap.text)])
    sealed = [*before, seal(store, snap.shard, snap.table, snap.postings, snap.segment, names)]
    meta = CheckpointMeta(
        snap.shard, snap.segment, snap.epoch, snap.digest.hex(), len(snap.heads),
        snap.epoch_starts, [s.interval for s in sealed],
        [TopicMeta(slot, p.segment, p.epoch, p.digest.hex(), p.epoch_starts, p.sequencer)
         for slot, p in snap.topics.items()], snap.hot,
    )  # fmt: skip
    table = pa.table({"conv_id": names.cast(pa.string()), "head": snap.heads})
    data = encode_parquet(table, META_KEY, msgspec.json.encode(meta), "lz4")
    store.put_if_absent(_name(snap.shard, snap.segment), digests.seal(data)[0])
    return sealed


def merge_step(store: Store, intervals: list[SealedInterval]) -> tuple[list[SealedInterval], SealedInterval] | None:
    """Merge adjacent intervals where that is due: which, and what takes their place. The next checkpoint names it.

    Apart from `write`, since a merge takes seconds, and ids gather in memory until a checkpoint is written."""
    due = merge_due([s.interval for s in intervals])
    return None if due is None else (intervals[due], merge(store, intervals[due]))


def collect(store: Store, shard: int, in_use: Collection[SealedInterval] = ()) -> None:
    """Delete checkpoints older than the newest two, and sealed files that neither of the two names (nor is in use)."""
    names = store.list(_prefix(shard))
    kept = names[-_KEEP:]
    named = {file for name in kept for i in _read_meta(store, name).intervals for file in i.names}
    named.update(file for sealed in in_use for file in sealed.interval.names)
    newest = _read_meta(store, kept[-1]).segment if kept else 0
    for name in names[:-_KEEP]:
        store.delete(name)
    for name in store.list(f"sealed/shard={shard:04d}/"):
        if name not in named and int(name.rsplit("/", 1)[-1].split(".")[0].split("-")[1]) <= newest:
            store.delete(name)


def restore(store: Store, shard: int, seed: int) -> ShardState:
    """The state at the newest checkpoint; the state of an empty log where there is none."""
    state = ShardState(seed)
    names = store.list(_prefix(shard))
    if not names:
        return state
    name = names[-1]
    data = _get(store, name)
    meta = read_meta(memoryview(data), name, META_KEY, CheckpointMeta)
    if meta.shard != shard or _name(shard, meta.segment) != name:
        raise CorruptError(name, "metadata", f"it is the checkpoint of segment {meta.segment} of shard {meta.shard}")
    if read_segment(store, shard, meta.segment).digest.hex() != meta.digest:
        raise CorruptError(segment_name(shard, meta.segment), "the whole file", f"{name} covers another file there")
    table = pq.read_table(pa.BufferReader(data), use_threads=False).combine_chunks()
    if meta.conversations:
        _, offsets = parts = body_parts(table.column("conv_id").chunk(0))
        state.conversations.add(*parts, np.arange(len(offsets) - 1, dtype=np.int32))
        state.conversations.heads[: meta.conversations] = table.column("head").to_numpy()
        state.conversations.stable[: meta.conversations] = state.conversations.heads[: meta.conversations]
    state.log = Position(meta.segment, meta.epoch, bytes.fromhex(meta.digest), list(meta.epoch_starts))
    state.topics = {t.slot: _position(t) for t in meta.topics}
    # nothing that was granted before a checkpoint is in flight when it is written
    heads = state.conversations.heads
    state.hot = {h.row: HotGroup(h.topics, h.ceiling, int(heads[h.row]), h.by_rate) for h in meta.hot}
    state.recent = IdTable(meta.segment)
    state.sealed = [open_interval(store, i) for i in meta.intervals]
    return state


def _position(topic: TopicMeta) -> Position:
    return Position(
        topic.segment, topic.epoch, bytes.fromhex(topic.digest), list(topic.epoch_starts), topic.sequencer
    )  # fmt: skip


def topic_position(store: Store, home: int, slot: int) -> Position:
    """From where a sub-topic's log must be read: the newest checkpoint of its home shard covers the rest."""
    names = store.list(_prefix(home))
    found = [t for t in _read_meta(store, names[-1]).topics if t.slot == slot] if names else []
    return _position(found[0]) if found else Position()


def newest_intervals(store: Store, shard: int) -> tuple[int, list[Interval]]:
    """The last segment that the newest checkpoint covers, and its sealed intervals."""
    names = store.list(_prefix(shard))
    if not names:
        return 0, []
    meta = _read_meta(store, names[-1])
    return meta.segment, meta.intervals


def _read_meta(store: Store, name: str) -> CheckpointMeta:
    return read_meta(memoryview(_get(store, name)), name, META_KEY, CheckpointMeta)


def _get(store: Store, name: str) -> bytes:
    data = store.get(name)
    if data is None:
        raise CorruptError(name, "the whole file", "it was listed, but it is not there")
    digests.verify(data, name)
    return data


def _prefix(shard: int) -> str:
    return f"checkpoint/shard={shard:04d}/"


def _name(shard: int, segment: int) -> str:
    return f"{_prefix(shard)}{segment:020d}.parquet"
