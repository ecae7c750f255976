"""Messages: what is encoded comes back, and what is malformed is an InvalidError and nothing worse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imray.core.columns import Plan, Rows, Senders
from imray.core.errors import InvalidError
from imray.core.grants import Granted, Report
from imray.core.replies import Appended, Firsts, Located, Refusal, Refused
from imray.rpc import messages
from imray.rpc.endpoint import Parts
from imray.rpc.frames import size_of
from imray.rpc.packing import ROWS_MAX
from tests.support.rpc_values import KINDS, MessageKind, rows_of_an_ask, same

_kinds = st.sampled_from(sorted(KINDS))


def _joined(content: Parts) -> memoryview:
    return memoryview(bytearray(b"".join(content)))


def _arguments(decoded: Any) -> tuple[Any, ...]:
    return tuple(decoded) if hasattr(decoded, "_fields") else (decoded,)


def _round_trip(kind: MessageKind, values: tuple[Any, ...]) -> None:
    content = kind.encode(*values)
    assert size_of(content) == len(_joined(content))
    assert same(_arguments(kind.decode(_joined(content))), values)


@pytest.mark.parametrize("name", sorted(KINDS))
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_encoded_comes_back(name: str, data: st.DataObject) -> None:
    _round_trip(KINDS[name], data.draw(KINDS[name].values))


def _decode_or_refuse(kind: MessageKind, data: bytes) -> Any:
    """What it is, where it is one: then it can be encoded again, and is the same."""
    try:
        decoded = kind.decode(memoryview(bytearray(data)))
    except InvalidError:
        return None
    _round_trip(kind, _arguments(decoded))
    return decoded


@pytest.mark.parametrize("name", sorted(KINDS))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_truncation_is_refused(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    whole = bytes(_joined(kind.encode(*data.draw(kind.values))))
    for end in range(len(whole)):
        with pytest.raises(InvalidError):
            kind.decode(memoryview(bytearray(whole[:end])))
    with pytest.raises(InvalidError):
        kind.decode(memoryview(bytearray(whole + b"\0")))
    with pytest.raises(InvalidError):
        kind.decode(memoryview(bytearray(whole + bytes(8))))


@pytest.mark.parametrize("name", sorted(KINDS))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_flipped_byte_is_refused_or_makes_a_valid_message(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    whole = bytes(_joined(kind.encode(*data.draw(kind.values))))
    flip = data.draw(st.integers(1, 255))
    for at in range(len(whole)):
        _decode_or_refuse(kind, whole[:at] + bytes((whole[at] ^ flip,)) + whole[at + 1 :])


@given(name=_kinds, data=st.binary(max_size=200), head=st.integers(0, 40), zero=st.booleans())
@settings(max_examples=400, deadline=None)
def test_noise(name: str, data: bytes, head: int, zero: bool) -> None:
    start = head.to_bytes(4, "little") + bytes(4) if zero else b""
    _decode_or_refuse(KINDS[name], start + data)


@given(name=_kinds, other=_kinds, data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_message_of_another_kind(name: str, other: str, data: st.DataObject) -> None:
    values = data.draw(KINDS[other].values)
    _decode_or_refuse(KINDS[name], bytes(_joined(KINDS[other].encode(*values))))


def _rows(n: int = 4) -> Rows:
    ids = np.arange(2 * n, dtype=np.uint64).reshape(n, 2)
    offsets = np.array([0, 2, 5], np.int32)
    conv = np.arange(n, dtype=np.int32) % 2
    return Rows(np.frombuffer(b"abcde", np.uint8), offsets, conv, ids, ids[:, 0].copy(), ids[:, 1].copy())


@pytest.mark.parametrize(
    "wrong",
    [
        {"names_offsets": np.array([0, 2, 6], np.int32)},
        {"names_offsets": np.array([-1, 2, 5], np.int32)},
        {"names_offsets": np.array([0, 3, 2], np.int32)},
        {"names_offsets": np.array([], np.int32)},
        {"conv": np.array([0, 1, 2, 0], np.int32)},
        {"conv": np.array([0, -1, 0, 0], np.int32)},
        {"ids": np.zeros((3, 2), np.uint64)},
        {"ids": np.zeros((5, 2), np.uint64)},
        {"fps": np.zeros(3, np.uint64)},
        {"payload": np.zeros(5, np.uint64)},
    ],
)
def test_rows_that_would_lead_compiled_code_out_of_bounds(wrong: dict[str, Any]) -> None:
    assert len(messages.decode_ask(_joined(messages.encode_ask(1, 2, 3, _rows(), []))).rows) == 4
    with pytest.raises(InvalidError):
        messages.decode_ask(_joined(messages.encode_ask(1, 2, 3, replace(_rows(), **wrong), [])))


@pytest.mark.parametrize(
    "wrong",
    [
        {"names_offsets": np.array([0, 4], np.int32)},
        {"names_offsets": np.array([], np.int32)},
        {"of_row": np.array([0, 1, 0, 0], np.int32)},
        {"of_row": np.array([0, -1, 0, 0], np.int32)},
        {"of_row": np.zeros(3, np.int32)},
    ],
)
def test_senders_that_would_lead_compiled_code_out_of_bounds(wrong: dict[str, Any]) -> None:
    senders = Senders(np.frombuffer(b"ada", np.uint8), np.array([0, 3], np.int32), np.zeros(4, np.int32))
    decoded = messages.decode_ask(_joined(messages.encode_ask(1, 2, 3, replace(_rows(), senders=senders), [])))
    assert decoded.rows.senders is not None
    rows = replace(_rows(), senders=replace(senders, **wrong))
    with pytest.raises(InvalidError):
        messages.decode_ask(_joined(messages.encode_ask(1, 2, 3, rows, [])))


def test_rows_of_one_name_have_no_column_for_it() -> None:
    rows = replace(_rows(), names_offsets=np.array([0, 5], np.int32), conv=np.zeros(4, np.int32))
    content = messages.encode_ask(1, 2, 3, rows, [])
    assert same(messages.decode_ask(_joined(content)).rows, rows)
    two = replace(_rows(), conv=np.zeros(4, np.int32))
    assert sum(map(len, content)) < sum(map(len, messages.encode_ask(1, 2, 3, two, [])))


def _appended(**changed: Any) -> Appended:
    whole = Appended(4, 1, 2, 3, 0, np.arange(4), np.arange(4), _firsts([1, 3]))
    return replace(whole, **changed)


def _firsts(at: list[int], status: int = 1) -> Firsts:
    some = np.ones(len(at), np.int64)
    return Firsts(np.array(at, np.int64), np.full(len(at), status, np.uint8), some, some.astype(np.uint32), some, some)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 3},
        {"rows": ROWS_MAX + 1, "seq": 1, "stable": 1},
        {"rows": -1, "seq": 1, "stable": 1},
        {"seq": 2**63 - 4},
        {"seq": 2**63},
        {"stable": np.arange(5)},
        {"firsts": _firsts([3, 1])},
        {"firsts": _firsts([1, 1])},
        {"firsts": _firsts([-1, 1])},
        {"firsts": _firsts([1, 4])},
        {"firsts": _firsts([1], 7)},
        {"hot": {"a": -1}},
    ],
)
def test_an_answer_that_cannot_be(wrong: dict[str, Any]) -> None:
    assert same(messages.decode_append_answer(_joined(messages.encode_append_answer(_appended()))), _appended())
    with pytest.raises(InvalidError):
        messages.decode_append_answer(_joined(messages.encode_append_answer(_appended(**wrong))))


def _planned(**changed: Any) -> Granted:
    n = 3
    wide = np.arange(n)
    narrow = wide.astype(np.int32)
    touched = np.zeros(1, np.int32)
    whole = Plan(
        np.zeros(n, np.uint8), wide, wide, wide.astype(np.uint32), None, None, None,
        narrow, narrow, touched, wide[:1], wide[:1],
    )  # fmt: skip
    return Granted(1, 2, n, 3, replace(whole, **changed), 4, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"new_rows": np.array([0, 3])},
        {"new_rows": np.array([1, 0])},
        {"status": np.full(3, 7, np.uint8)},
        {"status": np.zeros(2, np.uint8)},
        {"conv": np.zeros(4, np.int32)},
        {"touched_last": np.arange(2)},
        {"touched_first": np.arange(0)},
    ],
)
def test_a_grant_that_cannot_be(wrong: dict[str, Any]) -> None:
    assert same(messages.decode_ask_answer(_joined(messages.encode_ask_answer(_planned()))), _planned())
    with pytest.raises(InvalidError):
        messages.decode_ask_answer(_joined(messages.encode_ask_answer(_planned(**wrong))))
    with pytest.raises(InvalidError):
        messages.decode_ask_answer(_joined(messages.encode_ask_answer(Granted(1, 2, 9, 2**63 - 5, None, 4, {}))))


def test_an_array_of_another_dtype_is_no_message() -> None:
    with pytest.raises(TypeError):
        messages.encode_append_answer(_appended(seq=np.zeros(4)))
    with pytest.raises(TypeError):
        messages.encode_append_answer(_appended(seq=np.zeros(4, np.uint64)))
    ask = bytearray(_joined(messages.encode_ask(1, 2, 3, _rows(), [])))
    at = ask.index(bytes((0x92, 5, 8)))  # ids: uint64, eight elements
    for code in (0, 4, 6):
        ask[at + 1] = code
        with pytest.raises(InvalidError, match="not of uint64"):
            messages.decode_ask(memoryview(ask))


def test_numbers_of_numpy_go_as_numbers() -> None:
    wide: Any = np.int64(7)
    answer = messages.decode_append_answer(_joined(messages.encode_append_answer(_appended(epoch=wide))))
    assert same(answer, _appended(epoch=7))
    with pytest.raises(TypeError):
        messages.encode_append_answer(_appended(epoch=object()))


@given(rows=rows_of_an_ask())
@settings(max_examples=50, deadline=None)
def test_columns_lie_in_the_message_and_are_aligned(rows: Rows) -> None:
    data = _joined(messages.encode_ask(1, 2, 3, rows, [Report(1, 2, 3, b"d" * 13)]))
    start = np.frombuffer(data, np.uint8).ctypes.data
    found = messages.decode_ask(data).rows
    for array in (found.names_data, found.names_offsets, found.conv, found.ids, found.fps, found.payload):
        assert array.flags.writeable
        if array.size and (array is not found.conv or len(found.names_offsets) > 2):
            assert np.shares_memory(array, np.frombuffer(data, np.uint8))
            assert (array.ctypes.data - start) % 8 == 0


def test_large_columns_are_not_copied_to_be_sent() -> None:
    seq = np.arange(100_000)
    parts = messages.encode_append_answer(_appended(rows=100_000, seq=seq, stable=1, firsts=None))
    assert any(isinstance(part, memoryview) and part.obj is not None and part.nbytes == seq.nbytes for part in parts)
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), seq) for part in parts if len(part) == seq.nbytes)


def test_spans_are_three_numbers_each() -> None:
    spans: Any = [(1, 2), (3, 4)]
    with pytest.raises(InvalidError, match="three numbers"):
        messages.decode_locate_answer(_joined(messages.encode_locate_answer(Located(1, 1, 1, 1, [], spans))))


def test_a_refusal_of_any_text_can_be_sent() -> None:
    long = Refusal(Refused.UNAVAILABLE, "file \udcff " + "x" * 10_000)
    got = messages.decode_done(_joined(messages.encode_done(long)))
    assert got is not None
    assert got.detail.startswith("file ? xxx")
    assert len(got.detail) == 4_000
    with pytest.raises(InvalidError):
        messages.decode_done(_joined(messages.encode_done(Refusal(Refused.BUSY, "", float("nan")))))


def test_too_many_reports() -> None:
    reports = [Report(1, 2, 3, b"")] * 4_097
    with pytest.raises(InvalidError):
        messages.decode_report(_joined(messages.encode_report(1, 2, reports)))
    with pytest.raises(InvalidError):
        messages.decode_report(_joined(messages.encode_report(1, 2, [Report(1, 2, 3, bytes(65))])))
