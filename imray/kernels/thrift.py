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
_MALFORMED = -1


@jit
def skip(data: U8, at: int, kind: int) -> int:
    """Where a value of a kind that begins at `at` ends; -1 where the bytes are no such value."""
    # one function with its loops written out: calls with arrays cost five times the walk
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
            while at < end and data[at] >= 0x80:
                at += 1
            at += 1
        elif _BINARY <= kind <= _SET and at < end:
            head = int(np.int64(data[at]))
            size = head >> 4
            if kind == _BINARY or size == _LONG:
                at += 0 if kind == _BINARY else 1
                size = 0
                shift = 0
                while at < end:
                    byte = int(np.int64(data[at]))
                    size |= (byte & 0x7F) << shift
                    if byte < 0x80 or shift > 56:
                        break
                    shift += 7
                    at += 1
            at += 1
            if kind == _BINARY:
                at += size
            else:
                depth += 1
                kinds[depth] = head & 15
                left[depth] = size
        elif kind == _DOUBLE:
            at += 8
        elif kind == _BYTE or (in_list and kind <= _FALSE):
            at += 1
        elif kind > _FALSE or kind == 0:
            return _MALFORMED
        # what comes next
        while depth > 0 and left[depth] == 0:
            depth -= 1
        while depth > 0 and left[depth] < 0 and at < end and data[at] == 0:
            at += 1
            depth -= 1
            while depth > 0 and left[depth] == 0:
                depth -= 1
        if depth == 0:
            return at if at <= end else _MALFORMED
        if at >= end or depth >= _DEPTH_MAX:
            return _MALFORMED
        in_list = left[depth] > 0
        if in_list:
            left[depth] -= 1
            kind = int(kinds[depth])
            continue
        kind = int(np.int64(data[at])) & 15
        if data[at] >> 4 == 0:
            at += 1
            while at < end and data[at] >= 0x80:
                at += 1
        at += 1


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
