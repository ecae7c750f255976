"""The bits of blocked Bloom filters: all that belong to a fingerprint lie in one block of 64 bytes (eight words).

Two layouts: six bits anywhere in the block; or one in each of the eight words, which takes no branch to look at, so
that the look-ups of several ids wait for memory together. Of the second, the last word has 32 bits for ids, and in its
upper half a sum of the block: a filter is a map of a file, and what changes there while it is in use may not turn into
"no". The sum is in the line of the cache that is looked at anyway.

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
_OF_WORD = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
    np.uint64(0xC2B2AE3D27D4EB4F),
    np.uint64(0x165667B19E3779F9),
    np.uint64(0xD6E8FEB86659FD93),
    np.uint64(0xFF51AFD7ED558CCD),
    np.uint64(0xC4CEB9FE1A85EC53),
)
"""What a block's words are multiplied with before they are summed up: odd, so that no bit is lost. On disk: they, and
the next two, may not change."""
_OF_PLACE = np.uint64(0xA0761D6478BD642F)
_OF_SIZE = np.uint64(0xE7037ED1A0B428DB)
_LOW = np.uint64(0xFFFFFFFF)


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
    """Set a bit in each word of each fingerprint's block; `set_sums` when all are in."""
    blocks = np.uint64(len(words) // 8)
    for i in range(len(fps)):
        base = np.int64(((fps[i] >> np.uint64(32)) * blocks) >> np.uint64(32)) * 8
        h = np.uint64(fps[i] * spread)
        for w in range(7):
            words[base + w] |= np.uint64(1) << ((h >> np.uint64(16 + 6 * w)) & np.uint64(63))
        words[base + 7] |= np.uint64(1) << (h >> np.uint64(59))


@jit
def set_sums(words: U64) -> None:
    """Write each block's sum beside the bits of its last word: to be done once."""
    at = int(np.int64(words.ctypes.data))
    blocks = len(words) // 8
    for b in range(blocks):
        words[8 * b + 7] |= _sum_of(at + 64 * b, b, np.uint64(blocks)) << np.uint64(32)


@jit
def are_whole(words: U64) -> bool:
    """Whether each block has the sum that it should have."""
    at = int(np.int64(words.ctypes.data))
    blocks = len(words) // 8
    changed = 0
    for b in range(blocks):
        changed += words[8 * b + 7] >> np.uint64(32) != _sum_of(at + 64 * b, b, np.uint64(blocks))
    return changed == 0


@jit
def _sum_of(block: int, number: int, blocks: np.uint64) -> np.uint64:
    """What the bits of a block, at an address, sum up to: 32 bits. Of a filter with so many blocks it is that number:
    another one in its place does not verify, nor do zeros."""
    total = (np.uint64(number) + blocks * _OF_SIZE + np.uint64(1)) * _OF_PLACE
    for w in range(7):
        total += u64_at(block + 8 * w) * _OF_WORD[w]
    total += (u64_at(block + 56) & _LOW) * _OF_WORD[7]
    return total >> np.uint64(32)


@jit
def _all_set(block: int, h: np.uint64) -> np.uint64:
    found = u64_at(block + 56) >> (h >> np.uint64(59))
    for w in range(7):
        found &= u64_at(block + 8 * w) >> ((h >> np.uint64(16 + 6 * w)) & np.uint64(63))
    return found & np.uint64(1)


@jit
def probe_word_bits(fps: U64, filters: I64, blocks: U64, spread: np.uint64, out: U64) -> tuple[np.uint64, np.uint64]:
    """Bit f of out[i] = whether all eight bits of a fingerprint are set in filter f, or its block does not verify.

    Returned: the filters in which a row has one, and those of which a block did not verify, as bits. `filters` has the
    addresses of at most 64 filters, `blocks` how many blocks each has."""
    n = len(fps)
    at = np.empty(n, np.int64)
    out[:] = 0
    changed = np.uint64(0)
    for f in range(len(filters)):
        count = blocks[f]
        first = filters[f]
        is_changed = np.uint64(0)
        for i in range(n + _AHEAD):
            if i < n:
                at[i] = np.int64(((fps[i] >> np.uint64(32)) * count) >> np.uint64(32))
                prefetch(first + at[i] * 64)
            if i >= _AHEAD:
                j = i - _AHEAD
                block = first + at[j] * 64
                is_other = np.uint64(u64_at(block + 56) >> np.uint64(32) != _sum_of(block, at[j], count))
                out[j] |= (_all_set(block, np.uint64(fps[j] * spread)) | is_other) << np.uint64(f)
                is_changed |= is_other
        changed |= is_changed << np.uint64(f)
    found = np.uint64(0)
    for i in range(n):
        found |= out[i]
    return found, changed
