"""What tests of the engine send and read: messages as values, batches made of them, answers row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from imray.core.columns import Rows
from imray.core.replies import Appended
from imray.log import checkpoint
from imray.log.rows import Prepared, gather, prepare
from imray.log.schema import BATCH_SCHEMA, MS, encode_text, from_ipc, to_ipc
from imray.log.sealed_filter import grown
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard.committer import Committer

SEED = 0x1234_5678_9ABC_DEF0
NEW, DUPLICATE, CONFLICT = "new", "duplicate", "conflict"


@dataclass(frozen=True)
class Msg:
    """One message as a client has it."""

    conv: str
    id: bytes
    body: bytes = b"hello"
    sender: str = "alice"
    topic: str | None = None
    content_type: str | None = None
    client_ts: int | None = None

    @property
    def payload(self) -> tuple[bytes, str, str | None, str | None]:
        """What tells a retry from a conflict."""
        return self.body, self.sender, self.topic, self.content_type


@dataclass(frozen=True)
class Row:
    """What the engine answered for one message."""

    status: str
    seq: int
    segment: int
    row: int
    epoch: int
    server_ts: int


def msg_id(n: int) -> bytes:
    """A message id that is the same for the same n."""
    return n.to_bytes(16, "big")


def batch_of(messages: Sequence[Msg]) -> pa.RecordBatch:
    """The send batch of messages."""
    columns = [
        encode_text([m.conv for m in messages]),
        pa.array([m.id for m in messages], pa.binary(16)),
        encode_text([m.sender for m in messages]),
        encode_text([m.topic for m in messages]),
        encode_text([m.content_type for m in messages]),
        pa.array([m.client_ts for m in messages], pa.int64()).view(MS),
        pa.array([m.body for m in messages], pa.binary()),
    ]
    return pa.record_batch(columns, schema=BATCH_SCHEMA)


def ipc_of(messages: Sequence[Msg]) -> pa.Buffer:
    """What goes to `WriteLoop.append`."""
    return to_ipc(batch_of(messages))


def prepared(messages: Sequence[Msg], seed: int = SEED) -> Prepared:
    """What goes to `Committer.commit`, by way of Arrow IPC as in life."""
    return prepare(from_ipc(ipc_of(messages)), seed)


def rows_of(messages: Sequence[Msg], seed: int = SEED) -> Rows:
    """What goes to the sequencer."""
    return gather([prepared(messages, seed)])[1]


def answers_of(answer: Appended) -> list[Row]:
    """An answer row by row, as a gateway reads it."""
    seqs, firsts = answer.seqs(), answer.firsts
    old = {int(at): j for j, at in enumerate(firsts.at)} if firsts is not None else {}
    out, row = [], answer.row
    for i in range(answer.rows):
        j = old.get(i)
        if j is None or firsts is None:
            out.append(Row(NEW, int(seqs[i]), answer.log_position, row, answer.epoch, answer.server_ts))
            row += 1
        else:
            status = CONFLICT if firsts.conflict[j] else DUPLICATE
            log_position = (int(c[j]) for c in (firsts.log_position, firsts.row, firsts.epoch, firsts.server_ts))
            out.append(Row(status, int(seqs[i]), *log_position))
    return out


def commit(committer: Committer, *requests: Sequence[Msg]) -> list[Row]:
    """Commit requests in one segment: their rows' answers one after the other."""
    rows: list[Row] = []
    for answer in committer.commit([prepared(r) for r in requests]):
        assert isinstance(answer, Appended)
        rows += answers_of(answer)
    return rows


def open_committer(root: Path | LocalStore, settings: Settings | None = None, clock_ms: int = 1000) -> Committer:
    """Become the writer of shard 0."""
    store = root if isinstance(root, LocalStore) else LocalStore(root)
    return Committer.open(store, 0, SEED, settings or Settings(), lambda: clock_ms)


def seal(committer: Committer) -> None:
    """Make a checkpoint, as the shard's upkeep does."""
    files = checkpoint.write(committer.store, committer.freeze(), committer.intervals)
    committer.sealed(files, grown(committer.state.sealed_filter, files))


def merge_all(committer: Committer) -> None:
    """Merge sealed intervals as long as that is due."""
    while (step := checkpoint.merge_step(committer.store, committer.intervals)) is not None:
        assert committer.merged(*step)


def collect(committer: Committer) -> None:
    """Delete the derived files that nobody needs any more."""
    committer.collect(*committer.take_replaced())


def random_fps(n: int, seed: int = 0) -> np.ndarray:
    """Uniform fingerprints."""
    return np.random.default_rng(seed).integers(0, 2**64, n, np.uint64)


def flips(size: int, regions: Iterable[tuple[int, int]] = (), every: int = 1) -> list[int]:
    """Places of a file to damage: each `every` bytes, and all of some regions."""
    log_positions = set(range(0, size, every))
    for a, b in regions:
        log_positions.update(range(max(0, a), min(size, b)))
    return sorted(log_positions)
