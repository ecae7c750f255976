"""Walking over values in Thrift's compact protocol, which Parquet's footers are written in, without reading them.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I64, U8
from imray.kernels.compiler import jit

STRUCT = 12
_TRUE = 1
_FALSE = 2
_BYTE = 3
_I64 = 6
_DOUBLE = 7
_BINARY = 8
_LIST = 9
_SET = 10
_DEPTH_MAX = 32
_MALFORMED = -1


@jit
def _varint(data: U8, at: int) -> tuple[int, int]:
    """An unsigned varint: its value, and where it ends."""
    value = 0
    shift = 0
    while at < len(data):
        byte = int(data[at])
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at


@jit
def _step(data: U8, at: int, kind: int, in_list: bool, kinds: I64, left: I64, depth: int) -> tuple[int, int]:
    """Pass over one value; of a struct or a list only its head, it is pushed: where it ends, and the new depth."""
    if kind in (_TRUE, _FALSE):
        at += 1 if in_list else 0
    elif kind == _BYTE:
        at += 1
    elif kind <= _I64:
        _, at = _varint(data, at)
    elif kind == _DOUBLE:
        at += 8
    elif kind == _BINARY:
        size, at = _varint(data, at)
        at += size
    elif kind in (_LIST, _SET):
        head = int(data[at])
        size = head >> 4
        at += 1
        if size == 15:
            size, at = _varint(data, at)
        kinds[depth] = head & 15
        left[depth] = size
        depth += 1
    elif kind == STRUCT:
        kinds[depth] = STRUCT
        left[depth] = -1
        depth += 1
    else:
        at = _MALFORMED
    return at, depth


@jit
def skip(data: U8, at: int, kind: int) -> int:
    """Where a value of a kind that begins at `at` ends; -1 where the bytes are no such value."""
    kinds = np.empty(_DEPTH_MAX + 1, np.int64)
    left = np.empty(_DEPTH_MAX + 1, np.int64)  # elements of a list; -1: a struct, which ends with a zero
    at, depth = _step(data, at, kind, False, kinds, left, 0)
    while depth > 0:
        if at < 0 or at >= len(data) or depth > _DEPTH_MAX:
            return _MALFORMED
        top = depth - 1
        if left[top] == 0:
            depth = top
        elif left[top] > 0:
            left[top] -= 1
            at, depth = _step(data, at, int(kinds[top]), True, kinds, left, depth)
        else:
            head = int(data[at])
            at += 1
            if head == 0:
                depth = top
                continue
            if head >> 4 == 0:
                _, at = _varint(data, at)
            at, depth = _step(data, at, head & 15, False, kinds, left, depth)
    return at if at <= len(data) else _MALFORMED


@jit
def structs(data: U8, at: int, count: int) -> I64:
    """Where each of `count` structs that follow one another begins, and where the last one ends; -1 last where the
    bytes are none."""
    starts = np.empty(count + 1, np.int64)
    for i in range(count):
        starts[i] = at
        at = skip(data, at, STRUCT)
        if at < 0:
            break
    starts[count] = at
    return starts
