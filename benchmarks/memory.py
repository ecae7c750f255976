"""What does an idle conversation cost in memory, and what a remembered id?"""

from __future__ import annotations

import gc
import json
import os
import sys
import uuid
from pathlib import Path

import numpy as np

from benchmarks.harness import Figure, Options, Sample, child, column, in_turns
from imray.core.dedup import IdTable
from imray.core.postings import Postings
from imray.core.state import ShardState
from imray.log.sealed import seal
from imray.log.store import LocalStore

QUESTION = "memory per idle conversation and per remembered id, in a process of its own each"
CONVERSATIONS = 1_000_000
IDS = 1_000_000
_CHUNK = 10_000


def run(options: Options) -> list[Figure]:
    """Each side anew for every turn."""
    sides = {
        "conversations": lambda: child("benchmarks.memory", "conversations"),
        "recent": lambda: child("benchmarks.memory", "recent"),
        "sealed": lambda: _sealed_side(options),
    }
    turns = in_turns(sides, options.repeat)
    conversations, recent, sealed = turns["conversations"], turns["recent"], turns["sealed"]
    of = f"of {CONVERSATIONS:,}, conv_id of 36 bytes"
    ids = f"of {IDS:,}"
    return [
        Figure("idle conversation: RSS", "bytes", column(conversations, "rss"), note=of),
        Figure("idle conversation: arrays", "bytes", column(conversations, "arrays"), note=of),
        Figure("recent id: RSS", "bytes", column(recent, "rss"), note=ids),
        Figure("recent id: arrays", "bytes", column(recent, "arrays"), note=ids),
        Figure("sealed id: filter, mapped from its file", "bytes", column(sealed, "filter"), note=ids),
        Figure("sealed id: files on disk", "bytes", column(sealed, "files"), note=ids),
    ]


def _sealed_side(options: Options) -> Sample:
    with options.fresh_folder() as folder:
        return child("benchmarks.memory", "sealed", folder)


def rss() -> int:
    """Bytes of memory that this process has in use now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def conversations() -> dict[str, float]:
    """Conversations as a shard meets them, some at a time."""
    state = ShardState(1)
    _add_conversations(state, np.random.default_rng(0), 1)  # compiled before the first look
    state = ShardState(1)
    before = rss()
    for i in range(0, CONVERSATIONS, _CHUNK):
        _add_conversations(state, np.random.default_rng(i), _CHUNK)
    made = state.conversations
    assert made.count == CONVERSATIONS, "all names differ"
    return {"rss": (rss() - before) / made.count, "arrays": made.nbytes / made.count}


def _add_conversations(state: ShardState, rng: np.random.Generator, count: int) -> None:
    names = "".join(str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(count)).encode()
    data, offsets = np.frombuffer(names, np.uint8), np.arange(0, len(names) + 1, 36, dtype=np.int32)
    which = np.arange(count, dtype=np.int32)
    first = state.conversations.count
    state.conversations.reserve(count)
    state.conversations.add(data, offsets, which)
    state.conversations.heads[first : first + count] = 1


def recent() -> dict[str, float]:
    """Ids since the last checkpoint: as many as one waits for."""
    _fill(1)
    before = rss()
    table = _fill(IDS)
    return {"rss": (rss() - before) / IDS, "arrays": table.nbytes / IDS}


def _fill(count: int) -> IdTable:
    rng, table = np.random.default_rng(0), IdTable(0)
    for number, at in enumerate(range(0, count, _CHUNK), start=1):
        n = min(_CHUNK, count - at)
        words = rng.integers(1, 2**63, (n, 4), dtype=np.uint64)
        rows = np.arange(n, dtype=np.uint32)
        zeros, seq = np.zeros(n, np.int32), np.arange(at + 1, at + n + 1)
        table.add(words[:, 0].copy(), words[:, 1:3].copy(), zeros, seq, words[:, 3].copy(), number, rows)
    return table


def sealed(folder: Path) -> dict[str, float]:
    """The same ids, after a checkpoint."""
    table = _fill(IDS)
    last = int(table.log_position[IDS - 1])
    interval = seal(LocalStore(folder), 0, 1, table, Postings(), last, ["room"], lambda _: (1, 1))
    size = sum((folder / name).stat().st_size for name in interval.interval.names)
    assert interval.bloom is not None
    return {"filter": interval.bloom.words.nbytes / IDS, "files": size / IDS}


if __name__ == "__main__":
    sides = {"conversations": conversations, "recent": recent}
    print(json.dumps(sealed(Path(sys.argv[2])) if sys.argv[1] == "sealed" else sides[sys.argv[1]]()))
