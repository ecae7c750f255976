"""A batch as Arrow columns: the request's rows, and the merge of outcomes over partial retries.

Owns the columns of `POST /v1/messages:batch` with the media type below. Does not own retries or HTTP.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imray.core.errors import InvalidError
from imray.core.ids import ID_BYTES, format_client_msg_id

ARROW_STREAM = "application/vnd.apache.arrow.stream"
UNKNOWN_OUTCOME = 504
RETRIED_OUTCOMES = (503, UNKNOWN_OUTCOME)
SETTLED_OUTCOMES = (200, 201, 409, 500)
"""What settles a message that an earlier try may have stored: the server looked whether its id is in the log, or
cannot look. Every other status is about the retry alone."""
_NEEDED = ("conv_id", "client_msg_id", "body")


class ArrowBatch:
    """Rows on their way: which are still open, and what became of the others."""

    headers = {"content-type": ARROW_STREAM, "accept": ARROW_STREAM}  # noqa: RUF012 never changed

    def __init__(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Raises InvalidError for rows without conv_id, client_msg_id (16 bytes, no null) or body."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        missing = [name for name in _NEEDED if name not in table.column_names]
        if missing:
            raise InvalidError(f"the columns {', '.join(missing)} are missing")
        ids = table.column("client_msg_id")
        if ids.type != pa.binary(ID_BYTES) or ids.null_count:
            raise InvalidError(f"client_msg_id must be fixed_size_binary(16) without nulls, not {ids.type}")
        self._rows = table
        self._open = np.arange(table.num_rows)
        self._unsure = np.zeros(table.num_rows, bool)
        """Those that an earlier try may have stored: a later refusal says nothing about that try."""
        self._outcomes: pa.Table | None = None

    @property
    def done(self) -> bool:
        """Whether every row has an outcome that is final."""
        return not len(self._open)

    def open_ids(self) -> tuple[str, ...]:
        """The ids of the rows without a final outcome, in UUID notation."""
        ids = self._rows.column("client_msg_id").take(pa.array(self._open)).to_pylist()
        return tuple(format_client_msg_id(raw) for raw in ids)

    def outcomes(self) -> pa.Table | None:
        """One row for each row of the request, in its order; None before the first answer."""
        return self._outcomes

    def encode(self) -> bytes:
        """The open rows, in their order, as an Arrow stream."""
        rows = self._rows if self._outcomes is None else self._rows.take(pa.array(self._open))
        out = io.BytesIO()
        with pa.ipc.new_stream(out, rows.schema) as stream:
            stream.write_table(rows)
        return out.getvalue()

    def lost(self) -> None:
        """A try may have stored every open row."""
        self._unsure[self._open] = True
        if self._outcomes is not None:
            status = _status_of(self._outcomes).copy()
            status[self._open] = UNKNOWN_OUTCOME
            self._outcomes = _with_status(self._outcomes, status)

    def take(self, content: bytes) -> None:
        """Merge an answer for the open rows. Raises ValueError where it does not fit them."""
        answer = pa.ipc.open_stream(content).read_all()
        if answer.num_rows != len(self._open) or "status" not in answer.column_names:
            raise ValueError(f"{answer.num_rows} outcomes for {len(self._open)} messages")
        status = _status_of(answer)
        self._unsure[self._open] |= status == UNKNOWN_OUTCOME
        unknown = self._unsure[self._open] & ~np.isin(status, SETTLED_OUTCOMES)
        status = np.where(unknown, UNKNOWN_OUTCOME, status)
        answer = _with_status(answer, status)
        still = np.isin(status, RETRIED_OUTCOMES)
        if self._outcomes is None:
            self._outcomes = answer
        else:
            settled = np.setdiff1d(np.arange(self._rows.num_rows), self._open, assume_unique=True)
            both = pa.concat_tables([self._outcomes.take(pa.array(settled)), answer])
            order = np.argsort(np.concatenate([settled, self._open]))
            self._outcomes = both.take(pa.array(order))
        self._open = self._open[still]


def _status_of(outcomes: pa.Table) -> npt.NDArray[np.int64]:
    status: npt.NDArray[np.int64] = outcomes.column("status").cast(pa.int64()).to_numpy()
    return status


def _with_status(outcomes: pa.Table, status: npt.NDArray[np.int64]) -> pa.Table:
    at = outcomes.schema.get_field_index("status")
    column = outcomes.schema.field(at)
    return outcomes.set_column(at, column, pa.array(status, column.type))
