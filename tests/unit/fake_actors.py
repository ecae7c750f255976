"""Stands where Ray and its actors would: found by name, batches over TCP as in production, answers as a test says."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from imray.core.replies import Appended, Located, Refusal, Refused
from imray.engine import batcher, clients, hot_routes
from imray.log.schema import from_ipc
from imray.rpc.appends import AppendServer
from imray.rpc.asks import Door
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


def refusal(why: Refused) -> Refusal:
    """As an actor gives it."""
    return Refusal(why, f"said {why}")


def appended(rows: int, epoch: int = 1, hot: dict[str, int] | None = None) -> Appended:
    """All rows are new."""
    return Appended(rows, epoch, 1, 0, 0, 1, rows, None, hot)


def located(epoch: int, stable: int) -> Located:
    """A conversation that ends at `stable`."""
    return Located(stable, stable, epoch, 0, [], [])


class Clock:
    """Time passes when an actor is asked."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class FakeActor:
    """Gives one answer after the other, the last one again and again. A call is recorded before it is answered."""

    def __init__(self, clock: Clock, *answers: Any) -> None:
        """Each a Refusal, Appended (its rows are those of the batch), Located, error to raise, or LOST."""
        self._clock = clock
        self.answers: deque[Any] = deque(answers)
        self.batches: list[pa.RecordBatch] = []
        self.located = 0
        self.open = asyncio.Event()
        """Cleared: calls wait."""
        self.open.set()
        self._server = AppendServer(self._append, 1_000_000)
        self._door: Door | None = None

    def _next(self) -> Any:
        self._clock.now_s += TRY_S
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _append(self, data: memoryview) -> Appended | Refusal:
        batch = from_ipc(data)
        self.batches.append(batch)
        await self.open.wait()
        answer = self._next()
        if answer == LOST:
            for connection in list(self._server.connections):
                connection.transport.abort()
            return refusal(Refused.CORRUPT)  # nobody hears it
        return appended(batch.num_rows, answer.epoch, answer.hot) if isinstance(answer, Appended) else answer

    async def append_door(self) -> Door:
        if self._door is None:
            self._door = await self._server.open("127.0.0.1")
        return self._door

    async def locate(self, _conv_id: str, _low: int, _high: int) -> Located | Refusal:
        self.located += 1
        return self._next()

    def ids(self) -> list[list[bytes]]:
        """The ids that each call carried."""
        return [b.column("client_msg_id").to_pylist() for b in self.batches]

    def close(self) -> None:
        self.open.set()
        self._server.close()


class _Handle:
    def __init__(self, actor: FakeActor) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, method))


class FakeRay:
    """Names and who bears them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._named: dict[str, deque[FakeActor]] = {}
        self._actors: list[FakeActor] = []

    def actor(self, name: str, *answers: Any) -> FakeActor:
        """A new one. One name may be given to several: each is found once, the last one again and again."""
        made = FakeActor(self.clock, *answers)
        self.name(name, made)
        self._actors.append(made)
        return made

    def name(self, name: str, actor: FakeActor) -> None:
        """Who is found under a name after those before."""
        self._named.setdefault(name, deque()).append(actor)

    def get_actor(self, name: str, _namespace: str) -> _Handle:
        found = self._named.get(name)
        if not found:
            raise ValueError(f"no actor {name}")
        return _Handle(found.popleft() if len(found) > 1 else found[0])

    def close(self) -> None:
        for actor in self._actors:
            actor.close()


@contextmanager
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    """Replaces Ray and the clock for what a gateway does."""
    made = FakeRay()
    monkeypatch.setattr(clients.ray, "get_actor", made.get_actor)
    for module in (clients, batcher, hot_routes):
        monkeypatch.setattr(module, "time", made.clock)
    yield made
    made.close()
