"""Columns of old ids put into another order. Their meaning: `imray.kernels.packing`."""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I32, I64, U32, U64
from imray.kernels.compiler import jit
from imray.kernels.memory import prefetch

_AHEAD = 16
"""Rows between asking for an entry's memory and reading it."""


@jit
def take_ids(ids: U64, order: I64, out: U64) -> None:
    """out (columns, rows) = the columns of `ids`, its rows in the order of `order`."""
    for c in range(len(ids)):
        for i in range(len(order)):
            out[c, i] = ids[c, order[i]]


@jit
def take_entries(
    order: I64,
    fps: U64,
    ids: U64,
    conv: I32,
    conv_keys: U64,
    seq: I64,
    payload: U64,
    row: U32,
    commit: I32,
    commits: I64,
    out: U64,
) -> None:
    """The same from the columns of a table: `fps` are in order already, `conv_keys` has one for each conversation, and
    `commit[e]` says which row of `commits` (log position, epoch, server_ts) entry e has."""
    ids_at = np.int64(ids.ctypes.data)
    seq_at = np.int64(seq.ctypes.data)
    payload_at = np.int64(payload.ctypes.data)
    n = len(order)
    for i in range(n):
        if i + _AHEAD < n:
            ahead = order[i + _AHEAD]
            prefetch(ids_at + 16 * ahead)
            prefetch(seq_at + 8 * ahead)
            prefetch(payload_at + 8 * ahead)
        e = order[i]
        out[0, i] = fps[i]
        out[1, i] = ids[e, 0]
        out[2, i] = ids[e, 1]
        out[3, i] = conv_keys[conv[e]]
        out[4, i] = seq[e]
        out[5, i] = payload[e]
        out[7, i] = row[e]
        which = commit[e]
        out[6, i] = commits[which, 0]
        out[8, i] = commits[which, 1]
        out[9, i] = commits[which, 2]
