"""The order of rows that are nearly sorted: by the rank of their conversation, then by number and place in the log."""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I32, I64
from imray.kernels.compiler import jit


@jit
def order_by_rank(ranks: I32, count: int) -> tuple[I64, I64]:
    """The rows by rank, those of one rank as they stood; and where each of the `count` ranks begins in that order."""
    starts = np.zeros(count + 1, np.int64)
    for i in range(len(ranks)):
        starts[ranks[i] + 1] += 1
    for r in range(count):
        starts[r + 1] += starts[r]
    ends = starts[:-1].copy()
    order = np.empty(len(ranks), np.int64)
    for i in range(len(ranks)):
        order[ends[ranks[i]]] = i
        ends[ranks[i]] += 1
    return order, starts


@jit
def _less(a: np.int64, b: np.int64, seqs: I64, logs: I32, segments: I64, rows: I32) -> bool:
    if seqs[a] != seqs[b]:
        return bool(seqs[a] < seqs[b])
    if logs[a] != logs[b]:
        return bool(logs[a] < logs[b])
    if segments[a] != segments[b]:
        return bool(segments[a] < segments[b])
    return bool(rows[a] < rows[b])


@jit
def _merge(order: I64, a: int, b: int, c: int, scratch: I64, seqs: I64, logs: I32, segments: I64, rows: I32) -> None:
    """Merge order[a:b] and order[b:c], each sorted, in place."""
    n = b - a
    for i in range(n):
        scratch[i] = order[a + i]
    i = 0
    j = b
    to = a
    while i < n and j < c:
        if _less(order[j], scratch[i], seqs, logs, segments, rows):
            order[to] = order[j]
            j += 1
        else:
            order[to] = scratch[i]
            i += 1
        to += 1
    while i < n:
        order[to] = scratch[i]
        i += 1
        to += 1


@jit
def sort_within(order: I64, starts: I64, seqs: I64, logs: I32, segments: I64, rows: I32) -> None:
    """Sort the rows of each rank by number, log, segment and row, in place: a merge of the stretches that are sorted
    already. One comparison a row where all are; of K logs that were written at once, as many as log2(K) more."""
    longest = 0
    for c in range(len(starts) - 1):
        longest = max(longest, starts[c + 1] - starts[c])
    scratch = np.empty(longest, np.int64)
    bounds = np.empty(longest + 1, np.int64)
    for c in range(len(starts) - 1):
        first = starts[c]
        end = starts[c + 1]
        n = 0
        bounds[0] = first
        for i in range(first + 1, end):
            if _less(order[i], order[i - 1], seqs, logs, segments, rows):
                n += 1
                bounds[n] = i
        n += 1
        bounds[n] = end
        while n > 1:
            m = 0
            j = 0
            while j < n:
                bounds[m] = bounds[j]
                if j + 1 < n:
                    _merge(order, bounds[j], bounds[j + 1], bounds[j + 2], scratch, seqs, logs, segments, rows)
                m += 1
                j += 2
            bounds[m] = end
            n = m


@jit
def compact_codes(codes: I32, renumbered: I32, out: I32, used: I32) -> int:
    """The codes (-1: null) numbered anew from 0 as they first come: into `out`; `used` gets the old code of each new
    one. How many there are. `renumbered` holds -1 for each old code, before and after."""
    count = 0
    for i in range(len(codes)):
        code = codes[i]
        if code < 0:
            out[i] = -1
            continue
        new = renumbered[code]
        if new < 0:
            new = count
            renumbered[code] = new
            used[new] = code
            count += 1
        out[i] = new
    for k in range(count):
        renumbered[used[k]] = -1
    return count
