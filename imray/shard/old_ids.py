"""Which rows of a request must be looked up in files before it is planned, and the look-up, beside the state's thread.

Planning reads no file. A request with rows that files may know is set aside, looked up in small steps by a thread of
its own, and planned then with what was found: however old its ids are and however many, nobody waits for it but its
sender, and other requests' steps come between its own. Meanwhile files may be sealed, merged and made anew: what was
found stands, but for segments that were sealed since. Does not own who waits (`imray.shard.write_loop`,
`imray.shard.hot_groups`), nor the files (`imray.log.confirm`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from imray.core.columns import First, KnownIds, LookedUp, Rows
from imray.core.dedup import SealedIds
from imray.core.sequencer import locate
from imray.core.state import ShardState
from imray.kernels.arrays import I64
from imray.log.confirm import Confirmer
from imray.log.rows import Prepared, gather
from imray.log.schema import body_parts, dictionary_rows, id_words
from imray.log.sealed_interval import SealedInterval

_ROWS_A_STEP = 128
"""Each row is one read of a file, 20 us where the system has it in memory: a step is a few milliseconds, which is what
somebody else's look-up waits for its turn."""

Maybe = Sequence[tuple[SealedIds, I64]]
"""Files, and the rows that each may know."""


def old_of(
    state: ShardState, located: KnownIds, looked: LookedUp | None, start: int, end: int
) -> tuple[dict[int, First], Maybe]:
    """Of rows start .. end-1, counted from `start`: what files said when they were `looked` up, and what is to be asked
    for yet: when that is nothing, they can be planned."""
    if looked is None:
        return {}, _cut(located.maybe, start, end)
    # made anew, a file that could not be read may say more
    again = {i for i, first in looked.firsts.items() if first.file is not None and first.file not in state.sealed}
    still: list[tuple[SealedIds, I64]] = []
    for file, rows in _cut(located.maybe, start, end):
        if _last(file) <= looked.last:
            rows = np.array([i for i in rows.tolist() if i in again] if again else [], np.int64)
        if len(rows):
            still.append((file, rows))
    known = (table[start:end] >= 0 for table in (located.recent, located.frozen) if table is not None)
    in_memory: set[int] = {i for each in known for i in np.flatnonzero(each).tolist()}
    return {i: first for i, first in looked.firsts.items() if i not in again and i not in in_memory}, still


def _cut(maybe: Maybe, start: int, end: int) -> list[tuple[SealedIds, I64]]:
    found = ((file, rows[(rows >= start) & (rows < end)] - start) for file, rows in maybe)
    return [(file, rows) for file, rows in found if len(rows)]


def _last(file: SealedIds) -> int:
    """The last segment of the shard's own log that it covers."""
    assert isinstance(file, SealedInterval)
    return file.interval.last


class LookUp:
    """The look-up of one request's rows. A step at a time, each in any thread, one after the other."""

    def __init__(self, confirmer: Confirmer, rows: Rows, maybe: Maybe, last: int, before: dict[int, First]) -> None:
        """`before`: what is known of its rows already. `last`: files of segments up to it are asked by this, or were
        before."""
        self._confirmer = confirmer
        self._rows = rows
        self._steps = list(_steps(maybe))
        self.last = last
        self.asked = np.unique(np.concatenate([*(each for _, each in maybe), np.array([*before], np.int64)]))
        """The rows that files are or were asked for."""
        self._firsts = dict(before)

    def step(self) -> bool:
        """Look some rows up. False: all are."""
        if self._steps:
            found = self._confirmer.look_up(self._rows, [self._steps.pop()])
            # a row that is known from one file stays so where another one cannot be read
            self._firsts.update((i, f) for i, f in found.items() if f.status is None or i not in self._firsts)
        return bool(self._steps)

    @property
    def steps_left(self) -> int:
        """How many steps there are yet."""
        return len(self._steps)

    @property
    def looked(self) -> LookedUp:
        """What was found, when all are."""
        assert not self._steps
        return LookedUp(self._firsts, self.last)


def _steps(maybe: Maybe) -> Iterator[tuple[SealedIds, I64]]:
    for file, rows in maybe:
        for at in range(0, len(rows), _ROWS_A_STEP):
            yield file, rows[at : at + _ROWS_A_STEP]


def look_up_for(state: ShardState, confirmer: Confirmer, rows: Rows, ask: Maybe, before: dict[int, First]) -> LookUp:
    """The look-up of rows as `old_of` says; in the thread of the state."""
    return LookUp(confirmer, rows, ask, _last(state.sealed[-1]), before)


def rows_between(rows: Rows, start: int, end: int) -> Rows:
    """Some rows, with all names."""
    return replace(
        rows,
        conv=rows.conv[start:end],
        ids=rows.ids[start:end],
        fps=rows.fps[start:end],
        payload=rows.payload[start:end],
        senders=None,
    )


@dataclass(frozen=True)
class Aside:
    """A request that was not planned: its rows must be looked up first."""

    request: int
    """Which one of those that were to be planned."""
    look_up: LookUp
    key: bytes
    """Equal where the ids and conversations of two requests are: the same rows are found for both."""


@dataclass(frozen=True)
class FoundIds:
    """What is known of some requests' ids before they are planned."""

    table: pa.Table
    rows: Rows
    located: KnownIds
    old: dict[int, First]
    """By row: what files said, of those that were asked."""
    aside: tuple[Aside, ...]
    """Requests that cannot be planned yet."""


def _key_of(request: Prepared) -> bytes:
    conv, ids = request.columns[:2]
    digest = hashlib.blake2b(digest_size=16)  # no two that somebody made to be taken for one another
    for part in (*body_parts(conv.dictionary), dictionary_rows(conv), id_words(ids)):
        content = np.ascontiguousarray(part)
        digest.update(content.nbytes.to_bytes(8, "little"))
        digest.update(content.data)
    return digest.digest()


def find(state: ShardState, confirmer: Confirmer, requests: Sequence[Prepared]) -> FoundIds:
    """What memory knows of the requests' ids, and files where they were asked; in the thread of the state."""
    table, rows = gather(requests)
    located = locate(state, rows)
    old: dict[int, First] = {}
    aside: list[Aside] = []
    if not located.maybe and all(request.looked is None for request in requests):
        return FoundIds(table, rows, located, old, ())
    start = 0
    for number, request in enumerate(requests):
        end = start + len(request)
        known, still = old_of(state, located, request.looked, start, end)
        if still:
            its_rows = rows_between(rows, start, end)
            look_up = look_up_for(state, confirmer, its_rows, still, known)
            aside.append(Aside(number, look_up, _key_of(request)))
        old.update((start + i, first) for i, first in known.items())
        start = end
    return FoundIds(table, rows, located, old, tuple(aside))
