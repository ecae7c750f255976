"""Values of every kind of message, as hypothesis makes them, and the pair of functions that takes them to bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from imray.core.columns import Plan, Rows, Senders
from imray.core.grants import Declined, DeclineReason, Granted, Report
from imray.core.intervals import Interval
from imray.core.members import Changed, Cursor, MemberEntry, MembersPage, Role, Roles
from imray.core.membership import Change, Create
from imray.core.replies import Appended, Firsts, Located, Refusal, Refused
from imray.core.status import PartitionStatus, ServingState, ShardStatus
from imray.rpc import members, messages
from imray.rpc.endpoint import Parts

_I64 = st.integers(-(2**63), 2**63 - 1)
_COUNT = st.integers(0, 2**63 - 1)
_SLOT = st.integers(0, 99)
_PARTITIONS = st.dictionaries(st.text(max_size=5), st.integers(0, 99), max_size=3)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, arrays by dtype, shape and content."""
    if isinstance(one, np.ndarray):
        alike = isinstance(other, np.ndarray) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and bool((one == other).all())
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(getattr(one, n), getattr(other, n)) for n in names)
    if isinstance(one, tuple | list):
        pairs = zip(one, other, strict=False)
        return type(one) is type(other) and len(one) == len(other) and all(same(a, b) for a, b in pairs)
    return type(one) is type(other) and bool(one == other)


def _column(dtype: type[np.generic], n: int, **elements: int) -> st.SearchStrategy[npt.NDArray[Any]]:
    return arrays.arrays(dtype, n, elements=elements or None)


def _some_rows(draw: st.DrawFn, n: int) -> npt.NDArray[np.int64]:
    chosen = draw(st.sets(st.integers(0, n - 1))) if n else set()
    return np.array(sorted(chosen), np.int64)


refusals = st.builds(
    Refusal,
    st.sampled_from(Refused),
    st.text(max_size=30),
    st.floats(0, 1000),
    st.booleans(),
)
reports = st.builds(Report, _COUNT, _COUNT, _I64, st.binary(max_size=32))


@st.composite
def _senders(draw: st.DrawFn, n: int) -> Senders:
    names = draw(st.lists(st.binary(max_size=9), min_size=1, max_size=4))
    return Senders(
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([0, *map(len, names)], dtype=np.int32),
        draw(_column(np.int32, n, min_value=0, max_value=len(names) - 1)),
    )


@st.composite
def rows_of_an_ask(draw: st.DrawFn) -> Rows:
    """Rows whose names lie in their text."""
    names = draw(st.lists(st.binary(max_size=9), min_size=1, max_size=4))
    n = draw(st.integers(0, 6))
    return Rows(
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([0, *map(len, names)], dtype=np.int32),
        draw(_column(np.int32, n, min_value=0, max_value=len(names) - 1)),
        draw(arrays.arrays(np.uint64, (n, 2))),
        draw(_column(np.uint64, n)),
        draw(_column(np.uint64, n)),
        draw(st.none() | _senders(n)),
    )


@st.composite
def _appended(draw: st.DrawFn) -> Appended:
    n = draw(st.integers(0, 8))
    at = _some_rows(draw, n)
    k = len(at)
    firsts = Firsts(
        at=at,
        status=draw(_column(np.uint8, k, min_value=0, max_value=6)),
        log_position=draw(_column(np.int64, k)),
        row=draw(_column(np.uint32, k)),
        epoch=draw(_column(np.int64, k)),
        server_ts=draw(_column(np.int64, k)),
    )
    return Appended(
        rows=n,
        epoch=draw(_I64),
        log_position=draw(_I64),
        server_ts=draw(_I64),
        row=draw(_COUNT),
        seq=draw(st.integers(1, 2**60) | _column(np.int64, n)),
        stable=draw(_I64 | _column(np.int64, n)),
        firsts=draw(st.none() | st.just(firsts)),
        hot=draw(st.none() | _PARTITIONS),
    )


@st.composite
def _plan(draw: st.DrawFn, n: int) -> Plan:
    k = draw(st.integers(0, 3))
    firsts = draw(st.booleans())
    return Plan(
        status=draw(_column(np.uint8, n, min_value=0, max_value=5)),
        seq=draw(_column(np.int64, n)),
        new_rows=draw(st.none() | st.just(_some_rows(draw, n))),
        row_in_segment=draw(_column(np.uint32, n)),
        log_position=draw(_column(np.int64, n)) if firsts else None,
        epoch=draw(_column(np.int64, n)) if firsts else None,
        server_ts=draw(_column(np.int64, n)) if firsts else None,
        conv=draw(_column(np.int32, n)),
        fresh=draw(_column(np.int32, draw(st.integers(0, 2)))),
        touched=draw(_column(np.int32, k)),
        touched_first=draw(_column(np.int64, k)),
        touched_last=draw(_column(np.int64, k)),
    )


@st.composite
def _granted(draw: st.DrawFn) -> Granted:
    n = draw(st.integers(0, 6))
    return Granted(
        sequencer=draw(_I64),
        grant=draw(_COUNT),
        rows=n,
        first=draw(st.integers(0, 2**60)),
        plan=draw(st.none() | _plan(n)),
        stable=draw(_I64 | _column(np.int64, n)),
        partitions=draw(_PARTITIONS),
    )


_spans = st.lists(st.tuples(_I64, _I64, _I64), max_size=4)
_intervals = st.builds(
    Interval,
    st.integers(0, 63),
    _COUNT,
    _COUNT,
    _COUNT,
    st.text(max_size=4),
    st.none() | st.lists(st.tuples(_SLOT, _COUNT, _COUNT), max_size=2).map(tuple),
)
_located = st.builds(Located, _I64, _I64, _I64, _I64, st.lists(_intervals, max_size=3), _spans)
_partition_status = st.builds(PartitionStatus, _SLOT, _SLOT, st.sampled_from(ServingState), st.text(), _COUNT)
_shard_status = st.builds(
    ShardStatus,
    _SLOT,
    st.sampled_from(ServingState),
    st.text(max_size=5),
    _COUNT,
    st.lists(st.text(max_size=5), max_size=2),
)


def _decode_interval_answer(data: memoryview) -> Interval | Refusal:
    return messages.decode_struct_answer(data, Interval)


class MessageKind(NamedTuple):
    """One kind of message."""

    values: st.SearchStrategy[Any]
    """Tuples of the arguments of `encode`."""
    encode: Callable[..., Parts]
    decode: Callable[[memoryview], Any]
    """Gives the arguments back: one alone, more as a tuple."""


def _one(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(values)


_NAME = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=9)
_ROLE = st.sampled_from(Role)
_changes = st.one_of(
    st.builds(Create, _NAME, _NAME, st.booleans(), st.booleans(), st.dictionaries(_NAME, _ROLE, max_size=3)),
    st.builds(
        Change,
        _NAME,
        _NAME,
        st.booleans(),
        st.dictionaries(_NAME, _ROLE, max_size=3),
        st.lists(_NAME, max_size=3).map(tuple),
    ),
)
_changed = st.builds(Changed, _COUNT, _COUNT, _COUNT, st.booleans())
_roles = st.builds(
    Roles, st.booleans(), st.booleans(), _COUNT, _COUNT, st.dictionaries(_NAME, st.none() | _ROLE, max_size=3)
)
_cursors = st.builds(Cursor, _COUNT, _COUNT)
_pages = st.builds(
    MembersPage,
    st.booleans(),
    st.booleans(),
    _COUNT,
    _COUNT,
    _COUNT,
    st.lists(st.builds(MemberEntry, _NAME, _ROLE), max_size=3),
    st.none() | _NAME,
)

KINDS = {
    "append answer": MessageKind(
        _one(_appended() | refusals), messages.encode_append_answer, messages.decode_append_answer
    ),
    "locate answer": MessageKind(
        _one(_located | refusals), messages.encode_locate_answer, messages.decode_locate_answer
    ),
    "done": MessageKind(_one(st.none() | refusals), messages.encode_done, messages.decode_done),
    "register answer": MessageKind(
        _one(st.booleans() | refusals), messages.encode_register_answer, messages.decode_register_answer
    ),
    "ask": MessageKind(
        st.tuples(_SLOT, _I64, _I64, rows_of_an_ask(), st.lists(reports, max_size=3)),
        messages.encode_ask,
        messages.decode_ask,
    ),
    "ask answer": MessageKind(
        _one(_granted() | st.builds(Declined, st.sampled_from(DeclineReason)) | refusals),
        messages.encode_ask_answer,
        messages.decode_ask_answer,
    ),
    "report": MessageKind(
        st.tuples(_SLOT, _I64, st.lists(reports, max_size=3)), messages.encode_report, messages.decode_report
    ),
    "register": MessageKind(st.tuples(_SLOT, _I64, _I64), messages.encode_register, messages.decode_register),
    "locate": MessageKind(st.tuples(st.text(max_size=9), _I64, _I64), messages.encode_locate, messages.decode_locate),
    "make hot": MessageKind(st.tuples(st.text(max_size=9), _COUNT), messages.encode_make_hot, messages.decode_make_hot),
    "mend": MessageKind(_one(st.text(max_size=9)), messages.encode_mend, messages.decode_mend),
    "shard status": MessageKind(_one(_shard_status), messages.encode_struct, messages.decode_shard_status),
    "partition status": MessageKind(_one(_partition_status), messages.encode_struct, messages.decode_partition_status),
    "change members": MessageKind(_one(_changes), members.encode_change_members, members.decode_change_members),
    "roles": MessageKind(st.tuples(_NAME, st.lists(_NAME, max_size=4)), members.encode_roles, members.decode_roles),
    "mark read": MessageKind(st.tuples(_NAME, _NAME, _COUNT), members.encode_mark_read, members.decode_mark_read),
    "list members": MessageKind(
        st.tuples(_NAME, st.none() | _NAME, st.integers(1, 1000)),
        members.encode_list_members,
        members.decode_list_members,
    ),
    "changed": MessageKind(_one(_changed | refusals), messages.encode_struct_answer, members.decode_changed),
    "roles answer": MessageKind(_one(_roles | refusals), messages.encode_struct_answer, members.decode_roles_answer),
    "cursor": MessageKind(_one(_cursors | refusals), messages.encode_struct_answer, members.decode_cursor),
    "members page": MessageKind(_one(_pages | refusals), messages.encode_struct_answer, members.decode_members_page),
    "any structure": MessageKind(_one(_intervals | refusals), messages.encode_struct_answer, _decode_interval_answer),
}
