"""What a checkpoint takes of a state at the moment of the freeze, and the sealed interval of its ids.

Does not own the checkpoint's file (`imray.log.checkpoint`), nor an interval's (`imray.log.sealed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from imray.core.checkpoint_chain import ChainLink, CheckpointChain
from imray.core.dedup import IdTable
from imray.core.log_progress import LogProgress
from imray.core.member_columns import MembersColumns
from imray.core.postings import Postings
from imray.core.routing import segment_of, slot_of
from imray.core.state import ShardState
from imray.kernels.arrays import I64, U8
from imray.log.checkpoint_meta import HotMeta
from imray.log.sealed import SealedInterval, seal
from imray.log.store import Store


@dataclass
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
    partitions: dict[int, LogProgress]
    """Goes on while grants of the frozen ids are settled: complete when none is in flight."""
    members: MembersColumns | None = None
    """Of `member_rows`; None: there is nothing to say of them."""
    member_rows: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    rows: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    """The conversations that the checkpoint's file has, ascending: all, or those that changed."""
    users: int = 0
    """How many users there are."""
    before: tuple[ChainLink, ...] = ()
    """The files that the checkpoint builds on; empty: it has all conversations."""
    conversations_before: int = 0
    """That those files have."""
    chain: CheckpointChain = field(default_factory=CheckpointChain)
    """The state's, to be told of the checkpoint once it is durable."""
    covered: dict[int, int] = field(default_factory=dict)
    """The last segment of each log, by slot, that intervals covered before."""
    window: int = 1
    following: int = 0
    """Of the shard's own log, as in `LogProgress`."""
    seed: int = 0
    segment_ts: Mapping[int, int] = field(default_factory=dict)
    """`ShardState.segment_ts` itself, which has those of the frozen ids once they are settled, and goes on: looked up,
    never iterated."""
    made: SealedInterval | None = None
    """The interval of the frozen ids, once its files are written: a checkpoint that is tried again names the same."""

    @property
    def names(self) -> pa.Array:
        """The names of the conversations, by index."""
        offsets = pa.py_buffer(self.ends.astype(np.int64))
        return pa.Array.from_buffers(pa.large_string(), len(self.heads), [None, offsets, pa.py_buffer(self.text)])

    def written(self, log_position: int) -> tuple[int, int]:
        """Epoch and server_ts of a segment that it covers."""
        slot = slot_of(log_position)
        starts = self.epoch_starts if slot == 0 else self.partitions[slot].epoch_starts
        segment = segment_of(log_position)
        epoch = next((e for first, e in reversed(starts) if first <= segment), 0)
        return epoch, self.segment_ts[log_position]


def snapshot(state: ShardState, shard: int, with_rows: bool = True) -> Snapshot:
    """Snapshot of a state whose ids were just frozen (`imray.core.fold.freeze`). `with_rows`: a checkpoint is made of
    it, and not just an interval of ids; what changed from here on is the next one's."""
    assert state.frozen is not None, "freeze first"
    log = state.log
    text, ends, heads = state.conversations.copy_columns()
    snap = Snapshot(
        shard=shard,
        segment=log.segment,
        epoch=log.epoch,
        digest=log.digest,
        epoch_starts=list(log.epoch_starts),
        table=state.frozen,
        postings=state.frozen_postings,
        text=text,
        ends=ends,
        heads=heads,
        hot=[HotMeta(row, g.partitions, g.ceiling, g.by_rate) for row, g in state.hot.items()],
        partitions=state.frozen_partitions,
        covered=dict(state.covered),
        window=log.window,
        following=log.following,
        seed=state.seed,
        segment_ts=state.segment_ts,
    )
    if with_rows:
        _take_rows(state, snap)
    return snap


def _take_rows(state: ShardState, snap: Snapshot) -> None:
    """What the checkpoint's file has of conversations: all, or what changed since the last one."""
    count = len(snap.heads)
    changed = state.conversations.take_changed()
    member_rows, users_before = state.members.take_changed()
    if state.checkpoints.next_is_base(count, len(changed) + len(member_rows)):
        rows = np.arange(count)
        member_rows = rows
        users_before = 0
    else:
        rows = np.union1d(changed, member_rows)
        snap.before = state.checkpoints.links
        snap.conversations_before = state.checkpoints.conversations
    snap.rows = rows
    snap.chain = state.checkpoints
    snap.users = state.members.users.count
    if len(member_rows) and not state.members.is_empty:
        snap.member_rows = member_rows
        snap.members = state.members.columns(member_rows, users_before)


def seal_frozen(store: Store, snap: Snapshot) -> SealedInterval:
    """The sealed interval of a snapshot's ids; asked again, the same. StorageError where the store refuses."""
    if snap.made is None:
        ends = [
            (slot, snap.covered.get(slot, 0), progress.segment) for slot, progress in sorted(snap.partitions.items())
        ]
        partitions = tuple((slot, before + 1, end) for slot, before, end in ends if end > before)
        snap.made = seal(
            store, snap.shard, snap.seed, snap.table, snap.postings, snap.segment, snap.names,
            snap.written, partitions,
        )  # fmt: skip
    return snap.made
