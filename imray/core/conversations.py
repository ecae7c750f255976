"""The conversations of a shard and the last number of each: columns, 70 to 130 bytes a conversation.

Owns names and heads. A name is found by its 64-bit key and confirmed byte by byte: keys are no secret, and two names
with one key must stay two conversations.
"""

from __future__ import annotations

import numpy as np

from imray.core.dedup import log_position, slots_for
from imray.kernels.hashing import I32, I64, U8, U64, hash_rows, jit

_FREE = np.uint64(0)
_TAG = np.uint64(0xFFFFFFFF00000000)
_ENTRY = np.uint64(0xFFFFFFFF)


@jit
def _same(a: U8, a0: int, a1: int, b: U8, b0: int, b1: int) -> bool:
    if a1 - a0 != b1 - b0:
        return False
    for i in range(a1 - a0):  # noqa: SIM110 numba compiles the loop, not the generator
        if a[a0 + i] != b[b0 + i]:
            return False
    return True


@jit
def _find(keys: U64, data: U8, offs: I32, slots: U64, text: U8, ends: I64) -> I32:
    out = np.full(len(keys), -1, np.int32)
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        at = keys[i] & mask
        while slots[at] != _FREE:
            if slots[at] & _TAG == keys[i] & _TAG:
                e = np.int64(slots[at] & _ENTRY) - 1
                if _same(text, ends[e], ends[e + 1], data, np.int64(offs[i]), np.int64(offs[i + 1])):
                    out[i] = e
                    break
            at = (at + np.uint64(1)) & mask
    return out


@jit
def _append(text: U8, ends: I64, count: int, data: U8, offs: I32, which: I32) -> None:
    for i in range(len(which)):
        a = np.int64(offs[which[i]])
        n = np.int64(offs[which[i] + 1]) - a
        for j in range(n):
            text[ends[count + i] + j] = data[a + j]
        ends[count + i + 1] = ends[count + i] + n


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


class Conversations:
    """Index <-> name, and the head (last number) of each. An index is given once and never changes."""

    def __init__(self) -> None:
        self.count = 0
        self._text = np.empty(256, np.uint8)
        self._ends = np.zeros(17, np.int64)
        self._keys = np.empty(16, np.uint64)
        self._slots = np.zeros(64, np.uint64)
        self.heads: I64 = np.zeros(16, np.int64)
        """The last number given out."""
        self.stable: I64 = np.zeros(16, np.int64)
        """Everything up to it is durable or void."""
        self.scratch: I32 = np.zeros(16, np.int32)
        """Zero between calls: the counters of a numbering pass. Kept, or a commit would cost O(conversations)."""

    def find(self, data: U8, offsets: I32) -> I32:
        """The index of each name data[offsets[i]:offsets[i+1]] (UTF-8), -1 for an unknown one."""
        return _find(hash_rows(data, offsets), data, offsets, self._slots, self._text, self._ends)

    def index(self, conv_id: str) -> int:
        """The index of one name, or -1."""
        raw = conv_id.encode()
        return int(self.find(np.frombuffer(raw, np.uint8), np.array([0, len(raw)], np.int32))[0])

    def name(self, index: int) -> str:
        """The name behind an index."""
        return self._text[self._ends[index] : self._ends[index + 1]].tobytes().decode()

    def add(self, data: U8, offsets: I32, which: I32) -> None:
        """Add the names data[offsets[k]:offsets[k+1]] for k in `which`; none is known yet. Their head is 0."""
        if not len(which):
            return
        a, b = self.count, self.count + len(which)
        more_bytes = int((offsets[which + 1] - offsets[which]).sum())
        self._reserve(b, int(self._ends[a]) + more_bytes)
        _append(self._text, self._ends, a, data, offsets, which)
        keys = hash_rows(data, offsets)[which]
        self._keys[a:b] = keys
        self.count = b
        if 2 * b > len(self._slots):
            self._slots = slots_for(len(self._keys))
            log_position(self._keys[:b], self._slots, 0)
        else:
            log_position(keys, self._slots, a)

    def _reserve(self, count: int, text_bytes: int) -> None:
        if count > len(self._keys):
            n = max(count, 2 * len(self._keys))
            self._keys = np.resize(self._keys, n)
            self._ends = np.concatenate([self._ends, np.zeros(n + 1 - len(self._ends), np.int64)])
            self.heads = np.concatenate([self.heads, np.zeros(n - len(self.heads), np.int64)])
            self.stable = np.concatenate([self.stable, np.zeros(n - len(self.stable), np.int64)])
            self.scratch = np.zeros(n, np.int32)
        if text_bytes > len(self._text):
            self._text = np.resize(self._text, max(text_bytes, 2 * len(self._text)))

    def reserve(self, more: int) -> None:
        """Make room in `heads` and `scratch` for `more` further conversations."""
        self._reserve(self.count + more, 0)

    def copy_columns(self) -> tuple[U8, I64, I64]:
        """A snapshot: text, ends (count + 1) and heads (count)."""
        n = self.count
        return self._text[: self._ends[n]].copy(), self._ends[: n + 1].copy(), self.heads[:n].copy()

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        arrays = (self._text, self._ends, self._keys, self._slots, self.heads, self.stable, self.scratch)
        return sum(a.nbytes for a in arrays)
