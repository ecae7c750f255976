"""Honest clients at a pace, all in one event loop: who sends, who reads, and how long each call took."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from imray.client import AsyncClient
from imray.client.models import Message

SENDERS = 20
READERS = 20
_SENDERS_A_CONVERSATION = 2
CONVERSATIONS = SENDERS // _SENDERS_A_CONVERSATION
_PACE_PER_S = 2.0
_DEADLINE_S = 60.0
_PAGE_MESSAGES = 50
_WINDOW_S = 10.0
_LIVE_EVERY_S = 0.5
_LIVE_TIMEOUT_S = 10.0
R = TypeVar("R")


class _Noting(httpx.AsyncBaseTransport):
    """Notes the status of every answer, also of those that the client tries again."""

    def __init__(self, statuses: Counter[int]) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._statuses = statuses

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        self._statuses[answer.status_code] += 1
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass
class Times:
    """When calls began, in seconds of a monotonic clock, and how long each took."""

    began: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    async def time(self, call: Awaitable[R]) -> R:
        """Wait for a call."""
        began = time.monotonic()
        answer = await call
        self.began.append(began)
        self.took.append(time.monotonic() - began)
        return answer

    def between(self, start_s: float, end_s: float) -> list[float]:
        """How long those took that were on their way in that time, so that a slow one is in every window it took."""
        return [t for began, t in zip(self.began, self.took, strict=True) if start_s <= began + t and began < end_s]

    def windows(self, start_s: float, end_s: float) -> list[list[float]]:
        """The same in windows of 10 seconds; a shorter rest is left out."""
        count = max(1, int((end_s - start_s) / _WINDOW_S))
        size_s = (end_s - start_s) / count if count == 1 else _WINDOW_S
        return [self.between(start_s + at * size_s, start_s + (at + 1) * size_s) for at in range(count)]


def percentile(values: list[float], percent: int) -> float:
    """One of its percentiles; one value is all of its own."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass
class Acked:
    """A message that a sender was told to be durable."""

    client_msg_id: str
    conv_seq: int
    body: str


class Honest:
    """All honest clients of a gateway."""

    def __init__(self, url: str, token: Callable[[str], str]) -> None:
        """`token` makes one for a name."""
        self._url, self._token = url, token
        self.statuses: Counter[int] = Counter()
        self.sends = Times()
        self.pulls = Times()
        self.lives = Times()
        self.acked: list[list[Acked]] = [[] for _ in range(SENDERS)]
        """Of each sender, in its order."""
        self.duplicates = 0
        """Sends whose retry found the first try stored."""
        self._ended = asyncio.Event()

    def client(self, name: str) -> AsyncClient:
        """One with a connection of its own."""
        transport = _Noting(self.statuses)
        return AsyncClient(self._url, self._token(name), timeout_s=_DEADLINE_S, transport=transport)

    async def run(self, phases: Callable[[], Awaitable[None]]) -> None:
        """Load while `phases` runs; the first error of a client ends both."""
        async with asyncio.TaskGroup() as group:
            for at in range(SENDERS):
                group.create_task(self._send(at))
            for at in range(READERS):
                group.create_task(self._read(at))
            group.create_task(self._live())
            await phases()
            self._ended.set()

    async def _paced(self, turn: Callable[[], Awaitable[None]], every_s: float, seed: str) -> None:
        """Again and again until the end. The first turns are spread; one that took too long is not caught up."""
        due = time.monotonic() + random.Random(seed).random() * every_s
        while not self._ended.is_set():
            # a pace by the clock
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await turn()
            due = max(due + every_s, time.monotonic())

    async def _send(self, at: int) -> None:
        conv = conversation(at)
        acked = self.acked[at]

        async def turn() -> None:
            body = f"{at} {len(acked)} {'x' * 100}"
            answer = await self.sends.time(client.send(conv, body))
            acked.append(Acked(answer.client_msg_id, answer.conv_seq, body))
            self.duplicates += answer.duplicate

        async with self.client(f"sender {at}") as client:
            await self._paced(turn, 1 / _PACE_PER_S, f"sender {at}")

    async def _read(self, at: int) -> None:
        """Follow a conversation from its start: every number once, in order."""
        shown = 0

        async def turn() -> None:
            nonlocal shown
            page = await self.pulls.time(client.history(conversation(at), after=shown, limit=_PAGE_MESSAGES))
            assert page.holes == []
            assert [m.conv_seq for m in page.messages] == list(range(shown + 1, shown + 1 + len(page.messages)))
            shown += len(page.messages)

        async with self.client(f"reader {at}") as client:
            await self._paced(turn, 1 / _PACE_PER_S, f"reader {at}")

    async def _live(self) -> None:
        """Ask for life, each time over a new connection."""

        # bare: to make a client of httpx takes this loop 20 ms, which the others would be charged for
        url = httpx.URL(self._url)

        async def ask() -> bytes:
            async with asyncio.timeout(_LIVE_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(url.host, url.port)
                try:
                    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    return await reader.read()
                finally:
                    writer.transport.abort()

        async def turn() -> None:
            answer = await self.lives.time(ask())
            assert answer.startswith(b"HTTP/1.1 200 "), answer

        await self._paced(turn, _LIVE_EVERY_S, "live")

    async def read_back(self) -> None:
        """Every message that was acked is there once, under the number that its sender was told, and no other."""
        for at in range(CONVERSATIONS):
            senders = [s for s in range(SENDERS) if conversation(s) == conversation(at)]
            found: list[Message] = []
            async with self.client("last reader") as client:
                async for page in client.iter_history(conversation(at), limit=1000):
                    assert page.holes == []
                    found += page.messages
            assert [m.conv_seq for m in found] == list(range(1, len(found) + 1))
            assert len(found) == sum(len(self.acked[s]) for s in senders)
            for s in senders:
                mine = [Acked(m.client_msg_id, m.conv_seq, str(m.body)) for m in found if m.sender == f"sender {s}"]
                assert mine == self.acked[s]


def conversation(at: int) -> str:
    """That of a sender or a reader."""
    return f"talk {at % CONVERSATIONS}"
