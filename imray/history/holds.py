"""What of the merging is held back for a while, and why: damage takes out what it hits, a full disk what needs room."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from imray.core.errors import CorruptError, DerivedError, StorageError

log = logging.getLogger("imray.history")

_BACK_OFF_S_MIN = 1.0
BACK_OFF_S_MAX = 60.0
"""Between tries where the store refuses (a full disk): room that was made is found within a minute."""
_EXPECTED = (CorruptError, DerivedError, StorageError)
CORRUPT_AGAIN_S = 60.0
"""Between looks at a damaged file: a person restores it, or does not."""


@dataclass(frozen=True)
class _Hold:
    detail: str
    until_s: float
    delay_s: float


class Holds:
    """What is held back, by a name that operators are told."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._holds: dict[str, _Hold] = {}

    def __contains__(self, name: str) -> bool:
        """Whether it waits now."""
        hold = self._holds.get(name)
        return hold is not None and self._monotonic_s() < hold.until_s

    def add(self, name: str, error: Exception) -> None:
        """It failed: it waits, twice as long as the time before. What is no damage and no store's refusal is a bug of
        ours, or no memory."""
        before = self._holds.get(name)
        delay_s = _BACK_OFF_S_MIN if before is None else min(2 * before.delay_s, BACK_OFF_S_MAX)
        if isinstance(error, CorruptError):
            delay_s = CORRUPT_AGAIN_S
        is_known = isinstance(error, _EXPECTED)
        detail = str(error) if is_known else f"unexpected: {error!r}"
        if before is None or before.detail != detail:
            log.error("%s is held back: %s", name, detail, exc_info=None if is_known else error)
        self._holds[name] = _Hold(detail, self._monotonic_s() + delay_s, delay_s)

    def end(self, name: str) -> None:
        """It went well."""
        self._holds.pop(name, None)

    def details(self) -> list[str]:
        """What is held back and why, for operators. In any thread."""
        return [f"{name}: {hold.detail}" for name, hold in sorted(self._holds.copy().items())]
