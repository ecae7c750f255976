"""The bits of a blocked Bloom filter: six for a fingerprint, all in one block of 64 bytes (eight words).

`spread` is odd, and moves the bits: filters with different ones are wrong about different ids. The block does not
depend on it, so ids that are sorted are put in from one end of the memory to the other.
"""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import U64, Bools
from imray.kernels.compiler import jit


@jit
def set_bits(fps: U64, words: U64, spread: np.uint64) -> None:
    """Set the six bits of each fingerprint in its block."""
    blocks = np.uint64(len(words) // 8)
    for i in range(len(fps)):
        base = np.int64(((fps[i] >> np.uint64(32)) * blocks) >> np.uint64(32)) * 8
        h = np.uint64(fps[i] * spread)
        for w in range(6):
            bit = (h >> np.uint64(9 * w + 1)) & np.uint64(0x1FF)
            words[base + np.int64(bit >> np.uint64(6))] |= np.uint64(1) << (bit & np.uint64(63))


@jit
def probe_bits(fps: U64, words: U64, spread: np.uint64, out: Bools) -> int:
    """out[i] = whether all six bits of a fingerprint are set; how many are."""
    blocks = np.uint64(len(words) // 8)
    found = 0
    for i in range(len(fps)):
        base = np.int64(((fps[i] >> np.uint64(32)) * blocks) >> np.uint64(32)) * 8
        h = np.uint64(fps[i] * spread)
        hit = True
        for w in range(6):
            bit = (h >> np.uint64(9 * w + 1)) & np.uint64(0x1FF)
            if not (words[base + np.int64(bit >> np.uint64(6))] >> (bit & np.uint64(63))) & np.uint64(1):
                hit = False
                break
        out[i] = hit
        found += hit
    return found
