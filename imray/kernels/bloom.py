"""The bits of blocked Bloom filters: all that belong to a fingerprint lie in one block of 64 bytes (eight words).

Two layouts: six bits anywhere in the block; or one in each of the eight words, which takes no branch to look at, so
that the look-ups of several ids wait for memory together.

`spread` is odd, and moves the bits: filters with different ones are wrong about different ids. The block does not
depend on it, so ids that are sorted are put in from one end of the memory to the other.
"""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I64, U64, Bools
from imray.kernels.compiler import jit
from imray.kernels.memory import prefetch, u64_at

_AHEAD = 16
"""Ids between asking for a block's memory and looking at it: more than the processor finds out by itself."""


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


@jit
def set_word_bits(fps: U64, words: U64, spread: np.uint64) -> None:
    """Set a bit in each word of each fingerprint's block."""
    blocks = np.uint64(len(words) // 8)
    for i in range(len(fps)):
        base = np.int64(((fps[i] >> np.uint64(32)) * blocks) >> np.uint64(32)) * 8
        h = np.uint64(fps[i] * spread)
        for w in range(8):
            words[base + w] |= np.uint64(1) << ((h >> np.uint64(16 + 6 * w)) & np.uint64(63))


@jit
def _all_set(block: int, h: np.uint64) -> np.uint64:
    found = np.uint64(1)
    for w in range(8):
        found &= u64_at(block + 8 * w) >> ((h >> np.uint64(16 + 6 * w)) & np.uint64(63))
    return found


@jit
def probe_word_bits(fps: U64, filters: I64, blocks: U64, spread: np.uint64, out: U64) -> int:
    """Bit f of out[i] = whether all eight bits of a fingerprint are set in filter f; in how many rows one is.

    `filters` has the addresses of at most 64 filters, `blocks` how many blocks each has."""
    n = len(fps)
    at = np.empty(n, np.int64)
    out[:] = 0
    for f in range(len(filters)):
        count = blocks[f]
        for i in range(n + _AHEAD):
            if i < n:
                at[i] = filters[f] + np.int64(((fps[i] >> np.uint64(32)) * count) >> np.uint64(32)) * 64
                prefetch(at[i])
            if i >= _AHEAD:
                j = i - _AHEAD
                out[j] |= _all_set(at[j], np.uint64(fps[j] * spread)) << np.uint64(f)
    found = 0
    for i in range(n):
        found += out[i] != np.uint64(0)
    return found
