"""What a kill left behind: acked messages that are lost, messages that stand twice, numbers that nothing explains.

Owns the judgement, on plain arrays. Knows no system.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.workload import ID_BYTES


@dataclass(frozen=True)
class Stored:
    """All that a system has of the conversation afterwards: ids (n, 16) and their numbers (NO_NUMBER: it has none);
    `explained` are ranges [first, last] of numbers that it says will never be a message."""

    ids: np.ndarray
    numbers: np.ndarray
    explained: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Counts; all but `acked` and `stored` should be 0."""

    acked: int
    """Ids that a client saw an ack of."""
    stored: int
    """Messages that are there."""
    lost: int
    """Acked, and not there."""
    duplicates: int
    """Messages beyond the first with the same id: what a reader sees twice."""
    renumbered: int
    """Acked under one number, there under another only."""
    gaps: int
    """Numbers between the first and the last that are no message and that nothing explains."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judge(ids: np.ndarray, numbers: np.ndarray, stored: Stored, numbered: bool) -> Verdict:
    """Compare the acks that clients saw (ids (n, 16) and numbers, an id may stand there more than once) with what is
    stored. Not `numbered`: the system's acks tell no numbers, so neither gaps nor other numbers are looked for."""
    told, there, kinds = _codes(ids, stored.ids)
    acked = np.zeros(kinds, bool)
    acked[told] = True
    times = np.bincount(there, minlength=kinds)
    lost = int((acked & (times == 0)).sum())
    renumbered = gaps = 0
    if numbered:
        most = int(max(numbers.max(initial=0), stored.numbers.max(initial=0))) + 1
        strange = np.setdiff1d(told * most + numbers, there * most + stored.numbers) // most
        # a lost one has no number at all: it is counted above
        renumbered = len(np.unique(strange[times[strange] > 0]))
        gaps = _gaps(stored.numbers, stored.explained)
    return Verdict(int(acked.sum()), len(there), lost, len(there) - int((times > 0).sum()), renumbered, gaps)


def _codes(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """A small number for each id of both, the same for the same id, and how many there are. Sorting such numbers takes
    a hundredth of the time that sorting ids does."""
    wide = np.ascontiguousarray(np.concatenate([first, second]), np.uint8).reshape(-1, ID_BYTES).view("<u8")
    order = np.lexsort((wide[:, 0], wide[:, 1]))
    new = np.ones(len(order), bool)
    new[1:] = (wide[order[1:]] != wide[order[:-1]]).any(axis=1)
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(new) - 1
    return codes[: len(first)], codes[len(first) :], int(new.sum())


def _gaps(numbers: np.ndarray, explained: tuple[tuple[int, int], ...]) -> int:
    """Numbers from 1 to the highest that neither are there nor lie in an explained range."""
    if not len(numbers):
        return 0
    there = np.zeros(int(numbers.max()) + 1, bool)
    there[0] = True
    there[numbers[numbers >= 1]] = True
    for first, last in explained:
        there[first : last + 1] = True
    return int((~there).sum())
