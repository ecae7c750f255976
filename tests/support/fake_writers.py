"""Writers of logs that answer as a test says, behind real RPC servers, and the directory that leads to them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

import pyarrow as pa
import pytest

from imray.core.replies import Appended, Located, Refusal, Refused
from imray.engine import batcher, clients, hot_routes
from imray.log.schema import from_ipc
from imray.rpc import messages
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from imray.settings import Settings

LOST = "the connection breaks before the answer"
TRY_S = 10.0
"""How long each try takes by the clock of the test."""
SETTINGS = Settings(
    send_deadline_s=6 * TRY_S,
    partition_deadline_s=3.5 * TRY_S,
    partition_pause_s=100 * TRY_S,
    call_timeout_s=TRY_S,
    retry_delay_s_min=0.001,
    retry_delay_s_max=0.001,
)
_CALL_BYTES_MAX = 1_000_000

Said: TypeAlias = Appended | Located | Refusal | Exception | str
"""An answer (the rows of Appended are those of the batch), an error to raise, or LOST."""


def refusal(why: Refused) -> Refusal:
    """As a writer gives it."""
    return Refusal(why, f"said {why}")


def appended(rows: int, epoch: int = 1, hot: dict[str, int] | None = None) -> Appended:
    """All rows are new."""
    return Appended(rows, epoch, 1, 0, 0, 1, rows, None, hot)


def located(epoch: int, stable: int) -> Located:
    """A conversation that ends at `stable`."""
    return Located(stable, stable, epoch, 0, [], [])


class Clock:
    """Time passes when a writer is asked."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class FakeWriter:
    """Gives one answer after the other, the last one again and again. A call is recorded before it is answered."""

    def __init__(self, clock: Clock, log: int, answers: tuple[Said, ...]) -> None:
        self._clock = clock
        self.answers: deque[Said] = deque(answers)
        self.batches: list[pa.RecordBatch] = []
        self.located = 0
        self.open = asyncio.Event()
        """Cleared: calls wait."""
        self.open.set()
        self._server = RpcServer(_CALL_BYTES_MAX)
        self._server.serve(log, {Method.APPEND: self._append, Method.LOCATE: self._locate})
        self._endpoint: Endpoint | None = None

    def _next(self, caller: ServerConnection) -> Said:
        self._clock.now_s += TRY_S
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if answer == LOST:
            caller.abort()
            return refusal(Refused.CORRUPT)  # nobody hears it
        return answer

    async def _append(self, content: memoryview, caller: ServerConnection) -> Parts:
        batch = from_ipc(content)
        self.batches.append(batch)
        await self.open.wait()
        answer = self._next(caller)
        if isinstance(answer, Appended):
            answer = appended(batch.num_rows, answer.epoch, answer.hot)
        assert isinstance(answer, Appended | Refusal)
        return messages.encode_append_answer(answer)

    async def _locate(self, content: memoryview, caller: ServerConnection) -> Parts:
        messages.decode_locate(content)
        self.located += 1
        answer = self._next(caller)
        assert isinstance(answer, Located | Refusal)
        return messages.encode_locate_answer(answer)

    async def endpoint(self) -> Endpoint:
        """Where it takes calls."""
        if self._endpoint is None:
            self._endpoint = await self._server.open("127.0.0.1")
        return self._endpoint

    def ids(self) -> list[list[bytes]]:
        """The ids that each call carried."""
        return [b.column("client_msg_id").to_pylist() for b in self.batches]

    async def close(self) -> None:
        self.open.set()
        await self._server.close()


class Found(Protocol):
    """What a directory leads to."""

    async def endpoint(self) -> Endpoint: ...

    async def close(self) -> None: ...


class FakeDirectory:
    """Logs and who writes them, as `imray.rpc.directory.Directory` says it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._queued: dict[int, deque[Found]] = {}
        self._known: dict[int, Found] = {}
        self._all: list[Found] = []

    def writer(self, log: int, *answers: Said) -> FakeWriter:
        """A new one. A log may have several: each is found once, one after the other, and the last one from then on."""
        made = FakeWriter(self.clock, log, answers)
        self.add(log, made)
        return made

    def add(self, log: int, found: Found) -> None:
        """Who is found after those before; one may be added again."""
        self._all.append(found)
        self._queued.setdefault(log, deque()).append(found)

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        """The same one until it is forgotten."""
        assert timeout_s > 0
        queued = self._queued.get(log)
        if queued is None:
            raise NoAnswerError(f"nobody writes log {log}")
        if log not in self._known:
            self._known[log] = queued.popleft() if len(queued) > 1 else queued[0]
        return await self._known[log].endpoint()

    def forget(self, log: int) -> None:
        """The next one is found from now on."""
        self._known.pop(log, None)

    async def close(self) -> None:
        for found in self._all:
            await found.close()


@asynccontextmanager
async def fake_directory(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeDirectory]:
    """A directory; what a gateway does goes by its clock."""
    made = FakeDirectory()
    for module in (clients, batcher, hot_routes):
        monkeypatch.setattr(module, "time", made.clock)
    yield made
    await made.close()
