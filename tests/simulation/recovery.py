"""Becoming a writer, and checkpoints: as `imray.log.recovery` and `imray.log.checkpoint`, over logs in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from imray.core.dedup import RELEASED, IdTable
from imray.core.errors import CorruptError, InvalidError, UnavailableError
from imray.core.fold import apply
from imray.core.hashing import U64
from imray.core.routing import log_of
from imray.core.state import HotGroup, Position, ShardState
from imray.log.checkpoint import Snapshot
from tests.simulation.disk import CONVS, SEED, Disk, Writer, read_commit, without_rows
from tests.simulation.kernel import Process


@dataclass
class Interval:
    """Sealed ids and postings: what a file of `imray.log.sealed` holds."""

    last: int
    places: dict[int, list[tuple[int, int]]]
    """Place and row by fingerprint."""
    postings: list[tuple[str, int, int, int]]

    def maybe(self, fps: U64) -> np.ndarray | None:
        """As SealedIds."""
        hit = np.array([int(fp) in self.places for fp in fps])
        return hit if hit.any() else None


@dataclass
class Checkpoint:
    """What is written of a snapshot."""

    snapshot: Snapshot
    topics: dict[int, Position]
    names: list[str]
    intervals: list[Interval]


def write_checkpoint(disk: Disk, snap: Snapshot, before: list[Interval]) -> list[Interval]:
    """As `imray.log.checkpoint.write`."""
    text, ends = snap.text.tobytes(), snap.ends.tolist()
    names = [text[a:b].decode() for a, b in pairwise(ends)]
    table, places = snap.table, dict[int, list[tuple[int, int]]]()
    for e in range(table.count):
        if table.conv[e] != RELEASED:
            assert table.place[e] > 0, "an id that is in flight is sealed"
            places.setdefault(int(table.fps[e]), []).append((int(table.place[e]), int(table.row[e])))
    postings = [
        (names[c], p.place, int(a), int(b))
        for p in snap.postings.entries
        for c, a, b in zip(p.conv, p.first, p.last, strict=True)
    ]
    intervals = [*before, Interval(snap.segment, places, postings)]
    topics = {slot: position.copy() for slot, position in snap.topics.items()}
    disk.checkpoints.setdefault(snap.segment, Checkpoint(snap, topics, names, intervals))
    disk.sim.trace("checkpoint", snap.segment, {slot: p.segment for slot, p in topics.items()}, snap.heads.tolist())
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
    state.log = Position(snap.segment, snap.epoch, snap.digest, list(snap.epoch_starts))
    state.topics = {slot: position.copy() for slot, position in found.topics.items()}
    heads = state.conversations.heads
    state.hot = {h.row: HotGroup(h.topics, h.ceiling, int(heads[h.row]), h.by_rate) for h in snap.hot}
    state.recent = IdTable(snap.segment)
    state.sealed = list(found.intervals)
    return state


def replay(disk: Disk, state: ShardState, slot: int = 0) -> None:
    """Fold the rest of a log into the state."""
    position = state.position(slot)
    for segment in disk.read_log(log_of(0, slot), position.segment, position.digest):
        commit = read_commit(state, segment)
        try:
            apply(state, commit, segment.digest)
        except InvalidError as e:
            raise CorruptError(segment.name, "numbers", str(e)) from e


async def become_writer(disk: Disk, process: Process) -> tuple[ShardState, Writer]:
    """Recover the home shard: its own log first, then those of its sub-topics."""
    state = restore(disk)
    writer = await fence_log(disk, process, 0, state.log, 0, lambda: replay(disk, state))
    for slot in sorted(state.topics):
        await fence_topic(disk, process, state, slot)
    return state, writer


async def fence_topic(disk: Disk, process: Process, state: ShardState, slot: int) -> None:
    """Put the home shard's fence into a sub-topic's log and fold what landed before it."""
    log, position = log_of(0, slot), state.topics[slot]
    writer = await fence_log(
        disk, process, log, position, state.log.epoch, lambda: replay(disk, state, slot), by_home=True
    )
    writer.close()


async def become_topic_writer(disk: Disk, process: Process, slot: int) -> tuple[Position, Writer]:
    """Become the writer of a sub-topic's log."""
    found = newest(disk)
    position = found.topics[slot].copy() if found is not None and slot in found.topics else Position()
    log = log_of(0, slot)

    def follow() -> None:
        for segment in disk.read_log(log, position.segment, position.digest):
            position.advance(segment.meta.segment, segment.meta.epoch, segment.digest)
            position.sequencer = max(position.sequencer, segment.meta.sequencer)

    return position, await fence_log(disk, process, log, position, None, follow)


async def fence_log(
    disk: Disk, process: Process, log: int, position: Position, sequencer: int | None,
    read_on: Callable[[], None], by_home: bool = False,
) -> Writer:  # fmt: skip
    """Read a log to its end and take the next number, until both come together."""
    for _ in range(100):
        read_on()
        await process.sleep(disk.sim.delay() // 4)
        named = position.sequencer if sequencer is None else sequencer
        writer = Writer(disk, process, log, position.segment, position.epoch, position.digest, named, by_home)
        if await writer.fence():
            read_on()
            if position.segment == writer.segment:
                return writer
    raise UnavailableError(f"log {log}: other writers keep taking it")
