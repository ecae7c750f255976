"""Columns of old ids put into another order. Their meaning: `imray.kernels.packing`."""

from __future__ import annotations

from imray.kernels.arrays import I32, I64, U32, U64
from imray.kernels.compiler import jit


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
    conv_keys: U64,
    seq: I64,
    payload: U64,
    log_position: I64,
    row: U32,
    commit: I32,
    epochs: I64,
    times: I64,
    out: U64,
) -> None:
    """The same from the columns of a table: `commit[i]` is where `epochs` and `times` say of entry i."""
    for i in range(len(order)):
        e = order[i]
        out[0, i] = fps[e]
        out[1, i] = ids[e, 0]
        out[2, i] = ids[e, 1]
        out[3, i] = conv_keys[e]
        out[4, i] = seq[e]
        out[5, i] = payload[e]
        out[6, i] = log_position[e]
        out[7, i] = row[e]
        out[8, i] = epochs[commit[e]]
        out[9, i] = times[commit[e]]
