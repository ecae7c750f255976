"""Sorting columns by fingerprint, compiled and without the interpreter's lock.

numpy would hold that lock, and with it every commit (200 ms of ack latency for a million rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from imray.kernels.arrays import I32, I64, U32, U64
from imray.kernels.compiler import jit

Columns: TypeAlias = tuple[U64, I64, U32]
"""Fingerprints and two columns that go with them."""

_BUCKET_ROWS = 512
_BUCKET_BITS_MAX = 11
"""So many buckets are written to at once that their ends stay in the nearest caches."""
_CELL_ROWS = 4
_CELL_BITS_MAX = 13


@jit
def _count(fps: U64, shift: int, starts: I64) -> None:
    for i in range(len(fps)):
        starts[np.int64(fps[i] >> np.uint64(shift)) + 1] += 1


@jit
def _scatter(fps: U64, longs: I64, ints: U32, shift: int, at: I64, out_fps: U64, out_longs: I64, out_ints: U32) -> None:
    for i in range(len(fps)):
        bucket = np.int64(fps[i] >> np.uint64(shift))
        to = at[bucket]
        at[bucket] = to + 1
        out_fps[to] = fps[i]
        out_longs[to] = longs[i]
        out_ints[to] = ints[i]


@jit
def _sort_bucket(
    fps: U64, longs: I64, ints: U32, shift: int, cells: I32, order: I32, s_fps: U64, s_longs: I64, s_ints: U32
) -> None:
    """Sort one bucket in place: once more by the next bits, then by insertion. `order` and `s_...` are scratch, of its
    rows at least; `cells` has a power of two of elements, and one."""
    n = len(fps)
    mask = np.uint64(len(cells) - 2)
    for c in range(len(cells)):
        cells[c] = 0
    for i in range(n):
        cells[np.int64((fps[i] >> np.uint64(shift)) & mask) + 1] += 1
    for c in range(1, len(cells)):
        cells[c] += cells[c - 1]
    for i in range(n):
        cell = np.int64((fps[i] >> np.uint64(shift)) & mask)
        order[cells[cell]] = i
        cells[cell] += 1
    for i in range(1, n):
        x = order[i]
        j = i - 1
        while j >= 0 and fps[order[j]] > fps[x]:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = x
    for i in range(n):
        s_fps[i] = fps[order[i]]
        s_longs[i] = longs[order[i]]
        s_ints[i] = ints[order[i]]
    fps[:] = s_fps[:n]
    longs[:] = s_longs[:n]
    ints[:] = s_ints[:n]


@jit
def _sort_buckets(ends: I64, shift: int, cell_bits: int, fps: U64, longs: I64, ints: U32) -> None:
    largest = np.int64(0)
    begin = np.int64(0)
    for b in range(len(ends)):
        largest = max(largest, ends[b] - begin)
        begin = ends[b]
    order = np.empty(largest, np.int32)
    s_fps = np.empty(largest, np.uint64)
    s_longs = np.empty(largest, np.int64)
    s_ints = np.empty(largest, np.uint32)
    cells = np.empty((1 << cell_bits) + 1, np.int32)
    begin = np.int64(0)
    for b in range(len(ends)):
        end = ends[b]
        if end - begin > 1:
            here = slice(begin, end)
            _sort_bucket(
                fps[here], longs[here], ints[here], shift - cell_bits, cells, order, s_fps, s_longs, s_ints
            )  # fmt: skip
        begin = end


def sort_into(parts: Sequence[Columns], out: Columns) -> None:
    """The rows of all parts in `out`, ascending by fingerprint, equal ones in the order of the parts and their rows.

    Fingerprints are uniform 64-bit values (others take longer): distributed by their top bits, then within each bucket,
    which the caches hold. Every part is read from end to end, and nothing of their size is needed beside `out`."""
    rows = len(out[0])
    bits = min(_BUCKET_BITS_MAX, max(1, (rows // _BUCKET_ROWS).bit_length()))
    shift = 64 - bits
    starts = np.zeros((1 << bits) + 1, np.int64)
    for fps, _, _ in parts:
        _count(fps, shift, starts)
    at = np.cumsum(starts)[:-1]
    for fps, longs, ints in parts:
        _scatter(fps, longs, ints, shift, at, *out)
    cell_bits = min(_CELL_BITS_MAX, max(1, ((rows >> bits) // _CELL_ROWS).bit_length()))
    _sort_buckets(at, shift, cell_bits, *out)
