"""A sealed interval as it is read: its filter, its ids and its postings, each verified before it is believed.

Does not own how one is made (`imray.log.sealed`), nor the layout of its ids (`imray.log.id_run`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imray.core.dedup import BlockedBloom, WordBloom
from imray.core.errors import CorruptError, DerivedError, StorageError
from imray.core.intervals import VERSION, Interval
from imray.kernels.arrays import I64, U64, Bools
from imray.kernels.packing import COLUMNS, FP
from imray.log import digest as digests
from imray.log import sealed_first
from imray.log.derived import read_derived, why
from imray.log.id_run import IdRun
from imray.log.sealed_first import open_arrow
from imray.log.segment import META_KEY, read_meta
from imray.log.store import Store

_FP_MAX = (1 << 64) - 1


@dataclass(eq=False)
class SealedInterval:
    """One interval's filter, mapped, and its ids on call: `imray.core.dedup.SealedIds` and what confirms it.

    Equal to itself only: an interval made anew is another one."""

    store: Store
    interval: Interval
    bloom: WordBloom | BlockedBloom | None
    """None: its file is missing or damaged, so every id may be there."""
    is_retired: bool = False
    """Others took its place: its files may be gone, and that is no damage."""
    _runs: dict[int, IdRun] = field(default_factory=dict)
    """Those that were opened."""

    def maybe(self, fps: U64) -> Bools | None:
        """True for each row that may be there; None where no row may."""
        if not self.interval.ids:
            return None
        return np.ones(len(fps), np.bool_) if self.bloom is None else self.bloom.maybe(fps)

    @property
    def is_filter_changed(self) -> bool:
        """Whether a look at its filter met a block that does not verify."""
        return isinstance(self.bloom, WordBloom) and self.bloom.is_changed

    @property
    def is_current(self) -> bool:
        """Whether it is of the present version: else it is to be made anew."""
        return self.interval.version >= VERSION

    def run(self, part: int) -> IdRun:
        """A part of its ids. DerivedError where it is missing or changed."""
        found = self._runs.get(part)
        if found is None:
            found = self._runs[part] = IdRun(self.store, self.interval, part)
        return found

    def loaded(self) -> SealedInterval:
        """Itself, its ids opened: so that no look-up has to. DerivedError where they cannot be, or are of an earlier
        version."""
        self._check_version()
        for part in range(self.interval.parts):
            self.run(part)
        return self

    def _check_version(self) -> None:
        if not self.is_current:
            raise DerivedError(self.interval.name("ids"), f"it is of version {self.interval.version}")

    def check(self) -> None:
        """Read all files. DerivedError where one is missing, does not verify, or is of an earlier version."""
        self._check_version()
        rows = 0
        for part in range(self.interval.parts):
            run = IdRun(self.store, self.interval, part)
            run.verify()
            rows += run.rows
        if rows != self.interval.ids:
            raise DerivedError(
                self.interval.run_name(0), f"its parts have {rows} ids: {self.interval.ids} it should be"
            )
        if not WordBloom(_words(self.store.get, self.interval)).is_whole:
            raise DerivedError(self.interval.name("bloom"), "a block does not verify")
        self.postings()

    def find(self, fps: U64, ids: U64, convs: U64, which: I64, found: Bools, out: U64) -> list[tuple[I64, Exception]]:
        """As `IdRun.find`, in whichever part each row may be."""
        if self.interval.parts == 1:
            return self._find_in(0, fps, ids, convs, which, found, out)
        part = fps[which] >> np.uint64(64 - self.interval.parts.bit_length() + 1)
        failed = []
        for p in np.unique(part).tolist():
            failed += self._find_in(p, fps, ids, convs, which[part == p], found, out)
        return failed

    def _find_in(
        self, part: int, fps: U64, ids: U64, convs: U64, which: I64, found: Bools, out: U64
    ) -> list[tuple[I64, Exception]]:
        try:
            run = self.run(part)
        except (DerivedError, StorageError) as e:
            return [(which, e)]
        return run.find(fps, ids, convs, which, found, out)

    def between(self, low: int, high: int) -> U64:
        """The columns (COLUMNS, rows) of its ids whose fingerprints are from `low` to `high`, ascending by them."""
        shift = 64 - self.interval.parts.bit_length() + 1
        parts = range(low >> shift, (high >> shift) + 1) if self.interval.parts > 1 else range(1)
        found = [self.run(part).between(low, high) for part in parts]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    @property
    def first_ids(self) -> pa.RecordBatch:
        """Of an interval of version 1: columns fp (sorted), place, row. DerivedError.

        Mapped, and verified each time (2 ms a million ids): a byte may change between two look-ups."""
        return open_arrow(self.store.map, self.interval, "ids")

    def candidates(self, fps: U64) -> list[tuple[int, int, int]]:
        """Of an interval of version 1: (position in `fps`, place, row) of every entry with an equal fingerprint."""
        return sealed_first.candidates(self.first_ids, fps)

    def fingerprints(self, part: int) -> U64:
        """Those of its ids in one of its parts, ascending. DerivedError."""
        if not self.is_current:
            return self.first_ids.column("fp").to_numpy()  # type: ignore[no-any-return]
        return np.ascontiguousarray(self.run(part).between(0, _FP_MAX)[FP])

    @property
    def ids(self) -> U64:
        """All its ids (COLUMNS, rows), every byte verified: for who compares. DerivedError."""
        found = [np.empty((COLUMNS, 0), np.uint64)]
        for part in range(self.interval.parts):
            run = IdRun(self.store, self.interval, part)
            run.verify()
            found.append(run.between(0, _FP_MAX))
        return np.concatenate(found, axis=1)

    def postings(self) -> pa.Table:
        """Its postings, sorted by conv_id and first number."""
        return read_postings(self.store, self.interval)


def open_interval(store: Store, interval: Interval) -> SealedInterval:
    """Map an interval's filter and verify it. DerivedError where its file is missing or changed.

    The memory is the file's: the system takes it back and reads it again as it likes, and each look verifies what it
    looks at. A sector that cannot be read is found here, as the whole file is read; one that goes bad later ends the
    process, and is found at its next start. The filter of an earlier version has no sums, so a copy of it is kept until
    the interval is made anew: two bytes an id."""
    if interval.version < VERSION:
        return SealedInterval(store, interval, BlockedBloom(_words(store.get, interval)))
    return SealedInterval(store, interval, WordBloom(_words(store.map, interval)))


def _words(read: Callable[[str], bytes | memoryview | None], interval: Interval) -> U64:
    return open_arrow(read, interval, "bloom").column("words").to_numpy()  # type: ignore[no-any-return]


def read_postings(store: Store, interval: Interval) -> pa.Table:
    """The postings of an interval, verified. DerivedError where the file is missing or changed."""
    name = interval.name("postings")
    data = read_derived(lambda: store.get(name), name)
    try:
        digests.verify(data, name)
        said = read_meta(memoryview(data), name, META_KEY, Interval)
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
    except (CorruptError, pa.ArrowException, OSError) as e:
        raise DerivedError(name, f"it does not verify: {why(e)}") from e
    if said != interval:
        raise DerivedError(name, "it is another interval's file")
    return table


def remove(store: Store, interval: Interval) -> None:
    """Remove the files of an interval that nothing names; what cannot be removed is left to a later writer."""
    for name in interval.names:
        with contextlib.suppress(StorageError):
            store.delete(name)
