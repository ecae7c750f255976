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
    acked_ids, there = _keys(ids), _keys(stored.ids)
    acked = np.unique(acked_ids)
    kinds = np.unique(there)
    lost = len(np.setdiff1d(acked, kinds, assume_unique=True))
    renumbered = gaps = 0
    if numbered:
        told = np.unique(_pairs(acked_ids, numbers))
        kept = _pairs(there, stored.numbers)
        strange = np.setdiff1d(told, kept)
        # a lost one has no number at all: it is counted above
        renumbered = len(np.intersect1d(np.unique(strange["id"]), kinds, assume_unique=True))
        gaps = _gaps(stored.numbers, stored.explained)
    return Verdict(len(acked), len(there), lost, len(there) - len(kinds), renumbered, gaps)


def _keys(ids: np.ndarray) -> np.ndarray:
    """Ids that numpy can sort: V16 has no order, two big-endian integers have."""
    wide = np.ascontiguousarray(ids, np.uint8).reshape(-1, ID_BYTES)
    return wide.view([("high", ">u8"), ("low", ">u8")]).reshape(-1)


def _pairs(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    made = np.empty(len(keys), [("id", keys.dtype), ("number", np.int64)])
    made["id"], made["number"] = keys, numbers
    return made


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
