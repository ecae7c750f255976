"""Where logs are: what whoever calls needs of whoever knows. Ray's answer is in `imray.deploy`."""

from __future__ import annotations

from typing import Protocol

from imray.rpc.endpoint import Endpoint

HISTORY = -1
"""The log number under which the first reader of history is found, the others below it: no log has a number below 0."""


MERGER = -1_000_000
"""The log number under which the merger is found: below those of all readers."""


def log_of_reader(number: int) -> int:
    """The log number under which a reader of history (0, 1, ...) is found."""
    return HISTORY - number


def reader_of_log(log: int) -> int | None:
    """Which reader of history is found under a log number; None: it is a log's own."""
    return HISTORY - log if MERGER < log <= HISTORY else None


class Directory(Protocol):
    """Knows which process has a log now, and where it listens. May remember its answers."""

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        """NoAnswerError where the log's process is not there (yet), or nothing was found in time."""

    def forget(self, log: int) -> None:
        """An answer led nowhere: the next `find` must look anew."""
