"""Walking over values in Thrift's compact protocol, which Parquet's footers are written in, without reading them.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I64, U8
from imray.kernels.compiler import jit

STRUCT = 12
_FALSE = 2
_BYTE = 3
_I64 = 6
_DOUBLE = 7
_BINARY = 8
_SET = 10
_LONG = 15
_DEPTH_MAX = 32
_SHIFT_MAX = 63
_MALFORMED = -1


@jit
def _varint_end(data: U8, at: int) -> int:
    while at < len(data) and data[at] >= 0x80:
        at += 1
    return at + 1


@jit
def _varint(data: U8, at: int) -> int:
    """An unsigned integer in groups of seven bits, the lowest first."""
    value = 0
    shift = 0
    while at < len(data) and shift < _SHIFT_MAX:
        byte = int(np.int64(data[at]))
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        at += 1
    return value


@jit
def skip(data: U8, at: int, kind: int) -> int:
    """Where a value of a kind that begins at `at` ends; -1 where the bytes are no such value."""
    # one loop over a stack, not a function that calls itself: that takes five times as long
    kinds = np.empty(_DEPTH_MAX + 1, np.int64)
    left = np.empty(_DEPTH_MAX + 1, np.int64)  # elements of a list; -1: a struct, which ends with a zero
    end = len(data)
    depth = 0
    in_list = False
    while True:
        if kind == STRUCT:
            depth += 1
            kinds[depth] = STRUCT
            left[depth] = -1
        elif _BYTE < kind <= _I64:
            at = _varint_end(data, at)
        elif kind == _BINARY:
            at = _varint_end(data, at) + _varint(data, at)
        elif _BINARY < kind <= _SET and at < end:
            head = int(np.int64(data[at]))
            is_long = head >> 4 == _LONG
            depth += 1
            kinds[depth] = head & 15
            left[depth] = _varint(data, at + 1) if is_long else head >> 4
            at = _varint_end(data, at + 1) if is_long else at + 1
        elif kind == _DOUBLE:
            at += 8
        elif kind == _BYTE or (in_list and 0 < kind <= _FALSE):
            at += 1
        elif kind > _FALSE or kind == 0:
            return _MALFORMED
        while depth > 0 and (left[depth] == 0 or (left[depth] < 0 and at < end and data[at] == 0)):
            at -= left[depth]  # the zero that ends a struct
            depth -= 1
        if depth == 0:
            return at if at <= end else _MALFORMED
        if at >= end or depth >= _DEPTH_MAX:
            return _MALFORMED
        in_list = left[depth] > 0
        if in_list:
            left[depth] -= 1
            kind = int(kinds[depth])
        else:
            kind = int(np.int64(data[at])) & 15
            at = _varint_end(data, at + 1) if data[at] >> 4 == 0 else at + 1


@jit
def structs(data: U8, at: int, count: int) -> I64:
    """Where each of `count` structs that follow one another begins, and where the last one ends; -1 last where the
    bytes are none."""
    starts = np.empty(count + 1, np.int64)
    for i in range(count):
        starts[i] = at
        if at >= 0:
            at = skip(data, at, STRUCT)
    starts[count] = at
    return starts
