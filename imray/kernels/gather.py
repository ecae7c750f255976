"""Byte strings in another order, copied once from wherever they stand."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from imray.kernels.arrays import I32, I64
from imray.kernels.compiler import jit, word_intrinsic


@word_intrinsic
def _copy(_typing: Any, to: Any, source: Any, size: Any) -> Any:
    """Copy bytes from address to address, the first of which it gives back; the caller keeps within bounds."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        pointers = [builder.inttoptr(address, cgutils.voidptr_t) for address in args[:2]]
        cgutils.raw_memcpy(builder, *pointers, args[2], 1)
        return builder.ptrtoint(pointers[0], ir.IntType(64))

    return types.uint64(types.int64, types.int64, types.int64), codegen


@jit
def gather_sizes(which: I64, sizes: I32, offsets: I32) -> None:
    """The offsets of the byte strings `which`, one behind the other."""
    total = np.int32(0)
    offsets[0] = 0
    for i in range(len(which)):
        total += sizes[which[i]]
        offsets[i + 1] = total


@jit
def gather_bytes(which: I64, addresses: I64, offsets: I32, to: int) -> None:
    """Copy the byte strings `which`, which stand at `addresses`, to the address `to`, by the offsets that
    `gather_sizes` made."""
    for i in range(len(which)):
        _copy(np.int64(to) + offsets[i], addresses[which[i]], np.int64(offsets[i + 1] - offsets[i]))
