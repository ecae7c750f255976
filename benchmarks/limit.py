"""The limit: encode, checksum and put with fsync the columns of commits, on one core, with nothing around it.

`python -m benchmarks.limit FOLDER ROWS CONVERSATIONS SECONDS` prints JSON. The same functions as the engine's, called
in a loop on one thread that is pinned to one core: no Ray, no duplicate check, no numbering, no second commit.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import pin_to_one_core

_TABLES = 4
_WARMUP_S = 0.5


def main(folder: Path, commit_rows: int, conversations: int, seconds: float) -> dict[str, float]:
    """Messages a second, and where the time goes (ns a message)."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    from imray.log.segment import SegmentMeta, encode, segment_name
    from imray.log.store import LocalStore

    store = LocalStore(folder)
    tables = [_commit_table(commit_rows, conversations, seed) for seed in range(_TABLES)]
    previous, rows, size, number = "0" * 32, 0, 0, 0
    spent = [0.0, 0.0]
    begin = time.perf_counter() + _WARMUP_S
    warm = True
    while (start := time.perf_counter()) < begin + seconds:
        if warm and start >= begin:
            warm, rows, size, spent, begin = False, 0, 0, [0.0, 0.0], start
        table = tables[number % _TABLES]
        number += 1
        parts, digest = encode(table, SegmentMeta(0, number, 1, "0" * 32, previous, 0, table.num_rows))
        encoded = time.perf_counter()
        if not store.put_if_absent(segment_name(0, number), parts):
            raise RuntimeError("the folder is not empty")
        put = time.perf_counter()
        previous = digest.hex()
        rows += table.num_rows
        size += sum(len(p) for p in parts)
        spent[0] += encoded - start
        spent[1] += put - encoded
    elapsed = time.perf_counter() - begin
    return {
        "per_second": rows / elapsed,
        "encode_ns": spent[0] / rows * 1e9,
        "put_ns": spent[1] / rows * 1e9,
        "file_bytes": size / rows,
    }


def _commit_table(rows: int, conversations: int, seed: int) -> Any:
    """The table of a commit of batches, as the engine's writer gets it."""
    import numpy as np

    from benchmarks.engine import BATCH_ROWS
    from benchmarks.workload import conversation_names, record_batch
    from imray.log.rows import gather, prepare
    from imray.log.schema import segment_table

    rng, names = np.random.default_rng(seed), conversation_names(conversations)
    sizes = [min(BATCH_ROWS, rows - at) for at in range(0, rows, BATCH_ROWS)]
    table, _ = gather([prepare(record_batch(n, names, rng), 1) for n in sizes])
    return segment_table(table, None, np.arange(1, rows + 1), 1_700_000_000_000)


if __name__ == "__main__":
    pin_to_one_core()
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
