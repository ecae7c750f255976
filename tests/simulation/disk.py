"""Logs in memory: names that are taken once, and a writer that is fenced. Messages as the columns of the core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np

from imray.core.columns import Commit, Control, First, Located, Rows
from imray.core.errors import CorruptError, FencedError, InvalidError, StorageError
from imray.core.fold import ReadBack, check_sequencer, commit_read_back
from imray.core.routing import home_of, log_of, log_position_of, segment_of, slot_of
from imray.core.state import ShardState
from imray.kernels.hashing import I64, hash_rows, id_fingerprints
from imray.log.schema import KIND_VOID, Record
from imray.log.segment import GrantNote, SegmentMeta
from tests.simulation.kernel import Future, Process, Simulation

SEED = 7
CONVS = ("room", "hall", "den")
_IDS_MAX = 256


class Msg(NamedTuple):
    """One message: its conversation and id by number; another variant is another payload."""

    conv: int
    id: int
    variant: int = 0

    def __str__(self) -> str:
        return f"{CONVS[self.conv]}/m{self.id}" + "'" * self.variant


def _columns() -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer("".join(CONVS).encode(), np.uint8)
    offsets = np.cumsum([0, *map(len, CONVS)]).astype(np.int32)
    ids = np.stack([np.arange(_IDS_MAX, dtype=np.uint64), np.full(_IDS_MAX, 9, np.uint64)], axis=1)
    keys = hash_rows(data, offsets)
    fps = [id_fingerprints(ids, np.full(_IDS_MAX, c, np.int32), keys, np.uint64(SEED)) for c in range(len(CONVS))]
    return ids, np.stack(fps)


_IDS, _FPS = _columns()


@cache
def _names(convs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    texts = [CONVS[c].encode() for c in convs]
    return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)]).astype(np.int32)


def rows_of(messages: Sequence[Msg]) -> Rows:
    """The columns of some messages."""
    local: dict[int, int] = {}
    conv = np.array([local.setdefault(m.conv, len(local)) for m in messages], np.int32)
    ids = np.array([m.id for m in messages])
    state = np.array([m.conv for m in messages])
    payload = np.array([m.variant for m in messages], np.uint64)
    return Rows(*_names(tuple(local)), conv, _IDS[ids], _FPS[state, ids], payload)


def without_rows(convs: Sequence[int]) -> Rows:
    """Names without messages."""
    none = np.empty(0, np.uint64)
    return Rows(*_names(tuple(convs)), np.empty(0, np.int32), none.reshape(0, 2), none, none)


@dataclass
class Segment:
    """One immutable segment."""

    meta: SegmentMeta
    digest: bytes
    messages: list[Msg]
    seq: I64
    records: list[Record]
    back: ReadBack
    log: int = 0

    @property
    def name(self) -> str:
        """As errors call it."""
        return f"{self.meta.shard}/{self.meta.segment}"

    def __str__(self) -> str:
        what = ", ".join(f"{m}={n}" for m, n in zip(self.messages, self.seq.tolist(), strict=True))
        what += ", ".join(f"{r[0]} {r[1]} kind {r[2]} {r[3]}" for r in self.records)
        grants = "".join(f" grant {g.grant}" for g in self.meta.grants)
        return f"{self.name} epoch {self.meta.epoch} seq {self.meta.sequencer}{grants}: {what or 'fence'}"


def _read_back(messages: list[Msg], seq: I64, records: list[Record]) -> ReadBack:
    if messages:
        return ReadBack(rows_of(messages), seq, np.arange(len(messages), dtype=np.uint32))
    convs = list(dict.fromkeys(CONVS.index(r[0]) for r in records))
    voids, controls = [], []
    for name, number, kind, body in records:
        local = convs.index(CONVS.index(name))
        if kind == KIND_VOID:
            voids.append((local, number, int(str(body["last"]))))
        elif "topics" in body:
            partitions, ceiling = int(str(body["topics"])), int(str(body["ceiling"]))
            controls.append(Control(local, partitions, number, ceiling, bool(body["by_rate"])))
        else:
            controls.append(Control(local, 0, number, number))
    return ReadBack(
        without_rows(convs), np.empty(0, np.int64), np.empty(0, np.uint32), tuple(voids), tuple(controls)
    )  # fmt: skip


def read_commit(state: ShardState, segment: Segment) -> Commit:
    """As `imray.log.rows.read_commit`."""
    meta, back = segment.meta, segment.back
    _, slot = home_of(meta.shard)
    try:
        if slot:
            check_sequencer(state, slot, meta.sequencer)
            convs = list(dict.fromkeys(m.conv for m in segment.messages))
            grants = tuple((convs.index(CONVS.index(g.conv_id)), g.first, g.count) for g in meta.grants)
            back = ReadBack(back.rows, back.seq, back.row, back.voids, back.controls, grants, meta.sequencer)
        return commit_read_back(state, log_position_of(slot, meta.segment), meta.epoch, meta.server_ts, back)
    except InvalidError as e:
        raise CorruptError(segment.name, "numbers", str(e)) from e


@dataclass
class Disk:
    """All logs, and checkpoints by segment."""

    sim: Simulation
    logs: dict[int, list[Segment]] = field(default_factory=dict)
    checkpoints: dict[int, object] = field(default_factory=dict)

    def put(self, process: Process, segment: Segment) -> Future:
        """Put if absent: True, False where the name is taken; StorageError: unknown. A put may already be on its way
        when its process is killed or stopped: then it lands all the same."""
        sim, done = self.sim, Future()
        fails = sim.chance(sim.weather.put_error)
        lands = not fails or sim.chance(0.5)
        twice = sim.chance(sim.weather.repeat)

        def land() -> None:
            free = not lands or self._link(segment)
            if twice and lands:
                free = self._link(segment)
            error = StorageError(f"put {segment.name}: no answer") if fails else None
            sim.after(sim.delay() // 2, lambda: done.set(free, error))

        on_its_way = sim.chance(0.5)
        sim.after(sim.delay(), land if on_its_way else lambda: process.post(land))
        return done

    def _link(self, segment: Segment) -> bool:
        log = self.logs.setdefault(segment.meta.shard, [])
        number = segment.meta.segment
        assert number <= len(log) + 1, f"a hole before {segment.name}"
        if number <= len(log):
            return False
        log.append(segment)
        self.sim.trace("disk", segment)
        return True

    def read_log(self, log: int, after: int, digest: bytes, last: int | None = None) -> Iterator[Segment]:
        """Segments after one, chained."""
        for segment in self.logs.get(log, [])[after:last]:
            if segment.meta.previous != digest.hex():
                raise CorruptError(segment.name, "chain", "it follows another segment")
            digest = segment.digest
            yield segment

    def at(self, log_position: int, log: int) -> Segment:
        """The segment at a place."""
        return self.logs[log][segment_of(log_position) - 1]


class Writer:
    """As `imray.log.writer.Writer`."""

    def __init__(
        self, disk: Disk, process: Process, log: int, segment: int, epoch: int, digest: bytes,
        sequencer: int = 0, by_home: bool = False,
    ) -> None:  # fmt: skip
        self._disk, self._process, self.log = disk, process, log
        self.segment, self.epoch, self.digest, self.sequencer = segment, epoch, digest, sequencer
        self.nonce = f"{disk.sim.rng.getrandbits(64):016x}"
        self._by_home, self._open = by_home, True

    async def fence(self) -> bool:
        """Take the next number with an empty segment of a new epoch."""
        self.epoch += 1
        try:
            await self.put(self.encode([], np.empty(0, np.int64)))
        except FencedError:
            return False
        return True

    def encode(
        self,
        messages: list[Msg],
        seq: I64,
        records: Sequence[Record] = (),
        grants: Sequence[GrantNote] = (),
        sequencer: int = 0,
    ) -> Segment:
        """The next segment: from now on it must be put."""
        self.check()
        self.segment += 1
        rows = len(messages) + len(records)
        meta = SegmentMeta(
            self.log, self.segment, self.epoch, self.nonce, self.digest.hex(), self._disk.sim.now, rows,
            sequencer=sequencer or self.sequencer, grants=list(grants), by_home=self._by_home,
        )  # fmt: skip
        self.digest = self._disk.sim.rng.getrandbits(128).to_bytes(16, "big")
        back = _read_back(messages, seq, list(records))
        return Segment(meta, self.digest, messages, seq, list(records), back)

    async def put(self, segment: Segment) -> None:
        """Make an encoded segment durable; after any error it is closed."""
        self.check()
        try:
            if not await self._disk.put(self._process, segment):
                there = self._disk.logs[self.log][segment.meta.segment - 1]
                if there.meta.nonce != self.nonce or there.digest != segment.digest:
                    raise FencedError(f"epoch {there.meta.epoch} has {segment.name}", by_home=there.meta.by_home)
        except BaseException:
            self._open = False
            raise

    def check(self) -> None:
        """FencedError where it has stopped."""
        if not self._open:
            raise FencedError(f"the writer of log {self.log}, epoch {self.epoch}, has stopped")

    def close(self) -> None:
        """Write no more."""
        self._open = False


class Confirmer:
    """Looks a "maybe" up in the segments."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def confirm(self, rows: Rows, located: Located) -> dict[int, First]:
        """As `imray.log.confirm.Confirmer.confirm`."""
        found: dict[int, First] = {}
        for sealed, which in located.maybe:
            for i in which.tolist():
                for log_position, row in sealed.log_positions.get(int(rows.fps[i]), ()):  # type: ignore[attr-defined]
                    segment = self._disk.at(log_position, log_at(log_position))
                    there = segment.back.rows
                    if (there.ids[row] == rows.ids[i]).all() and there.fps[row] == rows.fps[i]:
                        meta = segment.meta
                        first = int(segment.seq[row]), int(there.payload[row])
                        found[i] = First(*first, log_position, row, meta.epoch, meta.server_ts)
        return found


def log_at(log_position: int) -> int:
    """The log of a place; the home shard is shard 0."""
    return log_of(0, slot_of(log_position))
