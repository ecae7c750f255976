"""Data folders that the tests of `analytics` read: written by the real writer, some of them wrong on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from imray.core.grants import Granted, Report
from imray.core.routing import shard_of
from imray.log import checkpoint
from imray.log.manifest import create_or_open
from imray.log.rows import gather
from imray.log.schema import SEGMENT_SCHEMA, TEXT, RecordKind, segment_table, void_table
from imray.log.segment import GrantNote
from imray.log.store import LocalStore
from imray.log.writer import Writer
from imray.settings import Settings
from imray.shard.committer import Committer, Records
from imray.shard.grants import Grants
from imray.shard.recovery import become_partition_writer, become_writer
from tests.support.batches import SEED, Msg, commit, msg_id, prepared

NOT_UTF8 = b"\xff\xfe\x00\x80"
SHARDS = 2


class FastStore(LocalStore):
    """A disk that does not sync: no test here loses power."""

    def _sync_file(self, fd: int) -> None:
        pass

    def _sync_folder(self, folder: str) -> None:
        pass


def name_in(shard: int, n: int = 0) -> str:
    """The n-th of the names that belong to a shard."""
    names = (f"conv-{i}" for i in range(10_000))
    return [name for name, _ in zip((x for x in names if shard_of(x, SHARDS) == shard), range(n + 1), strict=False)][n]


def open_shard(root: Path, shard: int, clock_ms: int = 60_000) -> Committer:
    """Become a shard's writer: a new epoch."""
    return Committer.open(FastStore(root), shard, SEED, Settings(), lambda: clock_ms)


def seal(committer: Committer, root: Path) -> None:
    """A checkpoint: what came so far goes into sealed intervals."""
    committer.sealed(checkpoint.write(FastStore(root), committer.freeze(), committer.intervals))


def void(root: Path, shard: int, conv_id: str, first: int, last: int, reason: str) -> None:
    """A void record by a writer of its own."""
    _, writer = become_writer(FastStore(root), shard, SEED, lambda: 70_000)
    writer.append(void_table(conv_id, first, last, reason, 71_000), 71_000)
    writer.close()


def good_log(root: Path) -> Path:
    """Two shards, several conversations, epochs, intervals and voids; bodies of every kind."""
    create_or_open(FastStore(root), SHARDS)
    n = 0
    for shard in range(SHARDS):
        for restart in range(3):
            committer = open_shard(root, shard, 60_000 * (restart + 1))
            for _ in range(3):
                rows = []
                for i in range(4):
                    n += 1
                    body = NOT_UTF8 if n % 5 == 0 else b"text %d" % n
                    rows.append(Msg(name_in(shard, i % 2), msg_id(n), body, f"user-{i}", client_ts=n if i else None))
                commit(committer, rows)
            if restart == 1:
                seal(committer, root)
            committer.writer.close()
        void(root, shard, name_in(shard), 19, 25, "the sequencer died")
        commit(open_shard(root, shard), [Msg(name_in(shard), msg_id(10_000 + shard))])
    return root


def craft(rows: Sequence[dict[str, object]], server_ts: int) -> pa.Table:
    """A segment's table with any numbers: rows need conv_id, conv_seq and client_msg_id."""
    plain = pa.schema([f.with_type(pa.string()) if f.type == TEXT else f for f in SEGMENT_SCHEMA])
    whole = [{"kind": RecordKind.MESSAGE, "sender": "eve", "server_ts": server_ts, "body": b"x", **row} for row in rows]
    return pa.Table.from_pylist(whole, schema=plain).cast(SEGMENT_SCHEMA)


def writer_of(root: Path, shard: int) -> Writer:
    """A writer that numbers nothing: what is appended stands as it is."""
    return become_writer(FastStore(root), shard, SEED, lambda: 80_000)[1]


class HotLog:
    """A home shard and its partitions, driven by hand: what they write is what they write in life."""

    def __init__(self, root: Path, shard: int = 0, clock_ms: int = 60_000) -> None:
        self.root, self.shard, self.now = root, shard, clock_ms
        self.slots: dict[int, Writer] = {}
        self._asks = 0
        self.restart()

    def restart(self) -> None:
        """A new incarnation of the home shard: it fences and reads all logs, and settles what was in flight."""
        store = FastStore(self.root)
        self.committer = Committer.open(store, self.shard, SEED, Settings(), lambda: self.now)
        self.grants = Grants.open(self.committer)
        for slot in self.slots:
            self.open_partition(slot)

    def record(self, records: Records) -> None:
        """Records of the home shard."""
        job = self.committer.record(records)
        self.committer.put(job)
        self.committer.mark_durable(job)

    def make_hot(self, conv: str, partitions: int) -> None:
        """Turn a conversation hot, or change its partitions."""
        self.record(self.grants.make_hot(conv, partitions))
        for slot in range(1, partitions + 1):
            if slot not in self.slots:
                self.open_partition(slot)

    def make_cold(self, conv: str) -> None:
        """Turn it cold."""
        self.record(self.grants.make_cold(conv))

    def open_partition(self, slot: int) -> None:
        """A new writer of a partition; what the one before did not write becomes void."""
        _, writer = become_partition_writer(FastStore(self.root), self.shard, slot, lambda: self.now)
        lost = self.grants.register(slot, writer.epoch, writer.segment)
        assert lost is not None
        self.slots[slot] = writer
        if lost:
            self.record(self.grants.void(lost))
            self.grants.voided(lost)

    def ask(self, slot: int, *messages: Msg) -> tuple[pa.Table, Granted, list[GrantNote], int]:
        """A grant for new messages: what `write` makes durable; if it is not called the block is in flight."""
        table, rows = gather([prepared(messages)])
        self._asks += 1
        granted = self.grants.ask(slot, self.slots[slot].epoch, self._asks, rows, (), 0.0)
        assert isinstance(granted, Granted)
        assert granted.grant
        block, name = self.grants.blocks.outstanding[granted.grant], self.committer.state.conversations.name
        notes = [
            GrantNote(granted.grant, name(int(c)), int(a), int(b - a + 1))
            for c, a, b in zip(block.touched, block.touched_first, block.touched_last, strict=True)
        ]
        return table, granted, notes, slot

    def write(self, table: pa.Table, granted: Granted, notes: list[GrantNote], slot: int) -> list[int]:
        """The segment of a grant, and the report to the home shard: its numbers."""
        writer, seq = self.slots[slot], granted.expanded().seq
        encoded = writer.encode(segment_table(table, None, seq, self.now), self.now, notes, granted.sequencer)
        writer.put(encoded)
        report = Report(granted.grant, encoded.segment, self.now, encoded.digest)
        self.grants.report(slot, writer.epoch, [report])
        return [int(n) for n in seq]

    def send(self, slot: int, *messages: Msg) -> list[int]:
        """New messages through a partition (0: the home shard): their numbers."""
        if slot:
            return self.write(*self.ask(slot, *messages))
        return [row.seq for row in commit(self.committer, messages)]

    def close(self) -> None:
        """All writers stop."""
        for writer in [self.committer.writer, *self.slots.values()]:
            writer.close()


def hot_log(root: Path) -> HotLog:
    """Two conversations of shard 0, one of them hot, cold and hot again with other partitions; restarts of the home
    shard and of a partition while blocks are in flight. Shard 1 has no partitions."""
    create_or_open(FastStore(root), SHARDS)
    commit(open_shard(root, 1), [Msg(name_in(1), msg_id(9000))])
    room, other, ids = name_in(0), name_in(0, 1), iter(range(1, 9000))

    def some(conv: str, n: int) -> list[Msg]:
        return [Msg(conv, msg_id(next(ids)), b"text", f"user-{n}", f"topic-{n % 3}") for _ in range(n)]

    log = HotLog(root)
    log.send(0, *some(room, 2), *some(other, 3))
    log.make_hot(room, 2)
    for n in (1, 2, 3):
        log.send(1, *some(room, n))
        held = log.ask(2, *some(room, 2))
        log.send(0, *some(room, n), *some(other, 1))
        log.write(*held)
    log.ask(1, *some(room, 4))
    log.open_partition(1)
    log.make_hot(room, 3)
    log.make_hot(other, 1)
    log.send(3, *some(room, 2))
    log.ask(2, *some(room, 3))
    log.now += 1000
    log.restart()
    log.send(1, *some(room, 2), *some(other, 2))
    log.send(2, *some(room, 1))
    log.make_cold(room)
    log.send(0, *some(room, 3))
    log.make_hot(room, 2)
    log.send(2, *some(room, 5))
    return log
