"""The ids of sealed intervals of version 1: fingerprint, place and row. The segment says the rest.

Read only: such an interval is made anew as one of the present version in the background.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pyarrow as pa

from imray.core.errors import CorruptError, DerivedError
from imray.core.intervals import Interval
from imray.kernels.arrays import U64
from imray.log import digest as digests
from imray.log.derived import read_derived, why
from imray.log.segment import META_KEY

FILES = {"ids": ["fp", "place", "row"], "bloom": ["words"]}
"""The columns of each kind of Arrow file."""


def open_arrow(read: Callable[[str], bytes | memoryview | None], interval: Interval, kind: str) -> pa.RecordBatch:
    """The one batch of an interval's Arrow file, every byte verified. DerivedError where it is missing or changed."""
    name = interval.name(kind)
    data = read_derived(lambda: read(name), name)
    try:
        digests.verify(data, name)
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            said = msgspec.json.decode((reader.schema.metadata or {}).get(META_KEY, b""), type=Interval)
            batch = reader.read_next_batch()
    except (CorruptError, msgspec.DecodeError, pa.ArrowException) as e:
        raise DerivedError(name, f"it does not verify: {why(e)}") from e
    if said != interval or batch.schema.names != FILES[kind]:
        raise DerivedError(name, "it is another interval's file, or of another kind")
    return batch


def candidates(ids: pa.RecordBatch, fps: U64) -> list[tuple[int, int, int]]:
    """(position in `fps`, place, row) of every entry with an equal fingerprint."""
    column = ids.column("fp").to_numpy()
    low = np.searchsorted(column, fps, "left")
    high = np.searchsorted(column, fps, "right")
    log_position = ids.column("place").to_numpy()
    row = ids.column("row").to_numpy()
    return [
        (int(i), int(log_position[e]), int(row[e])) for i in np.flatnonzero(high > low) for e in range(low[i], high[i])
    ]
