"""Which ids were seen: a compact table for recent ones, a filter for each sealed file of older ones.

Owns memory only. A hit in the table is confirmed here against the full 128 bits and the conversation; a filter's
"maybe" must be confirmed by whoever can read files (`imray.log.sealed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from imray.kernels.arrays import I32, I64, U32, U64, Bools
from imray.kernels.bloom import are_whole, probe_bits, probe_word_bits, set_bits, set_sums, set_word_bits
from imray.kernels.id_table import find_entries, insert_entries, insert_if_new, slots_for

_CAPACITIES = (1 << 14, 1 << 21)
"""A table grows to these, then doubles. Few steps, early: copying and inserting a million ids anew stops commits for
200 ms, while memory that was asked for costs nothing until it is used."""
_PLAIN = np.uint64(0x9E3779B97F4A7C15)
"""Of the filters in files: it may not change."""
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
"""Of the filter in front: where it is wrong about an id, the others are not for that (`imray.kernels.bloom`)."""
RELEASED = -1
"""The conversation of an entry whose grant became void: no row has it, so none finds it."""


class IdTable:
    """Recent ids with what a retry must be told: open addressing over columns, 55 to 95 bytes an id.

    Entries are numbered in the order they were added. `log_position` is where the message stands
    (`imray.core.routing.log_position_of`), or minus the number of the grant under which it is in flight."""

    def __init__(self, base_segment: int, capacity: int = 1024) -> None:
        self.base_segment = base_segment
        self.count = 0
        self._allocate(capacity)
        self.slots = slots_for(capacity)
        self._taken: I64 = np.empty(0, np.int64)

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

    _COLUMNS = ("fps", "ids", "conv", "seq", "payload", "log_position", "row")

    def find(self, fps: U64, ids: U64, conv: I32) -> I32 | None:
        """The entry of each row's (conv, id), -1 where there is none; None where no row has one."""
        if not self.count:
            return None
        out = np.full(len(fps), -1, np.int32)
        n = find_entries(fps, ids, conv, self.slots, self.ids, self.conv, out)
        return out if n else None

    def add(self, fps: U64, ids: U64, conv: I32, seq: I64, payload: U64, log_position: int, row: U32) -> None:
        """Remember rows that are in no entry yet: the log position of all, and each one's row in its segment."""
        a = self.count
        b = a + len(fps)
        if b > len(self.fps):
            self._grow(b)
        self.fps[a:b] = fps
        self.ids[a:b] = ids
        self.conv[a:b] = conv
        self.seq[a:b] = seq
        self.payload[a:b] = payload
        self.log_position[a:b] = log_position
        self.row[a:b] = row
        insert_entries(fps, self.slots, a)
        self.count = b

    def add_new(self, fps: U64, ids: U64, conv: int, first_seq: int, payload: U64, log_position: int) -> bool:
        """As `add` for rows of one conversation, numbered from `first_seq`, which are rows 0, 1, ... of their segment.

        Looked up and added in one pass. False where one of them is known or comes twice: then nothing was added."""
        n = len(fps)
        a = self.count
        b = a + n
        if b > len(self.fps):
            self._grow(b)
        if n > len(self._taken):
            self._taken = np.empty(2 * n, np.int64)
        if not insert_if_new(fps, ids, conv, self.slots, self.ids, self.conv, a, self._taken):
            return False
        self.fps[a:b] = fps
        self.seq[a:b] = np.arange(first_seq, first_seq + n)
        self.payload[a:b] = payload
        self.log_position[a:b] = log_position
        self.row[a:b] = np.arange(n)
        self.count = b
        return True

    def has_any(self, fps: U64, ids: U64, conv: int) -> bool:
        """Whether an entry holds one of some ids of a conversation."""
        return self.find(fps, ids, np.full(len(fps), conv, np.int32)) is not None

    def _grow(self, need: int) -> None:
        old = {name: getattr(self, name) for name in self._COLUMNS}
        self._allocate(next((c for c in _CAPACITIES if c >= need), max(need, 2 * len(self.fps))))
        for name, column in old.items():
            getattr(self, name)[: self.count] = column[: self.count]
        self.slots = slots_for(len(self.fps))
        insert_entries(self.fps[: self.count], self.slots, 0)

    def mark_durable(self, first: int, end: int, log_position: int) -> None:
        """Entries first .. end-1 were in flight and stand there now."""
        self.log_position[first:end] = log_position

    def release(self, first: int, end: int) -> None:
        """Entries first .. end-1 were in flight and will never be messages: their ids are free again."""
        self.conv[first:end] = RELEASED

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        columns_bytes: int = sum(getattr(self, name).nbytes for name in self._COLUMNS)
        return self.slots.nbytes + columns_bytes


class SealedIds(Protocol):
    """The ids of one sealed file, as the pure core sees them: a filter that is never wrong about "no"."""

    def maybe(self, fps: U64) -> Bools | None:
        """True for each row that may be there; None where no row may."""


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
        made = cls(np.zeros(cls.words_for(len(fps)), np.uint64))
        made.put(fps)
        return made

    @classmethod
    def words_for(cls, ids: int) -> int:
        """How many words a filter over so many ids has."""
        return 8 * max(1, -(-ids * cls.BITS_PER_ID // 512))

    def put(self, fps: U64) -> None:
        """Put ids into it; as many as it was made for, or it is wrong more often."""
        set_bits(fps, self.words, _PLAIN)

    def maybe(self, fps: U64) -> Bools | None:
        """True for each row that may be in the filter; None where no row may."""
        out = np.empty(len(fps), np.bool_)
        return out if probe_bits(fps, self.words, _PLAIN, out) else None


class WordBloom:
    """A Bloom filter whose eight bits for an id lie in the eight words of one 64-byte block, with a sum of the block.

    26 bits an id give 0.009 % false "maybe", a twentieth of what `BlockedBloom` has: each one costs a look into a file,
    and a request of a thousand rows asks fifteen filters. `words` may be a view of a file, and change with it: a block
    whose sum is another one says "maybe" to every id, and `is_changed` is set."""

    BITS_PER_ID = 26

    def __init__(self, words: U64) -> None:
        self.words = words
        self.is_changed = False
        """A block did not verify when it was looked at: its file is damaged."""

    @classmethod
    def words_for(cls, ids: int) -> int:
        """How many words a filter over so many ids has."""
        return 8 * max(1, -(-ids * cls.BITS_PER_ID // 512))

    def put(self, fps: U64) -> None:
        """Put ids into it; as many as it was made for, or it is wrong more often."""
        set_word_bits(fps, self.words, _PLAIN)

    def seal(self) -> None:
        """All ids are in it: it may be asked now. Once."""
        set_sums(self.words)

    @property
    def is_whole(self) -> bool:
        """Whether every block verifies."""
        return are_whole(self.words)

    def maybe(self, fps: U64) -> Bools | None:
        """True for each row that may be in the filter; None where no row may."""
        out = np.empty(len(fps), np.uint64)
        found, changed = probe_word_bits(fps, *_addresses([self]), _PLAIN, out)
        self.is_changed |= bool(changed)
        return out != 0 if found else None


def _addresses(filters: Sequence[WordBloom]) -> tuple[I64, U64]:
    """Where the filters are in memory, and how many blocks each has."""
    at = np.array([f.words.ctypes.data for f in filters], np.int64)
    return at, np.array([len(f.words) // 8 for f in filters], np.uint64)


class FilterBank:
    """The filters of a list of sealed files, asked together: one call, however many there are."""

    _AT_ONCE = 64

    def __init__(self, files: Sequence[SealedIds]) -> None:
        self.files = files
        self._with_words: list[tuple[SealedIds, WordBloom]] = []
        self._others: list[SealedIds] = []
        for each in files:
            bloom = getattr(each, "bloom", None)
            if isinstance(bloom, WordBloom):
                self._with_words.append((each, bloom))
            else:
                self._others.append(each)
        pieces = range(0, len(self._with_words), self._AT_ONCE)
        self._filters = [_addresses([bloom for _, bloom in self._with_words[a : a + self._AT_ONCE]]) for a in pieces]

    def maybe(self, fps: U64) -> list[tuple[SealedIds, Bools]]:
        """For each file that may have some of these ids: True for each row that may be there."""
        found: list[tuple[SealedIds, Bools]] = []
        for piece, filters in enumerate(self._filters):
            bits = np.empty(len(fps), np.uint64)
            which, changed = probe_word_bits(fps, *filters, _PLAIN, bits)
            first = piece * self._AT_ONCE
            for f in _bits_of(int(changed)):
                self._with_words[first + f][1].is_changed = True
            for f in _bits_of(int(which)):
                found.append((self._with_words[first + f][0], bits & np.uint64(1 << f) != 0))
        found += [(each, hit) for each in self._others if (hit := each.maybe(fps)) is not None]
        return found


def _bits_of(which: int) -> Iterator[int]:
    while which:
        yield (which & -which).bit_length() - 1
        which &= which - 1


class SealedFilter:
    """One filter in front of those of many sealed files: an id that it does not know need not be asked for in any.

    Two bytes an id, or up to four: it is made with room for as many again."""

    def __init__(self, room: int) -> None:
        """`room`: ids that it may hold."""
        self._room = room
        self._count = 0
        self._words: U64 = np.zeros(BlockedBloom.words_for(room), np.uint64)
        self.holds: set[SealedIds] = set()
        """The files whose ids are in it."""
        self._of: Sequence[SealedIds] | None = None

    def has_room(self, more: int) -> bool:
        """Whether so many further ids may be put into it."""
        return self._count + more <= self._room

    def put(self, sealed: SealedIds, fps: U64) -> None:
        """Put the ids of one more file into it. Others may look meanwhile; only one may put."""
        self.add(fps)
        self.holds.add(sealed)

    def add(self, fps: U64) -> None:
        """Put ids into it of a file that it does not hold yet."""
        set_bits(fps, self._words, _SPREAD)
        self._count += len(fps)

    def merged(self, parts: Sequence[SealedIds], whole: SealedIds) -> None:
        """One file has just the ids of some others, and takes their place."""
        if self.holds.issuperset(parts):
            self.holds.difference_update(parts)
            self.holds.add(whole)

    def stands_for(self, files: Sequence[SealedIds]) -> bool:
        """Whether it holds the ids of all of these. The same list again costs nothing: it is never changed in place."""
        if self._of is not files and self.holds.issuperset(files):
            self._of = files
        return self._of is files

    def maybe(self, fps: U64) -> Bools | None:
        """True for each row that may be in one of the files; None where no row may."""
        out = np.empty(len(fps), np.bool_)
        return out if probe_bits(fps, self._words, _SPREAD, out) else None

    def forget_but(self, files: Sequence[SealedIds]) -> None:
        """These are all files that there are: what they took the place of need not be kept in memory."""
        self.holds.intersection_update(files)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._words.nbytes
