"""A partition's ask for numbers and its answer, as messages.

Owns their form on the wire and its checks: rows go on into compiled code that does not look at bounds, so every offset
and index is looked at here. Does not own what they mean: `imray.core.grants`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from imray.core.columns import Plan, Rows, Senders
from imray.core.errors import InvalidError
from imray.core.grants import Declined, DeclineReason, Granted, Report
from imray.core.replies import Refusal
from imray.rpc.arguments import WireReports, from_wire, to_wire
from imray.rpc.endpoint import Parts
from imray.rpc.packing import Array, ArrayReader, Count, Int, check_ascending, pack, unpack
from imray.rpc.packing import Rows as RowCount
from imray.rpc.replies import (
    RefusalHead,
    check_numbers,
    check_status,
    refusal_head,
    refusal_of,
    take_column,
    value_or_column,
)


class Ask(NamedTuple):
    """Of Method.ASK."""

    slot: int
    epoch: int
    """Of the partition's writer."""
    ask: int
    rows: Rows
    reports: list[Report]


class _AskHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    slot: Count
    epoch: Int
    ask: Int
    rows: RowCount
    reports: WireReports
    senders: bool
    """Whether the columns of senders follow."""


class _DeclinedHead(msgspec.Struct, frozen=True, array_like=True, tag="declined", forbid_unknown_fields=True):
    why: DeclineReason
    rows: bool
    """Whether a column of rows follows."""


class _GrantedHead(msgspec.Struct, frozen=True, array_like=True, tag="granted", forbid_unknown_fields=True):
    sequencer: Int
    grant: Count
    rows: RowCount
    first: Int
    stable: Int | None
    """The same in every row; None: a column follows."""
    plan: bool
    """Whether the columns of a plan follow."""
    new_rows: RowCount | None
    """Rows that are new; None: all of them, and no column."""
    firsts: bool
    """Whether the columns of the first sends follow."""
    partitions: dict[str, Count]


def encode_ask(slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]) -> Parts:
    """Of Method.ASK. Where there is one name, all rows have it, and no column says so."""
    arrays: list[tuple[Array, type[np.generic]]] = [
        (rows.names_data, np.uint8),
        (rows.names_offsets, np.int32),
        (rows.conv if len(rows.names_offsets) > 2 else rows.conv[:0], np.int32),
        (rows.ids, np.uint64),
        (rows.fps, np.uint64),
        (rows.payload, np.uint64),
    ]
    senders = rows.senders
    if senders is not None:
        arrays += [(senders.names_data, np.uint8), (senders.names_offsets, np.int32), (senders.of_row, np.int32)]
    return pack(_AskHead(slot, epoch, ask, len(rows), to_wire(reports), senders is not None), arrays)


def decode_ask(data: memoryview) -> Ask:
    """The inverse of `encode_ask`. The rows lie in the memory of `data`. InvalidError where it is malformed."""
    head, arrays = unpack(data, _AskHead)
    n = head.rows
    names_data = arrays.take(np.uint8, None, "names_data")
    names_offsets = arrays.take(np.int32, None, "names_offsets")
    one = len(names_offsets) == 2
    conv = arrays.take(np.int32, 0 if one else n, "conv")
    rows = Rows(
        names_data,
        names_offsets,
        np.zeros(n, np.int32) if one else conv,
        arrays.take(np.uint64, 2 * n, "ids").reshape(n, 2),
        arrays.take(np.uint64, n, "fps"),
        arrays.take(np.uint64, n, "payload"),
        _take_senders(arrays, n) if head.senders else None,
    )
    arrays.end()
    _check_rows(rows)
    return Ask(head.slot, head.epoch, head.ask, rows, from_wire(head.reports))


def _take_senders(arrays: ArrayReader, rows: int) -> Senders:
    senders = Senders(
        arrays.take(np.uint8, None, "senders.names_data"),
        arrays.take(np.int32, None, "senders.names_offsets"),
        arrays.take(np.int32, rows, "senders.of_row"),
    )
    _check_names(senders.names_data, senders.names_offsets, senders.of_row)
    return senders


def _check_rows(rows: Rows) -> None:
    offsets = rows.names_offsets
    if len(offsets) == 2 and offsets[0] == 0 and offsets[1] == len(rows.names_data):
        return  # one name, and every row has it
    _check_names(rows.names_data, offsets, rows.conv)


def _check_names(text: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int32], of_row: npt.NDArray[np.int32]) -> None:
    if not len(offsets) or offsets[0] < 0 or offsets[-1] > len(text) or (offsets[1:] < offsets[:-1]).any():
        raise InvalidError("the names of an ask do not lie within its text")
    if len(of_row) and (of_row.min() < 0 or of_row.max() >= len(offsets) - 1):
        raise InvalidError("a row of an ask has no name")


def encode_ask_answer(answer: Granted | Declined | Refusal) -> Parts:
    """The answer to an ask."""
    if isinstance(answer, Refusal):
        return pack(refusal_head(answer))
    if isinstance(answer, Declined):
        named: list[tuple[Array, type[np.generic]]] = [] if answer.rows is None else [(answer.rows, np.int64)]
        return pack(_DeclinedHead(answer.why, answer.rows is not None), named)
    arrays: list[tuple[Array, type[np.generic]]] = []
    stable = value_or_column(answer.stable, arrays)
    plan = answer.plan
    new_rows: int | None = None
    firsts = False
    if plan is not None:
        arrays += [(plan.status, np.uint8), (plan.seq, np.int64), (plan.row_in_segment, np.uint32)]
        arrays += [(plan.conv, np.int32), (plan.fresh, np.int32), (plan.touched, np.int32)]
        arrays += [(plan.touched_first, np.int64), (plan.touched_last, np.int64)]
        if plan.new_rows is not None:
            new_rows = len(plan.new_rows)
            arrays.append((plan.new_rows, np.int64))
        if plan.log_position is not None and plan.epoch is not None and plan.server_ts is not None:
            firsts = True
            arrays += [(plan.log_position, np.int64), (plan.epoch, np.int64), (plan.server_ts, np.int64)]
    head = _GrantedHead(
        sequencer=answer.sequencer,
        grant=answer.grant,
        rows=answer.rows,
        first=answer.first,
        stable=stable,
        plan=plan is not None,
        new_rows=new_rows,
        firsts=firsts,
        partitions=answer.partitions,
    )
    return pack(head, arrays)


def decode_ask_answer(data: memoryview) -> Granted | Declined | Refusal:
    """The inverse of `encode_ask_answer`. Columns lie in the memory of `data`. InvalidError where it is malformed."""
    head, arrays = unpack(data, _GrantedHead | _DeclinedHead | RefusalHead)
    if isinstance(head, RefusalHead):
        arrays.end()
        return refusal_of(head)
    if isinstance(head, _DeclinedHead):
        rows = arrays.take(np.int64, None, "rows") if head.rows else None
        arrays.end()
        return Declined(head.why, rows)
    check_numbers(head.first, head.rows)
    stable = take_column(arrays, head.stable, head.rows, "stable")
    plan = _take_plan(arrays, head) if head.plan else None
    arrays.end()
    return Granted(head.sequencer, head.grant, head.rows, head.first, plan, stable, head.partitions)


def _take_plan(arrays: ArrayReader, head: _GrantedHead) -> Plan:
    n = head.rows
    status = arrays.take(np.uint8, n, "status")
    check_status(status)
    seq = arrays.take(np.int64, n, "seq")
    row_in_segment = arrays.take(np.uint32, n, "row_in_segment")
    conv = arrays.take(np.int32, n, "conv")
    fresh = arrays.take(np.int32, None, "fresh")
    touched = arrays.take(np.int32, None, "touched")
    touched_first = arrays.take(np.int64, len(touched), "touched_first")
    touched_last = arrays.take(np.int64, len(touched), "touched_last")
    new_rows: npt.NDArray[np.int64] | None = None
    if head.new_rows is not None:
        new_rows = arrays.take(np.int64, head.new_rows, "new_rows")
        check_ascending(new_rows, n, "new_rows")
    log_position: npt.NDArray[np.int64] | None = None
    epoch: npt.NDArray[np.int64] | None = None
    server_ts: npt.NDArray[np.int64] | None = None
    if head.firsts:
        log_position = arrays.take(np.int64, n, "log_position")
        epoch = arrays.take(np.int64, n, "epoch")
        server_ts = arrays.take(np.int64, n, "server_ts")
    return Plan(
        status=status,
        seq=seq,
        new_rows=new_rows,
        row_in_segment=row_in_segment,
        log_position=log_position,
        epoch=epoch,
        server_ts=server_ts,
        conv=conv,
        fresh=fresh,
        touched=touched,
        touched_first=touched_first,
        touched_last=touched_last,
    )
