"""Which ids were seen: a compact table for recent ones, a filter for each sealed file of older ones.

Owns memory only. A hit in the table is confirmed here against the full 128 bits and the conversation; a filter's
"maybe" must be confirmed by whoever can read files (`imray.log.sealed`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from imray.kernels.hashing import I32, I64, U64, jit

_CAPACITIES = (1 << 14, 1 << 21)
"""A table grows to these, then doubles. Few steps, early: copying and placing a million ids anew stops commits for
200 ms, while memory that was asked for costs nothing until it is used."""
RELEASED = -1
"""The conversation of an entry whose grant became void: no row has it, so none finds it."""
_FREE = np.uint64(0)
_ENTRY_MASK = np.uint64(0xFFFFFFFF)
_TAG_MASK = np.uint64(0xFFFFFFFF00000000)


@jit
def _probe(fps: U64, ids: U64, conv: I32, slots: U64, e_ids: U64, e_conv: I32, out: I32) -> int:
    """out[i] = the entry that holds (conv[i], ids[i]), or stays; how many were found."""
    mask = np.uint64(len(slots) - 1)
    found = 0
    for i in range(len(fps)):
        at = fps[i] & mask
        tag = fps[i] & _TAG_MASK
        while slots[at] != _FREE:
            if slots[at] & _TAG_MASK == tag:
                e = np.int64(slots[at] & _ENTRY_MASK) - 1
                if e_ids[e, 0] == ids[i, 0] and e_ids[e, 1] == ids[i, 1] and e_conv[e] == conv[i]:
                    out[i] = e
                    found += 1
                    break
            at = (at + np.uint64(1)) & mask
    return found


@jit
def log_position(fps: U64, slots: U64, first: int) -> None:
    """Put entries first, first+1, ... into free slots; the caller knows that none is there yet."""
    mask = np.uint64(len(slots) - 1)
    for i in range(len(fps)):
        at = fps[i] & mask
        while slots[at] != _FREE:
            at = (at + np.uint64(1)) & mask
        slots[at] = (fps[i] & _TAG_MASK) | np.uint64(first + i + 1)


@jit
def first_in_batch(fps: U64, ids: U64, conv: I32, slots: U64, out: I32) -> int:
    """out[i] = an earlier row of the same batch with the same (conv, id), or -1; how many such rows.

    `slots` is scratch of a power of two >= 2 * rows, all zero; the caller throws it away."""
    mask = np.uint64(len(slots) - 1)
    found = 0
    for i in range(len(fps)):
        at = fps[i] & mask
        tag = fps[i] & _TAG_MASK
        out[i] = -1
        while slots[at] != _FREE:
            if slots[at] & _TAG_MASK == tag:
                e = np.int64(slots[at] & _ENTRY_MASK) - 1
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


class IdTable:
    """Recent ids with what a retry must be told: open addressing over columns, 55 to 95 bytes an id.

    Entries are numbered in the order they were added. `place` is where the message stands
    (`imray.core.routing.log_position_of`), or minus the number of the grant under which it is in flight."""

    def __init__(self, base_segment: int, capacity: int = 1024) -> None:
        self.base_segment = base_segment
        self.count = 0
        self._allocate(capacity)
        self.slots = slots_for(capacity)

    def _allocate(self, capacity: int) -> None:
        self.fps = np.empty(capacity, np.uint64)
        self.ids = np.empty((capacity, 2), np.uint64)
        self.conv = np.empty(capacity, np.int32)
        self.seq = np.empty(capacity, np.int64)
        self.payload = np.empty(capacity, np.uint64)
        self.log_position = np.empty(capacity, np.int64)
        self.row = np.empty(capacity, np.uint32)

    def clear(self) -> None:
        """Forget everything but the memory: fresh memory costs more than this (page faults)."""
        self.slots[:] = 0
        self.count = 0

    _COLUMNS = ("fps", "ids", "conv", "seq", "payload", "place", "row")

    def find(self, fps: U64, ids: U64, conv: I32) -> I32 | None:
        """The entry of each row's (conv, id), -1 where there is none; None where no row has one."""
        if not self.count:
            return None
        out = np.full(len(fps), -1, np.int32)
        n = _probe(fps, ids, conv, self.slots, self.ids, self.conv, out)
        return out if n else None

    def add(self, fps: U64, ids: U64, conv: I32, seq: I64, payload: U64, where: int, row: np.ndarray) -> None:
        """Remember rows that are in no entry yet: the place of all, and each one's row in its segment."""
        a, b = self.count, self.count + len(fps)
        if b > len(self.fps):
            self._grow(b)
        self.fps[a:b] = fps
        self.ids[a:b] = ids
        self.conv[a:b] = conv
        self.seq[a:b] = seq
        self.payload[a:b] = payload
        self.log_position[a:b] = where
        self.row[a:b] = row
        log_position(fps, self.slots, a)
        self.count = b

    def _grow(self, need: int) -> None:
        old = {name: getattr(self, name) for name in self._COLUMNS}
        self._allocate(next((c for c in _CAPACITIES if c >= need), max(need, 2 * len(self.fps))))
        for name, column in old.items():
            getattr(self, name)[: self.count] = column[: self.count]
        self.slots = slots_for(len(self.fps))
        log_position(self.fps[: self.count], self.slots, 0)

    def mark_durable(self, first: int, end: int, log_position: int) -> None:
        """Entries first .. end-1 were in flight and stand there now."""
        self.log_position[first:end] = log_position

    def release(self, first: int, end: int) -> None:
        """Entries first .. end-1 were in flight and will never be messages: their ids are free again."""
        self.conv[first:end] = RELEASED

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.slots.nbytes + sum(getattr(self, name).nbytes for name in self._COLUMNS)


class SealedIds(Protocol):
    """The ids of one sealed file, as the pure core sees them: a filter that is never wrong about "no"."""

    def maybe(self, fps: U64) -> np.ndarray | None:
        """True for each row that may be there; None where no row may."""


@jit
def _bloom_build(fps: U64, words: U64) -> None:
    blocks = np.uint64(len(words) // 8)
    for i in range(len(fps)):
        base = np.int64(((fps[i] >> np.uint64(32)) * blocks) >> np.uint64(32)) * 8
        h = fps[i] * np.uint64(0x9E3779B97F4A7C15)
        for w in range(6):
            bit = (h >> np.uint64(9 * w + 1)) & np.uint64(0x1FF)
            words[base + np.int64(bit >> np.uint64(6))] |= np.uint64(1) << (bit & np.uint64(63))


@jit
def _bloom_maybe(fps: U64, words: U64, out: np.ndarray) -> int:
    blocks = np.uint64(len(words) // 8)
    found = 0
    for i in range(len(fps)):
        base = np.int64(((fps[i] >> np.uint64(32)) * blocks) >> np.uint64(32)) * 8
        h = fps[i] * np.uint64(0x9E3779B97F4A7C15)
        hit = True
        for w in range(6):
            bit = (h >> np.uint64(9 * w + 1)) & np.uint64(0x1FF)
            if not (words[base + np.int64(bit >> np.uint64(6))] >> (bit & np.uint64(63))) & np.uint64(1):
                hit = False
                break
        out[i] = hit
        found += hit
    return found


class BlockedBloom:
    """A Bloom filter whose six bits for an id lie in one 64-byte block: one cache miss a look-up.

    Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007). 16 bits an id give about
    0.2 % false "maybe". `words` is the whole filter and may be a view of a file."""

    BITS_PER_ID = 16

    def __init__(self, words: U64) -> None:
        self.words = words

    @classmethod
    def build(cls, fps: U64) -> BlockedBloom:
        """The filter over these fingerprints."""
        words = np.zeros(8 * max(1, -(-len(fps) * cls.BITS_PER_ID // 512)), np.uint64)
        _bloom_build(fps, words)
        return cls(words)

    def maybe(self, fps: U64) -> np.ndarray | None:
        """True for each row that may be in the filter; None where no row may."""
        out = np.empty(len(fps), np.bool_)
        return out if _bloom_maybe(fps, self.words, out) else None
