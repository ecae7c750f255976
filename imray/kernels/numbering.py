"""Numbers and indices for a batch's rows, in the order of the rows."""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I32, I64, U8
from imray.kernels.compiler import jit


@jit
def assign_new(local: I32, known: I32, next_index: int) -> I32:
    """Give unknown conversations (known[k] < 0) indices from `next_index` in the order their rows appear.

    `known` is filled in place; returned: the local indices of the new ones in that order."""
    fresh = np.empty(len(known), np.int32)
    n = 0
    for i in range(len(local)):
        k = local[i]
        if known[k] < 0:
            known[k] = next_index + n
            fresh[n] = k
            n += 1
    return fresh[:n]


@jit
def number(conv: I32, status: U8, heads: I64, counts: I32, seq: I64, touched: I32) -> int:
    """seq[i] = the next number of its conversation, for each row whose status is 0 (new); how many conversations were
    touched. `counts` is zero before; afterwards it has how many numbers each conversation in `touched` got."""
    n = 0
    for i in range(len(conv)):
        if status[i] == 0:
            c = conv[i]
            if counts[c] == 0:
                touched[n] = c
                n += 1
            counts[c] += 1
            seq[i] = heads[c] + counts[c]
    return n
