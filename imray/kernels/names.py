"""Names as bytes in one array: found by a 64-bit key, confirmed byte by byte, appended."""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I32, I64, U8, U64
from imray.kernels.compiler import jit
from imray.kernels.id_table import ENTRY_MASK, FREE, TAG_MASK


@jit
def _same(a: U8, a0: np.int64, a1: np.int64, b: U8, b0: np.int64, b1: np.int64) -> bool:
    if a1 - a0 != b1 - b0:
        return False
    for i in range(a1 - a0):  # noqa: SIM110 numba compiles the loop, not the generator
        if a[a0 + i] != b[b0 + i]:
            return False
    return True


@jit
def find_names(keys: U64, data: U8, offs: I32, slots: U64, text: U8, ends: I64) -> I32:
    """The entry whose name is data[offs[i]:offs[i+1]] for each key, -1 where none has it."""
    out = np.full(len(keys), -1, np.int32)
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        at = keys[i] & mask
        while slots[at] != FREE:
            if slots[at] & TAG_MASK == keys[i] & TAG_MASK:
                e = np.int64(slots[at] & ENTRY_MASK) - 1
                if _same(text, ends[e], ends[e + 1], data, np.int64(offs[i]), np.int64(offs[i + 1])):
                    out[i] = e
                    break
            at = (at + np.uint64(1)) & mask
    return out


@jit
def append_names(text: U8, ends: I64, count: int, data: U8, offs: I32, which: I32) -> None:
    """Copy the names in `which` behind the first `count` of text; there is room for them."""
    for i in range(len(which)):
        a = np.int64(offs[which[i]])
        n = np.int64(offs[which[i] + 1]) - a
        for j in range(n):
            text[ends[count + i] + j] = data[a + j]
        ends[count + i + 1] = ends[count + i] + n
