"""Calls between simulated processes: the messages, handlers and links of production over a network that loses calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from imray.core.replies import Refusal, Refused
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.methods import Method
from imray.rpc.server import ServerConnection
from imray.shard.service import Handlers
from tests.simulation.kernel import LOST, Process

CALL_US = 20_000


class Served:
    """What a process answers: as `imray.rpc.server`, by method."""

    def __init__(self, writer: Any, handlers: Handlers) -> None:
        self.writer = writer
        self._handlers = handlers

    async def handle(self, method: Method, content: bytes, connection: object = None) -> bytes:
        """One call."""
        answer = self._handlers[method](memoryview(content), cast("ServerConnection", connection))
        return b"".join(await answer if isinstance(answer, Awaitable) else answer)


@dataclass
class SimDirectory:
    """Who has the log that a process calls: `imray.rpc.directory.Directory`, for one caller."""

    process: Process
    callee: Callable[[], Process | None]

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        """Nobody connects here."""
        raise NotImplementedError

    def forget(self, log: int) -> None:
        """Nothing is remembered."""


class SimChannel:
    """As `imray.rpc.channel.Channel`."""

    def __init__(self, directory: SimDirectory, log: int, name: str, tls: None = None) -> None:
        self._directory = directory
        self.name = name

    async def call(self, method: Method, content: Parts, timeout_s: float) -> memoryview:
        """One try. NoAnswerError: whether it was executed is unknown."""
        answer = await call(self._directory.process, self._directory.callee(), method, content, CALL_US)
        if answer is None:
            raise NoAnswerError(f"{self.name} gave no answer")
        return answer

    def close(self) -> None:
        """Nothing is open."""


async def call(
    caller: Process, callee: Process | None, method: Method, content: Parts, timeout_us: int
) -> memoryview | None:
    """A call's answer; None: none, whether it was executed is unknown."""
    data = b"".join(content)
    answer = await caller.sim.call(caller, callee, "handle", method, data, timeout_us=timeout_us)
    return None if answer == LOST else memoryview(cast("bytes", answer))


NO_ANSWER = Refusal(Refused.UNAVAILABLE, "no answer")
