"""The conversations of a shard and the last number of each: columns, 70 to 130 bytes a conversation.

Owns names and heads. A name is found by its 64-bit key and confirmed byte by byte: keys are no secret, and two names
with one key must stay two conversations.
"""

from __future__ import annotations

import numpy as np

from imray.kernels.arrays import I32, I64, U8, Bools
from imray.kernels.hashing import hash_rows
from imray.kernels.id_table import insert_entries, slots_for
from imray.kernels.names import append_names, find_names


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
        self._changed: Bools = np.zeros(16, np.bool_)
        self.scratch: I32 = np.zeros(16, np.int32)
        """Zero between calls: the counters of a numbering pass. Kept, or a commit would cost O(conversations)."""

    def find(self, data: U8, offsets: I32) -> I32:
        """The index of each name data[offsets[i]:offsets[i+1]] (UTF-8), -1 for an unknown one."""
        return find_names(hash_rows(data, offsets), data, offsets, self._slots, self._text, self._ends)

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
        a = self.count
        b = a + len(which)
        more_bytes = int((offsets[which + 1] - offsets[which]).sum())
        self._reserve(b, int(self._ends[a]) + more_bytes)
        append_names(self._text, self._ends, a, data, offsets, which)
        keys = hash_rows(data, offsets)[which]
        self._keys[a:b] = keys
        self.count = b
        self._changed[a:b] = True
        if 2 * b > len(self._slots):
            self._slots = slots_for(len(self._keys))
            insert_entries(self._keys[:b], self._slots, 0)
        else:
            insert_entries(keys, self._slots, a)

    def _reserve(self, count: int, text_bytes: int) -> None:
        if count > len(self._keys):
            n = max(count, 2 * len(self._keys))
            self._keys = np.resize(self._keys, n)
            self._ends = np.concatenate([self._ends, np.zeros(n + 1 - len(self._ends), np.int64)])
            self.heads = np.concatenate([self.heads, np.zeros(n - len(self.heads), np.int64)])
            self.stable = np.concatenate([self.stable, np.zeros(n - len(self.stable), np.int64)])
            self._changed = np.concatenate([self._changed, np.zeros(n - len(self._changed), np.bool_)])
            self.scratch = np.zeros(n, np.int32)
        if text_bytes > len(self._text):
            self._text = np.resize(self._text, max(text_bytes, 2 * len(self._text)))

    def reserve(self, more: int) -> None:
        """Make room in `heads` and `scratch` for `more` further conversations."""
        self._reserve(self.count + more, 0)

    def head_changed(self, which: I32 | int) -> None:
        """The heads of some were raised, or of one."""
        self._changed[which] = True

    def raise_head(self, conv: int, number: int) -> None:
        """All numbers of a conversation up to one are settled."""
        for column in (self.heads, self.stable):
            column[conv] = max(column[conv], number)
        self.head_changed(conv)

    def take_changed(self) -> I64:
        """The conversations that are new, or whose heads were raised, since the last time: ascending."""
        changed = np.flatnonzero(self._changed[: self.count])
        self._changed[changed] = False
        return changed

    def copy_columns(self) -> tuple[U8, I64, I64]:
        """A snapshot: text, ends (count + 1) and heads (count). Names are only ever added, so theirs need no copy."""
        n = self.count
        return self._text[: self._ends[n]], self._ends[: n + 1], self.heads[:n].copy()

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        arrays = (self._text, self._ends, self._keys, self._slots, self.heads, self.stable, self.scratch)
        return sum(a.nbytes for a in arrays) + self._changed.nbytes
