"""Listeners that write down what they are told, and sends, for the tests of feeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from imray.core.replies import Appended
from imray.engine.engine import Engine
from imray.engine.listening import Batch, Encoder, Notice, Subscribed
from imray.engine.sends import Send

_DEADLINE_S = 20.0


def plain(batch: Batch) -> bytes:
    """Numbers and bodies: an encoder that a test can read."""
    rows = " ".join(f"{row.conv_seq}={row.body.decode()}" for row in batch.messages)
    return f"{batch.after}-{batch.upto}:{rows}".encode()


class Ear:
    """A listener that writes down what it is told; `room` says how many items it takes."""

    def __init__(self, sender: str = "ada") -> None:
        self.sender = sender
        self.service = False
        self.encoder: Encoder = plain
        self.frames: list[str] = []
        self.notices: list[Notice] = []
        self.room = 1 << 60
        self._told = asyncio.Event()

    def offer(self, data: bytes) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.frames.append(data.decode())
        self._told.set()
        return True

    def notify(self, notice: Notice) -> None:
        self.notices.append(notice)
        self._told.set()

    @property
    def seqs(self) -> list[int]:
        """The numbers of the messages, as they came."""
        return [int(row.split("=")[0]) for frame in self.frames for row in frame.split(":", 1)[1].split()]

    @property
    def upto(self) -> int:
        """The last number that was told."""
        return int(self.frames[-1].split(":")[0].split("-")[1]) if self.frames else 0

    async def until(self, condition: Callable[[], bool], deadline_s: float = _DEADLINE_S) -> None:
        """Wait until it holds."""
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._told.clear()
                await self._told.wait()

    def check(self, after: int) -> None:
        """Each number above `after` was told once, in order."""
        at = after
        for frame in self.frames:
            begin, end = map(int, frame.split(":")[0].split("-"))
            assert begin == at, (begin, at)
            at = end
        assert self.seqs == sorted(set(self.seqs))


async def turns() -> None:
    """Let everything go on that waits for nothing."""
    for _ in range(20):
        await asyncio.sleep(0)


_ids = iter(range(1, 1 << 60))


async def send(engine: Engine, conv: str, count: int = 1, sender: str = "bob") -> list[int]:
    """Messages one after the other; their numbers."""
    seqs = []
    for _ in range(count):
        number = next(_ids)
        message = Send(conv, number.to_bytes(16, "big"), sender, None, None, None, str(number).encode())
        answer, row = await engine.send(message)
        assert isinstance(answer, Appended), answer
        seqs.append(int(answer.seqs()[row]))
    return seqs


async def listen(engine: Engine, ear: Ear, conv: str, after: int | None = 0, passive: bool = False) -> Subscribed:
    """Subscribe and start."""
    answer = await engine.feeds.subscribe(ear, conv, after, passive)
    assert isinstance(answer, Subscribed), answer
    engine.feeds.start(ear, conv)
    return answer
