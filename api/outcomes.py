"""What became of a batch's messages: shards' answers put back into the request's order, as JSON or Arrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from api.problems import STATUS_OF_REFUSAL, told, told_unreadable
from imray.core.ids import ID_BYTES, format_client_msg_id
from imray.core.replies import NOT_A_MEMBER, WAITS, Appended, Refusal
from imray.core.routing import home_of, offset_of

CREATED = 201
DUPLICATE = 200
CONFLICT = 409
FORBIDDEN = 403
"""The sender is no member, or may only read."""
WAITING = 504
UNREADABLE = 500
"""The id was sent before, in a file that does not verify."""
ARROW_TYPE = "application/vnd.apache.arrow.stream"
_NUMBERS = ("conv_seq", "epoch", "shard", "segment", "row", "server_ts", "stable_seq")
_CONFLICT_DETAIL = "the id was used with another payload; conv_seq is the first one's"


@dataclass
class Outcomes:
    """One value a message and column; numbers stand where `status` is 200, 201 or 409."""

    status: npt.NDArray[np.uint16]
    columns: dict[str, npt.NDArray[np.int64]]
    details: dict[int, str]
    """By status, for those that failed."""

    @classmethod
    def of(
        cls,
        rows: int,
        answers: Mapping[int, Appended | Refusal],
        where: Mapping[int, npt.NDArray[np.intp] | slice],
        service: bool = False,
    ) -> Outcomes:
        """From each log's answer; `where[log]` are the request's rows that it answers, in their order. `service`: who
        asks may know of files."""
        status = np.full(rows, 504, np.uint16)
        columns = {name: np.full(rows, -1, np.int64) for name in _NUMBERS}
        details = {CONFLICT: _CONFLICT_DETAIL, FORBIDDEN: NOT_A_MEMBER}
        for log, answer in answers.items():
            at = where[log]
            if isinstance(answer, Refusal):
                code, _ = STATUS_OF_REFUSAL[answer.why]
                status[at] = code
                details[code] = told(answer, service)
                continue
            for name, values in numbers(home_of(log)[0], answer).items():
                columns[name][at] = values
            status[at] = statuses(answer)
            if answer.firsts is not None and answer.firsts.waiting.any():
                details[WAITING] = WAITS
            if answer.firsts is not None and answer.firsts.why:
                details[UNREADABLE] = told_unreadable(answer.firsts.why, service)
        return cls(status, columns, details)

    @property
    def failures(self) -> npt.NDArray[np.uint16]:
        """The statuses of messages that have no number of their own."""
        return self.status[self.status > CREATED]

    def json(self, conv_ids: Sequence[str], ids: pa.Array) -> bytes:
        """`api.schemas.BatchResponse`."""
        raw = np.frombuffer(ids.buffers()[1], np.uint8)[ids.offset * ID_BYTES :][: len(ids) * ID_BYTES].tobytes()
        results = []
        rows = zip(self.status.tolist(), conv_ids, *(self.columns[n].tolist() for n in _NUMBERS), strict=True)
        for i, (status, conv_id, seq, epoch, shard, segment, row, server_ts, stable) in enumerate(rows):
            result: dict[str, object] = {
                "status": status,
                "conv_id": conv_id,
                "client_msg_id": format_client_msg_id(raw[16 * i : 16 * i + 16]),
            }
            if seq >= 0:
                result["conv_seq"] = seq
                result["duplicate"] = status == DUPLICATE
                result["epoch"] = epoch
                result["offset"] = {"shard": shard, "segment": segment, "row": row}
                result["server_ts"] = server_ts
                result["stable_seq"] = stable
            if status > CREATED:
                result["detail"] = self.details[status]
            results.append(result)
        created = int(np.count_nonzero(self.status == CREATED))
        duplicates = int(np.count_nonzero(self.status == DUPLICATE))
        return orjson.dumps(
            {
                "results": results,
                "created": created,
                "duplicates": duplicates,
                "failed": len(results) - created - duplicates,
            }
        )

    def arrow(self) -> pa.Buffer:
        """The same as an Arrow IPC stream, one row a message; -1 where there is no number."""
        c = self.columns
        batch = pa.RecordBatch.from_pydict(
            {
                "status": pa.array(self.status),
                "conv_seq": c["conv_seq"],
                "duplicate": pa.array(self.status == DUPLICATE),
                "epoch": c["epoch"],
                "shard": pa.array(c["shard"].astype(np.int32)),
                "segment": c["segment"],
                "row": c["row"],
                "server_ts": c["server_ts"],
                "stable_seq": c["stable_seq"],
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue()


def statuses(answer: Appended) -> npt.NDArray[np.uint16]:
    """The HTTP status of each row of an answer."""
    status = np.full(answer.rows, CREATED, np.uint16)
    if answer.firsts is not None:
        status[answer.firsts.at] = np.where(answer.firsts.conflict, CONFLICT, DUPLICATE)
        status[answer.firsts.at[answer.firsts.unreadable]] = UNREADABLE
        status[answer.firsts.at[answer.firsts.waiting]] = WAITING
        status[answer.firsts.at[answer.firsts.forbidden]] = FORBIDDEN
    return status


def numbers(shard: int, answer: Appended) -> dict[str, npt.NDArray[np.int64]]:
    """The numbers of each row of an answer: its own if new, the first send's otherwise."""
    rows = answer.rows
    columns = {
        "conv_seq": answer.seqs(),
        "epoch": np.full(rows, answer.epoch),
        "segment": np.full(rows, answer.log_position),
        "server_ts": np.full(rows, answer.server_ts),
        "stable_seq": answer.stables(),
    }
    firsts = answer.firsts
    if firsts is None:
        columns["row"] = np.arange(answer.row, answer.row + rows)
        columns["shard"], columns["segment"] = offset_of(shard, columns["segment"])
        return columns
    new = np.ones(rows, np.bool_)
    new[firsts.at] = False
    row = np.empty(rows, np.int64)
    row[new] = np.arange(answer.row, answer.row + np.count_nonzero(new))
    row[firsts.at] = firsts.row
    columns["row"] = row
    for name, values in (("epoch", firsts.epoch), ("segment", firsts.log_position), ("server_ts", firsts.server_ts)):
        columns[name][firsts.at] = values
    for values in columns.values():
        values[firsts.at[firsts.unreadable | firsts.waiting | firsts.forbidden]] = -1  # there are none
    columns["shard"], columns["segment"] = offset_of(shard, columns["segment"])
    return columns
