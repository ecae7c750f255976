"""What a checkpoint takes of a state at the moment of the freeze, and the sealed interval of its ids.

Does not own the checkpoint's file (`imray.log.checkpoint`), nor an interval's (`imray.log.sealed`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from imray.core.dedup import IdTable
from imray.core.log_progress import LogProgress
from imray.core.member_state import MembersColumns
from imray.core.postings import Postings
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
    """None: there are none."""
    covered: dict[int, int] = field(default_factory=dict)
    """The last segment of each log, by slot, that intervals covered before."""
    window: int = 1
    following: int = 0
    """Of the shard's own log, as in `LogProgress`."""
    made: SealedInterval | None = None
    """The interval of the frozen ids, once its files are written: a checkpoint that is tried again names the same."""

    @property
    def names(self) -> pa.Array:
        """The names of the conversations, by index."""
        offsets = pa.py_buffer(self.ends.astype(np.int64))
        return pa.Array.from_buffers(pa.large_string(), len(self.heads), [None, offsets, pa.py_buffer(self.text)])


def snapshot(state: ShardState, shard: int) -> Snapshot:
    """Snapshot of a state whose ids were just frozen (`imray.core.fold.freeze`)."""
    assert state.frozen is not None, "freeze first"
    log = state.log
    text, ends, heads = state.conversations.copy_columns()
    return Snapshot(
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
        members=None if state.members.is_empty else state.members.columns(len(heads)),
        covered=dict(state.covered),
        window=log.window,
        following=log.following,
    )


def seal_frozen(store: Store, snap: Snapshot) -> SealedInterval:
    """The sealed interval of a snapshot's ids; asked again, the same. StorageError where the store refuses."""
    if snap.made is None:
        ends = [
            (slot, snap.covered.get(slot, 0), progress.segment) for slot, progress in sorted(snap.partitions.items())
        ]
        partitions = tuple((slot, before + 1, end) for slot, before, end in ends if end > before)
        snap.made = seal(store, snap.shard, snap.table, snap.postings, snap.segment, snap.names, partitions)
    return snap.made
