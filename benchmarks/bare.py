"""The bare disk: write, fsync, link, fsync of the folder, at the pace and the size of an engine run's commits.

`python -m benchmarks.bare FOLDER BYTES INTERVAL_S SECONDS` prints JSON with p50 and p99 in ms.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.harness import percentile

_WARMUP_PUTS = 20
_PUTS_MIN = 100


def main(folder: Path, size: int, interval_s: float, seconds: float) -> dict[str, float]:
    """The latencies of puts that are due every `interval_s`, each counted from its start."""
    data = os.urandom(size)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    count = _WARMUP_PUTS + max(_PUTS_MIN, int(seconds / interval_s))
    first = time.perf_counter()
    latencies = []
    for i in range(count):
        time.sleep(max(0.0, first + i * interval_s - time.perf_counter()))
        start = time.perf_counter()
        put(folder, handle, i, data)
        latencies.append(time.perf_counter() - start)
    os.close(handle)
    kept = latencies[_WARMUP_PUTS:]
    return {"p50_ms": percentile(kept, 0.5) * 1e3, "p99_ms": percentile(kept, 0.99) * 1e3, "puts": len(kept)}


def put(folder: Path, handle: int, number: int, data: bytes) -> None:
    """One durable file under a name that was free: what no commit can do without."""
    temporary = folder / "temporary"
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640)
    try:
        written = os.write(fd, data)
        assert written == len(data), "a local disk takes it all"
        os.fsync(fd)
    finally:
        os.close(fd)
    os.link(temporary, folder / f"{number:020d}")
    os.fsync(handle)
    temporary.unlink()


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
