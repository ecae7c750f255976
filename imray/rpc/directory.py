"""Where logs are: what whoever calls needs of whoever knows. Ray's answer is in `imray.deploy`."""

from __future__ import annotations

from typing import Protocol

from imray.rpc.endpoint import Endpoint

HISTORY = -1
"""The log number under which the readers of history are found: no log has it."""


class Directory(Protocol):
    """Knows which process has a log now, and where it listens. May remember its answers."""

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        """NoAnswerError where the log's process is not there (yet), or nothing was found in time."""

    def forget(self, log: int) -> None:
        """An answer led nowhere: the next `find` must look anew."""
