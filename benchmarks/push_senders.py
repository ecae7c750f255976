"""Senders over WebSocket, in a process of their own: each connection has some frames in flight, and acks are counted.

`python -m benchmarks.push_senders` (token: IMRAY_TOKEN) takes JSON lines and answers each: see `Senders.open` and
`Senders.run`. Owns the load. Does not own what is measured of the system meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from benchmarks.harness import percentile
from benchmarks.push_frames import SendFrame, acks_in
from benchmarks.push_process import serve_lines
from benchmarks.push_wire import Door, PushWire, connect
from imray.deploy.process import tune_process

_OPENED_S_MAX = 60.0
_ANSWERED_S_MAX = 30.0


class _Sender:
    """One connection: a frame goes out as soon as the first of those in flight is acked whole."""

    def __init__(self, fleet: Senders, frame: SendFrame) -> None:
        self._fleet = fleet
        self._frame = frame
        self.wire: PushWire | None = None
        self._sent_at: list[float] = []
        self._acks = 0

    def opened(self, wire: PushWire) -> None:
        self.wire = wire
        self._fleet.one_opened()

    def lost(self, wire: PushWire, code: int, why: str) -> None:
        self._fleet.fail(f"a connection was lost: {code} {why}")

    @property
    def in_flight(self) -> int:
        """Frames."""
        return len(self._sent_at)

    def send(self) -> None:
        assert self.wire is not None
        now = time.perf_counter()
        self._sent_at.append(now)
        self.wire.write(self._frame.next(now))

    def frame(self, wire: PushWire, payload: bytes) -> None:
        try:
            acks = acks_in(self._fleet.subprotocol, payload)
        except Exception as e:  # noqa: BLE001 whatever it is ends the run, with its reason
            self._fleet.fail(str(e))
            return
        now = time.perf_counter()
        self._fleet.acked(acks, now)
        self._acks += acks
        while self._acks >= self._frame.count:
            self._acks -= self._frame.count
            self._fleet.answered(now - self._sent_at.pop(0), now)
            self._go_on(now)

    def _go_on(self, now: float) -> None:
        if now >= self._fleet.end:
            return
        if self._fleet.pause_s:
            asyncio.get_running_loop().call_later(self._fleet.pause_s, self._send_again)
        else:
            self.send()

    def _send_again(self) -> None:
        if time.perf_counter() < self._fleet.end:
            self.send()


class Senders:
    """All connections of the process."""

    def __init__(self) -> None:
        self.subprotocol = ""
        self.end = 0.0
        self.pause_s = 0.0
        self._begin = 0.0
        self._senders: list[_Sender] = []
        self._opened = 0
        self._changed = asyncio.Event()
        self._error: str | None = None
        self._rows = 0
        self._frames = 0
        self._answered: list[tuple[float, float]] = []
        """When, and after how long."""

    async def open(
        self, url: str, subprotocol: str, conversations: Sequence[str], connections: int, rows: int
    ) -> dict[str, Any]:
        """Connections whose frames carry `rows` messages; connection i speaks in conversation i modulo their number."""
        self.subprotocol = subprotocol
        door = Door.of(url, os.environ["IMRAY_TOKEN"], subprotocol)
        for i in range(connections):
            sender = _Sender(self, SendFrame(subprotocol, conversations[i % len(conversations)], rows))
            self._senders.append(sender)
            await connect(door, sender)
        await self._until(lambda: self._opened == connections, _OPENED_S_MAX, "all connections open")
        tune_process()
        return {"opened": self._opened}

    async def run(
        self, begin_s: float, end_s: float, window: int, pause_s: float = 0.0, each: bool = False
    ) -> dict[str, Any]:
        """Send from now on until `end_s`, and count from `begin_s` on (both time.perf_counter). `pause_s`: between an
        answer and the next frame. `each`: with every answer's time and latency."""
        self._begin = begin_s
        self.end = end_s
        self._rows = 0
        self._frames = 0
        self._answered = []
        self.pause_s = pause_s
        cpu = time.process_time()
        began = time.perf_counter()
        for sender in self._senders:
            for _ in range(window):
                sender.send()
        await self._until(lambda: time.perf_counter() >= self.end, end_s - began + 1, "the end")
        share = (time.process_time() - cpu) / (time.perf_counter() - began)
        await self._until(lambda: not any(s.in_flight for s in self._senders), _ANSWERED_S_MAX, "all acked")
        seconds = end_s - begin_s
        latencies = [latency for _, latency in self._answered]
        made: dict[str, Any] = {
            "acks_per_s": self._rows / seconds,
            "frames_per_s": self._frames / seconds,
            "p50_ms": percentile(latencies, 0.5) * 1e3,
            "p99_ms": percentile(latencies, 0.99) * 1e3,
            "generator_cpu": share,
        }
        return made | {"answered": self._answered} if each else made

    def stop(self) -> None:
        """End a run now."""
        self.end = min(self.end, time.perf_counter())

    def one_opened(self) -> None:
        """One more."""
        self._opened += 1
        self._changed.set()

    def acked(self, rows: int, now: float) -> None:
        """So many messages."""
        if self._begin <= now < self.end:
            self._rows += rows

    def answered(self, latency_s: float, now: float) -> None:
        """A frame, whole."""
        if self._begin <= now < self.end:
            self._frames += 1
            self._answered.append((now, latency_s))
        else:
            self._changed.set()

    def fail(self, why: str) -> None:
        """The run is over."""
        self._error = self._error or why
        self._changed.set()

    async def _until(self, condition: Any, seconds: float, what: str) -> None:
        deadline = time.perf_counter() + seconds
        while not condition():
            if self._error is not None:
                raise RuntimeError(self._error)
            if time.perf_counter() > deadline:
                raise TimeoutError(f"not in {seconds:.0f} s: {what}")
            self._changed.clear()
            try:
                async with asyncio.timeout(0.05):
                    await self._changed.wait()
            except TimeoutError:
                continue  # another look

    async def command(self, ask: dict[str, Any]) -> dict[str, Any]:
        """What a line asks for."""
        op = ask.pop("op")
        return await (self.open(**ask) if op == "open" else self.run(**ask))


async def _main() -> None:
    senders = Senders()
    await serve_lines(senders.command, senders.stop)


if __name__ == "__main__":
    uvloop.run(_main())
