"""Sorting columns by fingerprint, compiled and without the interpreter's lock."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from imray.kernels.arrays import I64, U64
from imray.kernels.compiler import jit

Item = TypeVar("Item", bound=np.generic)


@jit
def _bucket_order(fps: U64, shift: int, starts: I64, out: I64) -> None:
    """A stable order by fingerprint: one distribution by the top bits, then insertion inside the small buckets."""
    n = len(fps)
    for i in range(n):
        starts[np.int64(fps[i] >> np.uint64(shift)) + 1] += 1
    for b in range(1, len(starts)):
        starts[b] += starts[b - 1]
    for i in range(n):
        bucket = np.int64(fps[i] >> np.uint64(shift))
        at = starts[bucket]
        starts[bucket] += 1
        out[at] = i
    for i in range(1, n):
        x = out[i]
        j = i - 1
        while j >= 0 and fps[out[j]] > fps[x]:
            out[j + 1] = out[j]
            j -= 1
        out[j + 1] = x


@jit
def gather(column: npt.NDArray[Item], order: I64, out: npt.NDArray[Item]) -> None:
    """out[:] = column[order]. numpy holds the interpreter's lock for it, and with it every commit (200 ms of ack
    latency)."""
    for i in range(len(order)):
        out[i] = column[order[i]]


def order_of(fps: U64) -> I64:
    """The permutation that sorts fingerprints (uniform 64-bit values), ascending."""
    bits = min(22, max(1, (len(fps) // 8).bit_length()))
    out = np.empty(len(fps), np.int64)
    _bucket_order(fps, 64 - bits, np.zeros((1 << bits) + 1, np.int64), out)
    return out
