"""Becoming a writer, and checkpoints: as `imray.log.recovery` and `imray.log.checkpoint`, over logs in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from imray.core.dedup import RELEASED, IdTable
from imray.core.errors import CorruptError, InvalidError, UnavailableError
from imray.core.fold import apply
from imray.core.routing import log_of
from imray.core.state import HotGroup, LogProgress, ShardState
from imray.kernels.hashing import U64
from imray.log.checkpoint import Snapshot
from tests.simulation.disk import CONVS, SEED, Disk, Writer, read_commit, without_rows
from tests.simulation.kernel import Process


@dataclass
class Interval:
    """Sealed ids and postings: what a file of `imray.log.sealed` holds."""

    last: int
    log_positions: dict[int, list[tuple[int, int]]]
    """Place and row by fingerprint."""
    postings: list[tuple[str, int, int, int]]

    def maybe(self, fps: U64) -> np.ndarray | None:
        """As SealedIds."""
        hit = np.array([int(fp) in self.log_positions for fp in fps])
        return hit if hit.any() else None


@dataclass
class Checkpoint:
    """What is written of a snapshot."""

    snapshot: Snapshot
    partitions: dict[int, LogProgress]
    names: list[str]
    intervals: list[Interval]


def write_checkpoint(disk: Disk, snap: Snapshot, before: list[Interval]) -> list[Interval]:
    """As `imray.log.checkpoint.write`."""
    text, ends = snap.text.tobytes(), snap.ends.tolist()
    names = [text[a:b].decode() for a, b in pairwise(ends)]
    table, log_positions = snap.table, dict[int, list[tuple[int, int]]]()
    for e in range(table.count):
        if table.conv[e] != RELEASED:
            assert table.log_position[e] > 0, "an id that is in flight is sealed"
            log_positions.setdefault(int(table.fps[e]), []).append((int(table.log_position[e]), int(table.row[e])))
    postings = [
        (names[c], p.log_position, int(a), int(b))
        for p in snap.postings.entries
        for c, a, b in zip(p.conv, p.first, p.last, strict=True)
    ]
    intervals = [*before, Interval(snap.segment, log_positions, postings)]
    partitions = {slot: progress.copy() for slot, progress in snap.partitions.items()}
    disk.checkpoints.setdefault(snap.segment, Checkpoint(snap, partitions, names, intervals))
    disk.sim.trace("checkpoint", snap.segment, {slot: p.segment for slot, p in partitions.items()}, snap.heads.tolist())
    return intervals


def newest(disk: Disk) -> Checkpoint | None:
    """The newest checkpoint."""
    found = disk.checkpoints[max(disk.checkpoints)] if disk.checkpoints else None
    assert found is None or isinstance(found, Checkpoint)
    return found


def restore(disk: Disk) -> ShardState:
    """As `imray.log.checkpoint.restore`."""
    state, found = ShardState(SEED), newest(disk)
    if found is None:
        return state
    snap = found.snapshot
    n = len(found.names)
    if n:
        rows = without_rows([CONVS.index(name) for name in found.names])
        state.conversations.add(rows.names_data, rows.names_offsets, np.arange(n, dtype=np.int32))
        state.conversations.heads[:n] = state.conversations.stable[:n] = snap.heads
    state.log = LogProgress(snap.segment, snap.epoch, snap.digest, list(snap.epoch_starts))
    state.partitions = {slot: progress.copy() for slot, progress in found.partitions.items()}
    heads = state.conversations.heads
    state.hot = {h.row: HotGroup(h.partitions, h.ceiling, int(heads[h.row]), h.by_rate) for h in snap.hot}
    state.recent = IdTable(snap.segment)
    state.sealed = list(found.intervals)
    return state


def replay(disk: Disk, state: ShardState, slot: int = 0) -> None:
    """Fold the rest of a log into the state."""
    progress = state.progress(slot)
    for segment in disk.read_log(log_of(0, slot), progress.segment, progress.digest):
        commit = read_commit(state, segment)
        try:
            apply(state, commit, segment.digest)
        except InvalidError as e:
            raise CorruptError(segment.name, "numbers", str(e)) from e


async def become_writer(disk: Disk, process: Process) -> tuple[ShardState, Writer]:
    """Recover the home shard: its own log first, then those of its partitions."""
    state = restore(disk)
    writer = await fence_log(disk, process, 0, state.log, 0, lambda: replay(disk, state))
    for slot in sorted(state.partitions):
        await fence_partition(disk, process, state, slot)
    return state, writer


async def fence_partition(disk: Disk, process: Process, state: ShardState, slot: int) -> None:
    """Put the home shard's fence into a partition's log and fold what landed before it."""
    log, progress = log_of(0, slot), state.partitions[slot]
    writer = await fence_log(
        disk, process, log, progress, state.log.epoch, lambda: replay(disk, state, slot), by_home=True
    )
    writer.close()


async def become_partition_writer(disk: Disk, process: Process, slot: int) -> tuple[LogProgress, Writer]:
    """Become the writer of a partition's log."""
    found = newest(disk)
    progress = found.partitions[slot].copy() if found is not None and slot in found.partitions else LogProgress()
    log = log_of(0, slot)

    def follow() -> None:
        for segment in disk.read_log(log, progress.segment, progress.digest):
            progress.advance(segment.meta.segment, segment.meta.epoch, segment.digest)
            progress.sequencer = max(progress.sequencer, segment.meta.sequencer)

    return progress, await fence_log(disk, process, log, progress, None, follow)


async def fence_log(
    disk: Disk, process: Process, log: int, progress: LogProgress, sequencer: int | None,
    read_on: Callable[[], None], by_home: bool = False,
) -> Writer:  # fmt: skip
    """Read a log to its end and take the next number, until both come together."""
    for _ in range(100):
        read_on()
        await process.sleep(disk.sim.delay() // 4)
        named = progress.sequencer if sequencer is None else sequencer
        writer = Writer(disk, process, log, progress.segment, progress.epoch, progress.digest, named, by_home)
        if await writer.fence():
            read_on()
            if progress.segment == writer.segment:
                return writer
    raise UnavailableError(f"log {log}: other writers keep taking it")
