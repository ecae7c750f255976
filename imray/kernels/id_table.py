"""Look-ups in an open-addressing table of 64-bit slots: the upper half is a tag of the key, the lower half an entry.

Owns the search and the insertion. The columns that the entries index belong to the caller, who also decides when a
table grows.
"""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I32, I64, U64
from imray.kernels.compiler import jit

FREE = np.uint64(0)
ENTRY_MASK = np.uint64(0xFFFFFFFF)
TAG_MASK = np.uint64(0xFFFFFFFF00000000)


@jit
def find_entries(fps: U64, ids: U64, conv: I32, slots: U64, e_ids: U64, e_conv: I32, out: I32) -> int:
    """out[i] = the entry that holds (conv[i], ids[i]), or stays; how many were found."""
    mask = np.uint64(len(slots) - 1)
    found = 0
    for i in range(len(fps)):
        at = fps[i] & mask
        tag = fps[i] & TAG_MASK
        while slots[at] != FREE:
            if slots[at] & TAG_MASK == tag:
                e = np.int64(slots[at] & ENTRY_MASK) - 1
                if e_ids[e, 0] == ids[i, 0] and e_ids[e, 1] == ids[i, 1] and e_conv[e] == conv[i]:
                    out[i] = e
                    found += 1
                    break
            at = (at + np.uint64(1)) & mask
    return found


@jit
def insert_if_new(fps: U64, ids: U64, conv: int, slots: U64, e_ids: U64, e_conv: I32, first: int, taken: I64) -> bool:
    """Put rows of one conversation into entries first, first+1, ... in one pass: their slots, `e_ids` and `e_conv`.

    False where an entry holds one of them, or the rows repeat one: then nothing has changed. `taken` is scratch, one
    element a row."""
    mask = np.uint64(len(slots) - 1)
    for i in range(len(fps)):
        at = fps[i] & mask
        tag = fps[i] & TAG_MASK
        while slots[at] != FREE:
            if slots[at] & TAG_MASK == tag:
                e = np.int64(slots[at] & ENTRY_MASK) - 1
                if e_ids[e, 0] == ids[i, 0] and e_ids[e, 1] == ids[i, 1] and e_conv[e] == conv:
                    # what was inserted last goes first, so every chain of slots is as it was
                    for j in range(i - 1, -1, -1):
                        slots[taken[j]] = FREE
                    return False
            at = (at + np.uint64(1)) & mask
        slots[at] = tag | np.uint64(first + i + 1)
        taken[i] = np.int64(at)
        e_ids[first + i, 0] = ids[i, 0]
        e_ids[first + i, 1] = ids[i, 1]
        e_conv[first + i] = conv
    return True


@jit
def insert_entries(fps: U64, slots: U64, first: int) -> None:
    """Put entries first, first+1, ... into free slots; the caller knows that none is there yet."""
    mask = np.uint64(len(slots) - 1)
    for i in range(len(fps)):
        at = fps[i] & mask
        while slots[at] != FREE:
            at = (at + np.uint64(1)) & mask
        slots[at] = (fps[i] & TAG_MASK) | np.uint64(first + i + 1)


@jit
def first_in_batch(fps: U64, ids: U64, conv: I32, slots: U64, out: I32) -> int:
    """out[i] = an earlier row of the same batch with the same (conv, id), or -1; how many such rows.

    `slots` is scratch of a power of two >= 2 * rows, all zero; the caller throws it away."""
    mask = np.uint64(len(slots) - 1)
    found = 0
    for i in range(len(fps)):
        at = fps[i] & mask
        tag = fps[i] & TAG_MASK
        out[i] = -1
        while slots[at] != FREE:
            if slots[at] & TAG_MASK == tag:
                e = np.int64(slots[at] & ENTRY_MASK) - 1
                if ids[e, 0] == ids[i, 0] and ids[e, 1] == ids[i, 1] and conv[e] == conv[i]:
                    out[i] = e
                    found += 1
                    break
            at = (at + np.uint64(1)) & mask
        if out[i] < 0:
            slots[at] = tag | np.uint64(i + 1)
    return found


def slots_for(entries: int) -> U64:
    """A zeroed slot array that is at most half full with `entries` entries."""
    return np.zeros(max(64, 1 << (2 * entries - 1).bit_length()), np.uint64)
