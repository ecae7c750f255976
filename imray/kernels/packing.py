"""Blocks of old ids: each column packed into as few bits a value as its range needs, and searched as it stands.

Owns the layout of a block, which may not change for a data folder: rows (4 bytes), bits of each column, lowest value of
each, then column after column, value minus lowest, least significant bits first. Does not own what is in a column, nor
the digest of a block (`imray.log.id_run`): nothing here may be given bytes that were not verified.

All columns are 64-bit words; (COLUMNS, rows) arrays of them have the columns in the order below.
"""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I64, U64, Bools
from imray.kernels.compiler import jit
from imray.kernels.memory import put_u64, u64_at

COLUMNS = 10
FP = 0
ID_LOW = 1
ID_HIGH = 2
CONV = 3
"""A keyed hash of the conversation's name."""
SEQ = 4
PAYLOAD = 5
LOG_POSITION = 6
ROW = 7
EPOCH = 8
SERVER_TS = 9
_HEAD_BYTES = 16 + 8 * COLUMNS
_BITS_MAX = 57
"""More bits than this may not lie within eight bytes: such a column takes 64."""
SLACK_BYTES = 16
"""Behind the last column: whoever reads eight bytes there stays within the block."""


def block_bytes_max(rows: int) -> int:
    """How long a block of so many rows may be."""
    return _HEAD_BYTES + 8 * COLUMNS * rows + SLACK_BYTES


@jit
def _bits_for(value: np.uint64) -> int:
    bits = 0
    while value:
        value >>= np.uint64(1)
        bits += 1
    return 64 if bits > _BITS_MAX else bits


@jit
def _pack_column(column: U64, low: np.uint64, bits: int, at: int) -> int:
    """Where the next column begins."""
    word = np.uint64(0)
    filled = 0
    to = at
    for i in range(len(column)):
        value = column[i] - low
        word |= value << np.uint64(filled)
        filled += bits
        if filled >= 64:
            put_u64(to, word)
            to += 8
            filled -= 64
            word = value >> np.uint64(bits - filled) if filled else np.uint64(0)
    put_u64(to, word)
    return at + (len(column) * bits + 7) // 8


@jit
def pack_block(columns: U64, first: int, end: int, at: int) -> int:
    """Write rows first .. end-1 of `columns` (COLUMNS, rows) as a block to an address: how many bytes it has."""
    rows = end - first
    put_u64(at, np.uint64(rows))
    put_u64(at + 8, np.uint64(0))
    to = at + _HEAD_BYTES
    widths_low = np.uint64(0)
    widths_high = np.uint64(0)
    for c in range(COLUMNS):
        column = columns[c, first:end]
        low = column[0]
        high = column[0]
        for i in range(1, rows):
            low = min(low, column[i])
            high = max(high, column[i])
        bits = _bits_for(high - low)
        if bits == 64:
            low = np.uint64(0)
        if c < 4:
            widths_low |= np.uint64(bits) << np.uint64(32 + 8 * c)
        else:
            widths_high |= np.uint64(bits) << np.uint64(8 * (c - 4))
        put_u64(at + 16 + 8 * c, low)
        to = _pack_column(column, low, bits, to) if bits else to
    put_u64(at, np.uint64(rows) | widths_low)
    put_u64(at + 8, widths_high)
    end_at = at + (to - at + 7) // 8 * 8 + 8
    put_u64(to, np.uint64(0))
    put_u64(end_at - 8, np.uint64(0))
    return end_at - at


@jit
def _rows(at: int) -> int:
    return int(u64_at(at) & np.uint64(0xFFFFFFFF))


@jit
def _bits(at: int, c: int) -> int:
    word = u64_at(at) >> np.uint64(32 + 8 * c) if c < 4 else u64_at(at + 8) >> np.uint64(8 * (c - 4))
    return int(word & np.uint64(0xFF))


@jit
def _value(column: int, bits: int, low: np.uint64, i: int) -> np.uint64:
    if bits == 0:
        return low
    bit = i * bits
    word = u64_at(column + bit // 8) >> np.uint64(bit % 8)
    if bits == 64:
        return word
    return np.uint64(low + (word & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1))))


@jit
def unpack_block(at: int, out: U64, first: int) -> int:
    """Write a block's rows to `out` (COLUMNS, rows) from row `first` on: how many there are."""
    rows = _rows(at)
    column = at + _HEAD_BYTES
    for c in range(COLUMNS):
        bits = _bits(at, c)
        low = u64_at(at + 16 + 8 * c)
        for i in range(rows):
            out[c, first + i] = _value(column, bits, low, i)
        column += (rows * bits + 7) // 8
    return rows


@jit
def find_in_block(at: int, fps: U64, ids: U64, convs: U64, which: I64, found: Bools, out: U64) -> int:
    """Look rows up in a block: fingerprint, both words of the id and conversation must be equal.

    For each of the rows `which` that is there: found[row] = True and out[row] = its columns; of others `out` holds
    anything. How many are."""
    rows = _rows(at)
    starts = np.empty(COLUMNS, np.int64)
    column = at + _HEAD_BYTES
    for c in range(COLUMNS):
        starts[c] = column
        column += (rows * _bits(at, c) + 7) // 8
    hits = 0
    for k in range(len(which)):
        row = which[k]
        if found[row]:
            continue  # in another block, as its fingerprint stands in both
        low = 0
        high = rows
        while low < high:
            middle = (low + high) // 2
            if _value(starts[FP], _bits(at, FP), u64_at(at + 16), middle) < fps[row]:
                low = middle + 1
            else:
                high = middle
        while low < rows and _value(starts[FP], _bits(at, FP), u64_at(at + 16), low) == fps[row]:
            for c in range(COLUMNS):
                out[row, c] = _value(starts[c], _bits(at, c), u64_at(at + 16 + 8 * c), low)
            if out[row, ID_LOW] == ids[row, 0] and out[row, ID_HIGH] == ids[row, 1] and out[row, CONV] == convs[row]:
                found[row] = True
                hits += 1
                break
            low += 1
    return hits
