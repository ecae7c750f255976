"""A file of plain columns: an Arrow stream of one record batch, filled in where it is written from.

Owns its memory and layout, so that millions of rows are touched once: fresh memory costs more than sorting them (3 ms a
megabyte on a virtual machine). Does not own what the columns mean (`imray.log.sealed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imray.log import digest as digests
from imray.log.digest import Parts
from imray.log.posix import aligned_memory

_FRAMING_BYTES = 64 * 1024
"""Schema, metadata and the ends of both."""


_LINE_BYTES = 64
"""Of the processor's caches: a filter's block, mapped, is one of them and no two halves."""


def _aligned(types: Mapping[str, type[np.generic]], meta: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What the schema says, and so many blanks that the first column begins with a cache line."""
    said = {**meta, digests.KEY.encode(): digests.BLANK.encode()}
    for blanks in range(0, _LINE_BYTES, 8):
        said[b"blanks"] = b" " * blanks
        few = pa.RecordBatch.from_pydict({name: pa.array(np.zeros(1, dtype)) for name, dtype in types.items()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, few.schema.with_metadata(said)) as stream:
            stream.write_batch(few.replace_schema_metadata(said))
        whole = sink.getvalue()
        with pa.ipc.open_stream(whole) as found:
            if (found.read_next_batch().column(0).buffers()[1].address - whole.address) % _LINE_BYTES == 0:
                break
    return said


class ColumnFile:
    """Columns of one length, in the memory of their file; `seal` ends it."""

    def __init__(self, types: Mapping[str, type[np.generic]], rows: int, meta: Mapping[bytes, bytes]) -> None:
        """`types`: name and dtype of each column. `meta`: what the schema says of the file, beside its digest."""
        # zeros that nobody has written to take no memory: only the file's own is touched
        blank = {name: pa.array(np.zeros(rows, dtype)) for name, dtype in types.items()}
        batch = pa.RecordBatch.from_pydict(blank).replace_schema_metadata(_aligned(types, meta))
        memory = aligned_memory(batch.nbytes + _FRAMING_BYTES)
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(memory))
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        self._memory = memory[: sink.tell()]
        self.columns = {name: self._column(name, dtype, rows) for name, dtype in types.items()}
        """To be filled in; as they are, all zeros."""

    def _column(self, name: str, dtype: type[np.generic], rows: int) -> npt.NDArray[Any]:
        if not rows:
            return np.empty(0, dtype)
        whole = pa.py_buffer(self._memory)
        with pa.ipc.open_stream(whole) as stream:
            values = stream.read_next_batch().column(name).buffers()[1]
        return np.frombuffer(self._memory, dtype, rows, values.address - whole.address)

    def seal(self) -> Parts:
        """The file, whole; the columns may not be changed any more."""
        return digests.seal(self._memory)[0]
