"""A part of a sealed interval's ids on disk: sorted by fingerprint, with all that a retry of each is told.

    "IMID", 4 zeros | block, block, ... | footer | length of the footer (4 bytes) | "IMID"
    footer: digest of what follows (XXH3-128) | blocks, length of the JSON (4 bytes each) | index | JSON
    index: first fingerprint of each block | XXH3-64 of each block | where each block begins, and the last one ends

The JSON says whose part it is, and has the whole file's digest (`imray.log.digest`). So opening reads the footer only,
and a look-up the blocks that it needs, each under a digest of its own: whatever is changed is found when it is used,
and a file of any size costs 24 bytes of memory for each block of 256 ids. Bytes are read, never mapped: a sector that
cannot be read is a DerivedError here, and would be a signal that kills under a map. Does not own what a block looks
like inside (`imray.kernels.packing`).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import xxhash

from imray.core.errors import CorruptError, DerivedError, StorageError
from imray.core.intervals import Interval
from imray.kernels.arrays import I64, U64, Bools
from imray.kernels.packing import COLUMNS, FP, block_bytes_max, find_in_block, pack_block, unpack_block
from imray.log import digest as digests
from imray.log.derived import read_derived, why
from imray.log.posix import aligned_memory
from imray.log.store import Store

BLOCK_ROWS = 256
"""A look-up reads 12 KB: what a disk reads at once anyway."""
_HEAD = digests.RUN + bytes(4)
_COUNTS_BYTES = 24
"""Digest of the footer, blocks, length of the JSON."""
_INDEX_BYTES = 24
"""Of a block."""
_END_BYTES = 8
_JSON_BYTES = 512
_READ_BLOCKS = 128
"""So many at once where all are read."""


class RunMeta(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    shard: int
    first: int
    last: int
    tag: str
    part: int
    parts: int
    rows: int
    digest: str = digests.BLANK

    @classmethod
    def of(cls, interval: Interval, part: int, rows: int) -> RunMeta:
        """What a part of an interval says."""
        return cls(interval.shard, interval.first, interval.last, interval.tag, part, interval.parts, rows)


class IdRunWriter:
    """The parts of an interval being made, one after the other, in the memory of one file: fresh memory costs more than
    what is written to it."""

    def __init__(self, rows: int) -> None:
        """`rows`: about how many a part has."""
        self._take((rows // BLOCK_ROWS + 2) * (block_bytes_max(BLOCK_ROWS) + _INDEX_BYTES))
        self._begin()

    def _take(self, size: int) -> None:
        # what nobody writes to takes no memory
        self._memory = aligned_memory(size)
        self._at = _address(self._memory)

    def _begin(self) -> None:
        self._memory[: len(_HEAD)] = _HEAD
        self._rest: U64 = np.empty((COLUMNS, 0), np.uint64)
        self._first: list[int] = []
        self._digests: list[int] = []
        self._begins = [len(_HEAD)]
        self._rows = 0

    def add(self, ids: U64) -> None:
        """Further rows (COLUMNS, rows) of a part, ascending by fingerprint, none below those before."""
        ids = np.ascontiguousarray(ids)
        begin = 0
        if left := self._rest.shape[1]:
            begin = BLOCK_ROWS - left
            self._rest = np.concatenate([self._rest, ids[:, :begin]], axis=1)
            if self._rest.shape[1] < BLOCK_ROWS:
                return
            self._block(self._rest, 0, BLOCK_ROWS)
        while begin + BLOCK_ROWS <= ids.shape[1]:
            self._block(ids, begin, begin + BLOCK_ROWS)
            begin += BLOCK_ROWS
        self._rest = ids[:, begin:].copy()

    def _block(self, ids: U64, begin: int, end: int) -> None:
        at = self._begins[-1]
        self._make_room(at + block_bytes_max(BLOCK_ROWS))
        size = pack_block(ids, begin, end, self._at + at)
        self._first.append(int(ids[FP, begin]))
        self._digests.append(xxhash.xxh3_64_intdigest(self._memory[at : at + size]))
        self._begins.append(at + size)
        self._rows += end - begin

    def _make_room(self, size: int) -> None:
        if size > len(self._memory):
            before = self._memory
            self._take(2 * size)
            self._memory[: len(before)] = before

    def seal(self, interval: Interval, part: int) -> digests.Parts:
        """The file of a part, whole, until the next one is begun by this."""
        if self._rest.shape[1]:
            self._block(self._rest, 0, self._rest.shape[1])
        index = np.array([*self._first, *self._digests, *self._begins], np.uint64).tobytes()
        said = msgspec.json.encode(RunMeta.of(interval, part, self._rows))
        counts = len(self._first).to_bytes(4, "little") + len(said).to_bytes(4, "little")
        content = counts + index + said
        footer = xxhash.xxh3_128_digest(content) + content
        end = self._begins[-1]
        self._make_room(end + len(footer) + _END_BYTES)
        for piece in (footer, len(footer).to_bytes(4, "little") + digests.RUN):
            self._memory[end : end + len(piece)] = piece
            end += len(piece)
        file = digests.seal(self._memory[:end])[0]
        self._begin()
        return file


class IdRun:
    """One part of an interval's ids, its footer verified. Safe for threads: nothing changes after it is opened."""

    def __init__(self, store: Store, interval: Interval, part: int) -> None:
        """DerivedError where it is missing, or its footer is changed or another's."""
        self.name = interval.run_name(part)
        self._store = store
        guess = interval.ids // interval.parts // BLOCK_ROWS * 9 // 8 * _INDEX_BYTES + 2 * _JSON_BYTES
        try:
            counts, index, said = self._footer(guess)
            meta = msgspec.json.decode(said, type=RunMeta)
        except (CorruptError, msgspec.DecodeError) as e:
            raise DerivedError(self.name, f"it does not verify: {why(e)}") from e
        if meta != RunMeta.of(interval, part, meta.rows):
            raise DerivedError(self.name, "it is another interval's file, or another part")
        blocks = int.from_bytes(counts, "little")
        words = np.frombuffer(index, np.uint64)
        self.rows = meta.rows
        self._first: U64 = words[:blocks]
        self._digests: U64 = words[blocks : 2 * blocks]
        self._begins: U64 = words[2 * blocks :]

    def _footer(self, guess: int) -> tuple[bytes, bytes, bytes]:
        """How many blocks, the index and the JSON, verified; the file's own digest is blank in it, as it was then."""
        end = self._read(-guess, guess)
        size = int.from_bytes(end[-_END_BYTES:-4], "little") + _END_BYTES
        if end[-4:] != digests.RUN or size < _END_BYTES + _COUNTS_BYTES:
            raise CorruptError(self.name, "its end", "no magic at the end: cut off or changed")
        if size > len(end):
            end = self._read(-size, size)
        if size > len(end):
            raise CorruptError(self.name, "its end", f"a footer of {size} bytes, and the file has {len(end)}")
        footer = bytearray(end[len(end) - size : -_END_BYTES])
        blocks = int.from_bytes(footer[16:20], "little")
        begin = _COUNTS_BYTES + blocks * _INDEX_BYTES + 8
        # the whole file's digest was put in last
        at, to = digests.place_of_digest(memoryview(digests.RUN + end[len(end) - size :]), self.name)
        at -= len(digests.RUN)
        to -= len(digests.RUN)
        footer[at:to] = b"0" * (to - at)
        if xxhash.xxh3_128_digest(footer[16:]) != footer[:16]:
            raise CorruptError(self.name, "its footer", "its digest is another one")
        return bytes(footer[16:20]), bytes(footer[_COUNTS_BYTES:begin]), bytes(footer[begin:])

    def _read(self, start: int, size: int) -> bytes:
        return read_derived(lambda: self._store.get_range(self.name, start, size), self.name)

    def find(self, fps: U64, ids: U64, convs: U64, which: I64, found: Bools, out: U64) -> list[tuple[I64, Exception]]:
        """Look up the rows `which`: their fingerprints, ids (rows, 2), and keys of their conversations.

        For each that is there: found[row] = True, and out[row] = its columns. Returned: rows for which a block cannot
        be read or does not verify, and why (DerivedError, StorageError)."""
        high = np.searchsorted(self._first, fps[which], "right") - 1
        low = np.searchsorted(self._first, fps[which], "left") - 1
        pairs = [(block, row) for block, row in zip(high.tolist(), which.tolist(), strict=True) if block >= 0]
        for i in np.flatnonzero(low < high).tolist():  # its fingerprint begins a block: the one before may have it, too
            pairs += [(block, int(which[i])) for block in range(max(0, int(low[i])), int(high[i]))]
        rows_of: dict[int, list[int]] = {}
        for block, row in sorted(pairs):
            rows_of.setdefault(block, []).append(row)
        failed: list[tuple[I64, Exception]] = []
        for block, rows in rows_of.items():
            wanted = np.array(rows)
            try:
                ((data, begin),) = self._blocks(block, block + 1)
            except (DerivedError, StorageError) as e:
                failed.append((wanted, e))
                continue
            find_in_block(_address(data) + begin, fps, ids, convs, wanted, found, out)
        return failed

    def _blocks(self, first: int, end: int) -> Iterator[tuple[bytes, int]]:
        """Blocks first .. end-1, verified: the bytes that hold each, and where it begins in them."""
        start = int(self._begins[first])
        data = self._read(start, int(self._begins[end]) - start)
        view = memoryview(data)
        for block in range(first, end):
            begin = int(self._begins[block]) - start
            size = int(self._begins[block + 1]) - int(self._begins[block])
            piece = view[begin : begin + size]
            if len(piece) != size or xxhash.xxh3_64_intdigest(piece) != int(self._digests[block]):
                raise DerivedError(self.name, f"block {block} (bytes {start + begin} on) does not verify")
            yield data, begin

    def between(self, low: int, high: int) -> U64:
        """The columns (COLUMNS, rows) of the ids whose fingerprints are from `low` to `high`. DerivedError."""
        first = max(0, int(np.searchsorted(self._first, np.uint64(low), "left")) - 1)
        end = int(np.searchsorted(self._first, np.uint64(high), "right"))
        out = np.empty((COLUMNS, BLOCK_ROWS * max(0, end - first)), np.uint64)
        rows = 0
        for at in range(first, end, _READ_BLOCKS):
            for data, begin in self._blocks(at, min(end, at + _READ_BLOCKS)):
                rows += unpack_block(_address(data) + begin, out, rows)
        begin, to = np.searchsorted(out[FP, :rows], np.array([low, high], np.uint64), "left").tolist()
        while to < rows and out[FP, to] == np.uint64(high):
            to += 1
        return out[:, begin:to]

    def verify(self) -> None:
        """Read every byte. DerivedError where the file is changed."""
        data = read_derived(lambda: self._store.get(self.name), self.name)
        try:
            digests.verify(data, self.name)
        except CorruptError as e:
            raise DerivedError(self.name, f"it does not verify: {why(e)}") from e


def _address(data: bytes | memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)
