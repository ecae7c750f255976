"""What a writer answers, as messages: numbers, where numbers are, figures, or a refusal.

Owns their form on the wire and its checks. Does not own what they mean: `imray.core.replies`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from imray.core.columns import RowStatus
from imray.core.errors import InvalidError
from imray.core.intervals import Interval
from imray.core.replies import Appended, Firsts, Located, Refusal, Refused
from imray.rpc.endpoint import Parts
from imray.rpc.packing import Array, ArrayReader, Count, Int, Rows, check_ascending, decode_struct, encoder
from imray.rpc.packing import pack as pack_message
from imray.rpc.packing import unpack as unpack_message

StructT = TypeVar("StructT")

_DETAIL_CHARS_MAX = 4000
_STATUS_MAX = max(RowStatus)
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class RefusalHead(msgspec.Struct, frozen=True, array_like=True, tag="refusal", forbid_unknown_fields=True):
    """A Refusal, in every answer that may be one."""

    why: Refused
    detail: str
    retry_after_s: _Seconds
    unknown: bool


class _DoneHead(msgspec.Struct, frozen=True, array_like=True, tag="done", forbid_unknown_fields=True):
    """No refusal."""


class _FlagHead(msgspec.Struct, frozen=True, array_like=True, tag="flag", forbid_unknown_fields=True):
    value: bool


class _StructHead(msgspec.Struct, frozen=True, array_like=True, tag="struct", forbid_unknown_fields=True):
    value: msgspec.Raw


class _AppendedHead(msgspec.Struct, frozen=True, array_like=True, tag="appended", forbid_unknown_fields=True):
    rows: Rows
    epoch: Int
    log_position: Int
    server_ts: Int
    row: Count
    seq: Int | None
    """The first of consecutive numbers; None: a column of them follows."""
    stable: Int | None
    """The same in every row; None: a column follows."""
    firsts: Rows | None
    """How many rows are no new messages; None: none, and no columns of them."""
    hot: dict[str, Count] | None


class _LocatedHead(msgspec.Struct, frozen=True, array_like=True, tag="located", forbid_unknown_fields=True):
    head: Int
    stable: Int
    epoch: Int
    checkpoint: Int
    intervals: list[Interval]


def refusal_head(refusal: Refusal) -> RefusalHead:
    """As it goes on the wire. Its text is cut, and what is no Unicode in it is replaced: a name of a file, say."""
    detail = refusal.detail[:_DETAIL_CHARS_MAX].encode(errors="replace").decode()
    return RefusalHead(refusal.why, detail, refusal.retry_after_s, refusal.unknown)


def refusal_of(head: RefusalHead) -> Refusal:
    """The inverse of `refusal_head`."""
    return Refusal(head.why, head.detail, head.retry_after_s, head.unknown)


def value_or_column(value: npt.NDArray[np.int64] | int, arrays: list[tuple[Array, type[np.generic]]]) -> int | None:
    """One value for the head, or None and a column more."""
    if isinstance(value, np.ndarray):
        arrays.append((value, np.int64))
        return None
    return value


def take_column(arrays: ArrayReader, value: int | None, rows: int, name: str) -> npt.NDArray[np.int64] | int:
    """The inverse of `value_or_column`."""
    return arrays.take(np.int64, rows, name) if value is None else value


def encode_done(refusal: Refusal | None) -> Parts:
    """None: done."""
    return pack_message(_DoneHead() if refusal is None else refusal_head(refusal))


def decode_done(data: memoryview) -> Refusal | None:
    """InvalidError where it is malformed; so for all of this module."""
    head, arrays = unpack_message(data, _DoneHead | RefusalHead)
    arrays.end()
    return None if isinstance(head, _DoneHead) else refusal_of(head)


def encode_register_answer(flag: bool | Refusal) -> Parts:
    """Yes or no, or a refusal."""
    return pack_message(refusal_head(flag) if isinstance(flag, Refusal) else _FlagHead(flag))


def decode_register_answer(data: memoryview) -> bool | Refusal:
    """The inverse of `encode_register_answer`."""
    head, arrays = unpack_message(data, _FlagHead | RefusalHead)
    arrays.end()
    return refusal_of(head) if isinstance(head, RefusalHead) else bool(head.value)


def encode_struct_answer(value: msgspec.Struct | Refusal) -> Parts:
    """Any typed structure, or a refusal."""
    if isinstance(value, Refusal):
        return pack_message(refusal_head(value))
    return pack_message(_StructHead(msgspec.Raw(encoder.encode(value))))


def decode_struct_answer(data: memoryview, type_: type[StructT]) -> StructT | Refusal:
    """The inverse of `encode_struct_answer`."""
    head, arrays = unpack_message(data, _StructHead | RefusalHead)
    arrays.end()
    if isinstance(head, RefusalHead):
        return refusal_of(head)
    return decode_struct(memoryview(head.value), type_)


def encode_append_answer(answer: Appended | Refusal) -> Parts:
    """The answer to a batch."""
    if isinstance(answer, Refusal):
        return pack_message(refusal_head(answer))
    arrays: list[tuple[Array, type[np.generic]]] = []
    seq = value_or_column(answer.seq, arrays)
    stable = value_or_column(answer.stable, arrays)
    firsts = answer.firsts
    if firsts is not None:
        arrays += [(firsts.at, np.int64), (firsts.status, np.uint8), (firsts.log_position, np.int64)]
        arrays += [(firsts.row, np.uint32), (firsts.epoch, np.int64), (firsts.server_ts, np.int64)]
    head = _AppendedHead(
        rows=answer.rows,
        epoch=answer.epoch,
        log_position=answer.log_position,
        server_ts=answer.server_ts,
        row=answer.row,
        seq=seq,
        stable=stable,
        firsts=None if firsts is None else len(firsts.at),
        hot=answer.hot,
    )
    return pack_message(head, arrays)


def decode_append_answer(data: memoryview) -> Appended | Refusal:
    """The inverse of `encode_append_answer`. Its columns lie in the memory of `data`."""
    head, arrays = unpack_message(data, _AppendedHead | RefusalHead)
    if isinstance(head, RefusalHead):
        arrays.end()
        return refusal_of(head)
    check_numbers(head.seq, head.rows)
    seq = take_column(arrays, head.seq, head.rows, "seq")
    stable = take_column(arrays, head.stable, head.rows, "stable")
    firsts = None if head.firsts is None else _take_firsts(arrays, head.firsts, head.rows)
    arrays.end()
    return Appended(
        rows=head.rows,
        epoch=head.epoch,
        log_position=head.log_position,
        server_ts=head.server_ts,
        row=head.row,
        seq=seq,
        stable=stable,
        firsts=firsts,
        hot=head.hot,
    )


def check_numbers(first: int | None, rows: int) -> None:
    """InvalidError where consecutive numbers from `first` would leave int64."""
    if first is not None and first + rows > np.iinfo(np.int64).max:
        raise InvalidError(f"a message gives {rows} numbers from {first}")


def check_status(status: npt.NDArray[np.uint8]) -> None:
    """InvalidError where a row has a status that there is not."""
    if len(status) and status.max() > _STATUS_MAX:
        raise InvalidError("a row of a message has no status that is known")


def _take_firsts(arrays: ArrayReader, entries: int, rows: int) -> Firsts:
    at = arrays.take(np.int64, entries, "firsts.at")
    check_ascending(at, rows, "firsts.at")
    status = arrays.take(np.uint8, entries, "firsts.status")
    check_status(status)
    return Firsts(
        at=at,
        status=status,
        log_position=arrays.take(np.int64, entries, "firsts.log_position"),
        row=arrays.take(np.uint32, entries, "firsts.row"),
        epoch=arrays.take(np.int64, entries, "firsts.epoch"),
        server_ts=arrays.take(np.int64, entries, "firsts.server_ts"),
    )


def encode_locate_answer(answer: Located | Refusal) -> Parts:
    """Where numbers of a conversation are."""
    if isinstance(answer, Refusal):
        return pack_message(refusal_head(answer))
    head = _LocatedHead(answer.head, answer.stable, answer.epoch, answer.checkpoint, answer.intervals)
    spans = np.array(answer.spans, np.int64).reshape(-1)
    return pack_message(head, [(spans, np.int64)])


def decode_locate_answer(data: memoryview) -> Located | Refusal:
    """The inverse of `encode_locate_answer`."""
    head, arrays = unpack_message(data, _LocatedHead | RefusalHead)
    if isinstance(head, RefusalHead):
        arrays.end()
        return refusal_of(head)
    spans = arrays.take(np.int64, None, "spans")
    arrays.end()
    if len(spans) % 3:
        raise InvalidError("column spans of a message does not have three numbers for each")
    found: list[Any] = spans.reshape(-1, 3).tolist()
    return Located(
        head.head,
        head.stable,
        head.epoch,
        head.checkpoint,
        head.intervals,
        [(position, first, last) for position, first, last in found],
    )
