"""Data folders that the tests of `analytics` read: written by the real writer, some of them wrong on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from batches import SEED, Msg, commit, msg_id

from imray.cluster.committer import Committer
from imray.core.routing import shard_of
from imray.log import checkpoint
from imray.log.manifest import create_or_open
from imray.log.recovery import become_writer
from imray.log.schema import KIND_MESSAGE, SEGMENT_SCHEMA, TEXT, void_table
from imray.log.store import LocalStore
from imray.log.writer import Writer
from imray.settings import Settings

NOT_UTF8 = b"\xff\xfe\x00\x80"
SHARDS = 2


class FastStore(LocalStore):
    """A disk that does not sync: no test here loses power."""

    def _sync_file(self, fd: int) -> None:
        pass

    def _sync_folder(self, folder: Path) -> None:
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
    whole = [{"kind": KIND_MESSAGE, "sender": "eve", "server_ts": server_ts, "body": b"x", **row} for row in rows]
    return pa.Table.from_pylist(whole, schema=plain).cast(SEGMENT_SCHEMA)


def writer_of(root: Path, shard: int) -> Writer:
    """A writer that numbers nothing: what is appended stands as it is."""
    return become_writer(FastStore(root), shard, SEED, lambda: 80_000)[1]
