"""Users by index, and lists of them by conversation: what members and read cursors are kept in.

Owns the memory: columns and one arena for all lists, so that a million small conversations cost no Python objects. A
user's name stands once. Does not own what a list's values mean (`imray.core.members`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from imray.kernels.arrays import I32, I64, U8, Bools
from imray.kernels.hashing import hash_rows
from imray.kernels.id_table import insert_entries
from imray.kernels.names import append_names, find_names

Values = npt.NDArray[Any]

_SLOTS_MIN = 64
_FILLED_MAX = 0.85
"""Of the slots: fuller ones take longer to search, emptier ones are bytes for each user."""
_GARBAGE_MIN = 4096
"""Rows of the arena that nobody uses: with fewer, closing the ranks costs more than it frees."""


def _grown(column: Values, size: int, used: int) -> Values:
    """A column with room for `size`, or a quarter more than it has: what lies behind `used` is not touched, so it takes
    no memory yet."""
    made = np.zeros(max(size, len(column) + len(column) // 4), column.dtype)
    made[:used] = column[:used]
    return made


def text_columns(names: Iterable[str]) -> tuple[U8, I32]:
    """Names as data and offsets."""
    raw = [name.encode() for name in names]
    offsets = np.zeros(len(raw) + 1, np.int32)
    np.cumsum([len(r) for r in raw], out=offsets[1:])
    return np.frombuffer(b"".join(raw), np.uint8), offsets


class Users:
    """Index <-> name. An index is given once and never changes; no name is ever forgotten."""

    def __init__(self) -> None:
        self.count = 0
        self._text: U8 = np.empty(0, np.uint8)
        self._ends: I64 = np.zeros(1, np.int64)
        self._slots = np.zeros(_SLOTS_MIN, np.uint64)

    def find(self, data: U8, offsets: I32) -> I32:
        """The index of each name data[offsets[i]:offsets[i+1]] (UTF-8), -1 for an unknown one."""
        return find_names(hash_rows(data, offsets), data, offsets, self._slots, self._text, self._ends)

    def index(self, name: str) -> int:
        """The index of one name, or -1."""
        return int(self.find(*text_columns([name]))[0])

    def name(self, index: int) -> str:
        """The name behind an index."""
        return self._text[self._ends[index] : self._ends[index + 1]].tobytes().decode()

    def names(self, indices: I32) -> list[str]:
        """The names behind some indices."""
        return [self.name(i) for i in indices.tolist()]

    def add(self, names: Iterable[str]) -> I32:
        """The index of each name; unknown ones get the next, in their order."""
        each = list(names)
        known = dict.fromkeys(each)
        data, offsets = text_columns(known)
        found = self.find(data, offsets) if known else np.empty(0, np.int32)
        fresh = np.flatnonzero(found < 0).astype(np.int32)
        if len(fresh):
            found[fresh] = np.arange(self.count, self.count + len(fresh), dtype=np.int32)
            self._append(data, offsets, fresh)
        index_of = dict(zip(known, found.tolist(), strict=True))
        return np.array([index_of[name] for name in each], np.int32)

    def _append(self, data: U8, offsets: I32, which: I32) -> None:
        a = self.count
        b = a + len(which)
        text_bytes = int(self._ends[a]) + int((offsets[which + 1] - offsets[which]).sum())
        if text_bytes > len(self._text):
            self._text = _grown(self._text, text_bytes, int(self._ends[a]))
        if b >= len(self._ends):
            self._ends = _grown(self._ends, b + 1, a + 1)
        append_names(self._text, self._ends, a, data, offsets, which)
        self.count = b
        if b > _FILLED_MAX * len(self._slots):
            self._slots = np.zeros(1 << int(b / _FILLED_MAX).bit_length(), np.uint64)
            text = self._text.view()
            text.flags.writeable = False  # as what comes in: another kind of array would be compiled by itself
            insert_entries(hash_rows(text, self._ends[: b + 1].astype(np.int32)), self._slots, 0)
        else:
            insert_entries(hash_rows(data, offsets)[which], self._slots, a)

    def columns(self, first: int = 0) -> tuple[U8, I64]:
        """A snapshot of those from an index on: text and ends (one more than there are users)."""
        ends = self._ends[first : self.count + 1]
        return self._text[ends[0] : ends[-1]].copy(), ends - ends[0]

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._text.nbytes + self._ends.nbytes + self._slots.nbytes


class UserLists:
    """For each conversation (by its index) users, ascending, each with a value."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self.begins: I64 = np.zeros(0, np.int64)
        self.counts: I32 = np.zeros(0, np.int32)
        self._rooms: I32 = np.zeros(0, np.int32)
        self.users: I32 = np.empty(0, np.int32)
        """The arena: those of a conversation are users[begin : begin + count]."""
        self.values: Values = np.empty(0, dtype)
        self._end = 0
        self._garbage = 0

    def of(self, conv: int) -> tuple[I32, Values]:
        """Users and values of a conversation, as views."""
        if not 0 <= conv < len(self.counts):
            return self.users[:0], self.values[:0]
        begin = int(self.begins[conv])
        end = begin + int(self.counts[conv])
        return self.users[begin:end], self.values[begin:end]

    def count(self, conv: int) -> int:
        """How many users a conversation has."""
        return int(self.counts[conv]) if 0 <= conv < len(self.counts) else 0

    def values_of(self, conv: int, users: I32) -> Values:
        """The value of each user, 0 where there is none."""
        there, values = self.of(conv)
        found = np.zeros(len(users), self.values.dtype)
        if len(there):
            at = np.minimum(np.searchsorted(there, users), len(there) - 1)
            hit = there[at] == users
            found[hit] = values[at[hit]]
        return found

    def put(self, conv: int, users: I32, values: Values) -> None:
        """Set the values of users, each of whom is named once."""
        order = np.argsort(users, kind="stable")
        users = users[order]
        values = values[order].astype(self.values.dtype)
        there, its = self.of(conv)
        at = np.searchsorted(there, users)
        known: Bools = np.zeros(len(users), np.bool_)
        inside = at < len(there)
        known[inside] = there[at[inside]] == users[inside]
        its[at[known]] = values[known]
        if known.all():
            return
        new = ~known
        self._write(conv, np.insert(there, at[new], users[new]), np.insert(its, at[new], values[new]))

    def remove(self, conv: int, users: I32) -> None:
        """Take users out, where they are there."""
        there, its = self.of(conv)
        keep = ~np.isin(there, users)
        self._write(conv, there[keep], its[keep])

    def _write(self, conv: int, users: I32, values: Values) -> None:
        """The list of a conversation, whole; not views into the arena."""
        n = len(users)
        self.reserve(conv + 1)
        if n > self._rooms[conv]:
            self._move(conv, n + n // 8 + 1)
        begin = int(self.begins[conv])
        self.users[begin : begin + n] = users
        self.values[begin : begin + n] = values
        self.counts[conv] = n

    def reserve(self, conversations: int) -> None:
        """Make room in `begins` and `counts` for so many conversations."""
        n = len(self.counts)
        if conversations > n:
            self.begins = _grown(self.begins, conversations, n)
            self.counts = _grown(self.counts, conversations, n)
            self._rooms = _grown(self._rooms, conversations, n)

    def _move(self, conv: int, room: int) -> None:
        """Give a conversation room at the end of the arena; what was there is not taken along."""
        self._garbage += int(self._rooms[conv])
        self.counts[conv] = 0
        self._rooms[conv] = 0
        if self._garbage > _GARBAGE_MIN and 2 * self._garbage > self._end:
            self._close_ranks()
        end = self._end + room
        if end > len(self.users):
            self.users = _grown(self.users, end, self._end)
            self.values = _grown(self.values, end, self._end)
        self.begins[conv] = self._end
        self._rooms[conv] = room
        self._end = end

    def _close_ranks(self) -> None:
        offsets, users, values = self.columns(np.arange(len(self.counts)))
        self.begins = offsets[:-1].astype(np.int64)
        self._rooms = self.counts.copy()
        self.users = users
        self.values = values
        self._end = len(users)
        self._garbage = 0

    def columns(self, conversations: I64) -> tuple[I64, I32, Values]:
        """A snapshot of some conversations, one list after the other: offsets (one more than those), users, values."""
        known = conversations < len(self.counts)
        counts = np.zeros(len(conversations), np.int64)
        counts[known] = self.counts[conversations[known]]
        begins = np.zeros(len(conversations), np.int64)
        begins[known] = self.begins[conversations[known]]
        offsets = np.zeros(len(conversations) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        # each row's place in the arena: its list's begin, and how far it is in the list
        where = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], counts)
        return offsets, self.users[where], self.values[where]

    def restore(self, conversations: I64, offsets: I64, users: I32, values: Values) -> None:
        """The inverse of `columns`: the lists of some conversations, whole."""
        if self._end == 0 and np.array_equal(conversations, np.arange(len(conversations))):
            self.begins = offsets[:-1].astype(np.int64)
            self.counts = np.diff(offsets).astype(np.int32)
            self._rooms = self.counts.copy()
            self.users = users.astype(np.int32)
            self.values = values.astype(self.values.dtype)
            self._end = len(users)
            return
        for i, conv in enumerate(conversations.tolist()):
            self._write(conv, users[offsets[i] : offsets[i + 1]], values[offsets[i] : offsets[i + 1]])

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        columns = (self.begins, self.counts, self._rooms, self.users, self.values)
        return sum(c.nbytes for c in columns)
