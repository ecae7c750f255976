"""A data folder with many small segments that nobody has merged, made without a running system.

`python -m tests.support.many_segments FOLDER --segments 200000` takes a minute. The log is what a shard would have
written: a fence, then commits of a few messages, chained; a manifest beside it. Only the fsync is missing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from imray.core.routing import shard_of
from imray.log.manifest import create_or_open
from imray.log.schema import FEW_ROWS_MAX, MS, SEGMENT_SCHEMA, TEXT, RecordKind
from imray.log.segment import FIRST_PREVIOUS, SegmentMeta, encode, segment_name
from imray.log.store import LocalStore

BODY_BYTES = 100
_CHUNK_ROWS = 8192
"""Made as columns at once."""
_BEGIN_MS = 1_700_000_000_000
_EPOCH = 1
_SEED = 20
Change = Callable[[int, pa.Table], pa.Table]
"""Of a segment's number and its rows: other rows, to plant what an audit must find."""
_PLAIN_SCHEMA = pa.schema([f.with_type(pa.string()) if f.type == TEXT else f for f in SEGMENT_SCHEMA])


@dataclass(frozen=True)
class ManySegments:
    """What a folder was made with."""

    root: Path
    shards: int
    segments: int
    """Of all logs together, fences included."""
    messages: int
    conversations: list[str]
    """All conversations, those of shard 0 first."""
    seconds: float

    def head(self, conv_id: str) -> int:
        """The last number of a conversation."""
        own = [name for name in self.conversations if shard_of(name, self.shards) == shard_of(conv_id, self.shards)]
        messages = self.messages // self.shards
        return len(range(own.index(conv_id), messages, len(own)))


class UnsyncedStore(LocalStore):
    """A disk that does not sync: whoever makes a folder loses it with the power."""

    def _sync_file(self, fd: int) -> None:
        pass

    def _sync_folder(self, folder: str) -> None:
        pass


def make_segments(
    root: Path,
    segments: int,
    shards: int = 1,
    rows: int = 1,
    conversations: int = 64,
    epochs: int = 1,
    change: Change | None = None,
) -> ManySegments:
    """Fill a new folder with `segments` segments of `rows` messages each, divided evenly among the shards' logs, and
    in each a fence at the beginning of each epoch.

    Messages go to a shard's conversations (`conversations` of each) in turn. ValueError for more than FEW_ROWS_MAX
    rows, or where a log would be empty."""
    if not 1 <= rows <= FEW_ROWS_MAX:
        raise ValueError(f"{rows} rows in a segment: 1 to {FEW_ROWS_MAX} are possible")
    each = segments // shards
    if each < epochs:
        raise ValueError(f"{segments} segments are too few for {shards} logs of {epochs} epochs")
    began = time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    store = UnsyncedStore(root)
    create_or_open(store, shards)
    names: list[str] = []
    for shard in range(shards):
        own = conversations_of(shard, shards, conversations)
        tables = _tables(own, (each - epochs) * rows, rows, shard)
        _write_log(store, shard, tables, each, epochs, change or _as_it_is)
        names += own
    messages = shards * (each - epochs) * rows
    return ManySegments(root, shards, shards * each, messages, names, time.monotonic() - began)


def conversations_of(shard: int, shards: int, count: int) -> list[str]:
    """The first `count` names that belong to a shard."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        name = f"room-{number:06d}"
        if shard_of(name, shards) == shard:
            found.append(name)
        number += 1
    return found


def _as_it_is(_number: int, table: pa.Table) -> pa.Table:
    return table


def _write_log(
    store: LocalStore, log: int, tables: Iterator[pa.Table], segments: int, epochs: int, change: Change
) -> None:
    """A whole log: its fences stand at even distances."""
    fences = {1 + i * (segments // epochs) for i in range(epochs)}
    previous = FIRST_PREVIOUS
    epoch = _EPOCH - 1
    for number in range(1, segments + 1):
        is_fence = number in fences
        epoch += is_fence
        table = SEGMENT_SCHEMA.empty_table() if is_fence else change(number, next(tables))
        meta = SegmentMeta(
            shard=log,
            segment=number,
            epoch=epoch,
            nonce=f"made-{log}-{epoch}",
            previous=previous,
            server_ts=_BEGIN_MS if is_fence else table["server_ts"][0].value,
            rows=table.num_rows,
        )
        parts, digest = encode(table, meta)
        if not store.put_if_absent(segment_name(log, number), parts):
            raise ValueError(f"{store.root} is not empty")
        previous = digest.hex()


def _tables(names: list[str], messages: int, rows: int, seed: int) -> Iterator[pa.Table]:
    """`messages` messages in tables of `rows`, whose conversations take turns."""
    rng = np.random.default_rng((_SEED, seed))
    whole = _CHUNK_ROWS // rows * rows
    for first in range(0, messages, whole):
        chunk = _chunk(names, first, min(whole, messages - first), rows, rng)
        for at in range(0, chunk.num_rows, rows):
            yield chunk.slice(at, rows)


def _chunk(names: list[str], first: int, count: int, rows: int, rng: np.random.Generator) -> pa.Table:
    """The messages from number `first` (of the log) on."""
    numbers = np.arange(first, first + count)
    bodies = rng.integers(97, 123, count * BODY_BYTES, dtype=np.uint8).tobytes()
    ends = np.arange(0, count * BODY_BYTES + 1, BODY_BYTES, dtype=np.int32)
    ids = rng.bytes(16 * count)
    columns = {
        "conv_id": pa.array(names).take(pa.array(numbers % len(names))),
        "conv_seq": pa.array(numbers // len(names) + 1),
        "kind": pa.array(np.full(count, RecordKind.MESSAGE, np.int8)),
        "client_msg_id": pa.Array.from_buffers(pa.binary(16), count, [None, pa.py_buffer(ids)]),
        "sender": pa.array(["alice"] * count),
        "topic": pa.nulls(count, pa.string()),
        "content_type": pa.nulls(count, pa.string()),
        "client_ts": pa.nulls(count, MS),
        "server_ts": pa.array(_BEGIN_MS + numbers // rows).cast(MS),
        "body": pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(ends), pa.py_buffer(bodies)]),
    }
    return pa.table(columns, schema=_PLAIN_SCHEMA)


def main() -> None:
    """Make a folder, and say what is in it."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.many_segments", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--segments", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1, help="messages in a segment")
    parser.add_argument("--conversations", type=int, default=64, help="of each shard")
    a = parser.parse_args()
    made = make_segments(a.folder, a.segments, a.shards, a.rows, a.conversations)
    print(f"{made.segments} segments with {made.messages} messages in {made.seconds:.1f} s: {made.root}")


if __name__ == "__main__":
    main()
