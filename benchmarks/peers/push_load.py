"""Listeners of a peer, and senders at the pace at which they are told: `python -m benchmarks.peers.push_load`.

Takes JSON lines and answers each, as `benchmarks.push_crowd` does for imray: "open", then "drive". Each listener checks
that it is told every message once, in the order that all see. Owns the load. Does not own what is measured of the
server meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import uvloop

from benchmarks.harness import percentile
from benchmarks.peers.peer import Address
from benchmarks.peers.push_ear import Bodies, Ear, Split
from benchmarks.peers.push_ways import telling_of, way_of
from benchmarks.peers.work import Client
from benchmarks.push_process import serve_lines
from imray.deploy.process import tune_process

_OPENED_S_MAX = 100.0
_SETTLED_S_MAX = 30.0
_ACK_S_MAX = 30.0
_AT_ONCE = 50
"""Connections whose greeting is under way: some servers start a process for each."""
_SAMPLED_MAX = 20
"""Listeners whose times are looked at: as many as of imray's."""
_SENDER_DIGITS = 2


class Load:
    """All connections of the process."""

    def __init__(self) -> None:
        self.sent = 0
        self.split = Split()
        self._told = 0
        self._acked = 0
        self._ears: list[Ear] = []
        self._clients: list[Client] = []
        self._sources: list[Bodies] = []
        self._order: list[bytes] = []
        """Marks in the order in which the first listener that was told saw them."""
        self._last: dict[bytes, int] = {}
        self._one_order = True
        self._room = asyncio.Event()
        self._error: str | None = None
        self._begin = 0.0
        self._end = 0.0
        self._window = 0.0
        self._counted = 0
        self._latencies_s: list[float] = []

    async def open(self, way: str, address: Address, listeners: int, senders: int) -> dict[str, Any]:
        """Connect listeners, then senders."""
        chosen = way_of(way)
        telling = telling_of(chosen)
        self._one_order = chosen.one_order
        make = telling.ear(chosen, address)
        loop = asyncio.get_running_loop()
        sampled = max(1, listeners // _SAMPLED_MAX)
        for at in range(0, listeners, _AT_ONCE):
            some = [make(self, i % sampled == sampled - 1) for i in range(at, min(at + _AT_ONCE, listeners))]
            for ear in some:
                await loop.create_connection(lambda ear=ear: ear, "127.0.0.1", address["port"])  # type: ignore[misc]
            self._ears += some
            await self._until(lambda some=some: all(e.live for e in some), _OPENED_S_MAX, "all listen")  # type: ignore[misc]
        self._clients = [await telling.connect(chosen, address) for _ in range(senders)]
        self._sources = [Bodies(i) for i in range(senders)]
        tune_process()
        return {"listening": len(self._ears)}

    async def drive(self, begin_s: float, end_s: float, rows: int, window: int) -> dict[str, Any]:
        """Keep `window` batches of `rows` messages in flight until `end_s`: the next one goes out when the first was
        told to the listeners and the sender has its ack."""
        self._begin = begin_s
        self._end = end_s
        self._window = rows * (window - 1)
        self._counted = 0
        self._latencies_s = []
        cpu_s = time.process_time()
        began = time.perf_counter()
        pairs = zip(self._clients[:window], self._sources[:window], strict=True)
        tasks = [asyncio.create_task(self._line(client, source, rows)) for client, source in pairs]
        try:
            async with asyncio.timeout(end_s - began + _SETTLED_S_MAX):
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        self._check()
        seconds = self._end - self._begin
        made = {
            "told_per_s": self._counted / seconds,
            "generator_cpu": (time.process_time() - cpu_s) / (time.perf_counter() - began),
            **{f"p{p}_ms": percentile(self._latencies_s, p / 100) * 1e3 for p in (50, 99)},
        }
        await self._until(self._settled, _SETTLED_S_MAX, "everybody was told everything")
        return made

    def _settled(self) -> bool:
        return self._acked == self.sent and self._told == self.sent * len(self._ears)

    async def _line(self, client: Client, source: Bodies, rows: int) -> None:
        """One batch in flight after the other."""
        while True:
            while self.sent - self._told / len(self._ears) > self._window and time.perf_counter() < self._end:
                self._check()
                self._room.clear()
                try:
                    async with asyncio.timeout(max(0.001, self._end - time.perf_counter())):
                        await self._room.wait()
                except TimeoutError:
                    break  # the end
            now = time.perf_counter()
            if now >= self._end:
                return
            self.sent += rows
            numbers = await asyncio.wait_for(client.send(source.batch(rows, now)), _ACK_S_MAX)
            if len(numbers) != rows:
                raise RuntimeError(f"{len(numbers)} acks of {rows} messages")
            self._acked += rows

    def told(self, ear: Ear, marks: list[bytes], stamps: list[bytes]) -> None:
        """A listener got messages."""
        now = time.perf_counter()
        count = len(marks)
        if self._begin <= now < self._end:
            self._counted += count
            if stamps:
                self._latencies_s += [now - int(stamp) / 1e9 for stamp in stamps]
        if self._one_order:
            at = ear.heard - count
            known = self._order[at : ear.heard]
            if len(known) < count:
                self._in_turn(self._last, marks[len(known) :])
                self._order += marks[len(known) :]
            if marks[: len(known)] != known:
                self.fail(f"a listener was told {marks[:2]} as message {at}, another {known[:2]}")
        else:
            self._in_turn(ear.last, marks)
        self._told += count
        if self.sent - self._told / len(self._ears) <= self._window:
            self._room.set()

    def _in_turn(self, last: dict[bytes, int], marks: list[bytes]) -> None:
        """Each sender's messages follow one another."""
        for mark in marks:
            sender = mark[:_SENDER_DIGITS]
            number = int(mark[_SENDER_DIGITS:])
            if number != last.get(sender, -1) + 1:
                self.fail(f"told {number} of sender {sender.decode()} after {last.get(sender)}")
            last[sender] = number

    def changed(self) -> None:
        """A connection got further."""
        self._room.set()

    def fail(self, why: str) -> None:
        """The run is over."""
        self._error = self._error or why
        self._room.set()

    def stop(self) -> None:
        """End a run now."""
        self._end = min(self._end, time.perf_counter())
        self._room.set()

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError(self._error)

    async def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until it holds; TimeoutError says what did not."""
        deadline = time.perf_counter() + seconds
        while not condition():
            self._check()
            if time.perf_counter() > deadline:
                raise TimeoutError(f"not in {seconds:.0f} s: {what}")
            await asyncio.sleep(0.01)
        self._check()

    async def command(self, ask: dict[str, Any]) -> dict[str, Any]:
        """What a line asks for."""
        methods: dict[str, Callable[..., Any]] = {"open": self.open, "drive": self.drive}
        return await methods[ask.pop("op")](**ask)


async def _main() -> None:
    load = Load()
    await serve_lines(load.command, load.stop)


if __name__ == "__main__":
    uvloop.run(_main())
