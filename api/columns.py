"""A batch on its way to the logs that take its conversations, and back: split, sent, put together.

Owns which rows go where. Does not own what becomes of a row (`api.outcomes`), nor the ways (`imray.engine.engine`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from api.outcomes import Outcomes
from imray.engine.engine import Engine


async def send_columns(engine: Engine, batch: pa.RecordBatch, service: bool) -> Outcomes:
    """Split a batch over the logs that take its conversations, send all, and put the answers together."""
    of_name = engine.ways(batch)
    used = np.unique(of_name)
    where: dict[int, npt.NDArray[np.intp] | slice] = {}
    batches: dict[int, pa.RecordBatch] = {}
    if len(used) == 1:
        log_number = int(used[0])
        where[log_number] = slice(None)
        batches[log_number] = batch
    else:
        of_row = of_name[batch.column("conv_id").indices.to_numpy()]
        for log_number in used.tolist():
            rows = np.flatnonzero(of_row == log_number)
            where[log_number] = rows
            batches[log_number] = batch.take(pa.array(rows))
    return Outcomes.of(batch.num_rows, await engine.send_batches(batches), where, service)
