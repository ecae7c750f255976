"""Listeners in a process of their own, and whoever sends to them at the pace at which they are told.

`python -m benchmarks.push_crowd` (token: IMRAY_TOKEN) takes JSON lines and answers each: see the methods of `Crowd`
that `command` names. Each listener checks that what it is told follows what it was told before. Owns the load. Does not
own what is measured of the system meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import uvloop

from benchmarks.harness import percentile
from benchmarks.push_device import Device
from benchmarks.push_frames import SendFrame, acks_in, latencies_of
from benchmarks.push_process import serve_lines
from benchmarks.push_wire import JSON, Door, PushWire, connect
from benchmarks.workload import BODY_BYTES, text
from imray.deploy.process import tune_process

_OPENED_S_MAX = 100.0
_SETTLED_S_MAX = 30.0
_AT_ONCE = 100
"""Connections whose handshake is under way."""
_SAMPLED_MAX = 20
"""Listeners whose times are looked at: the others are counted only."""
_SENDERS_MAX = 16


class _Pen:
    """A connection that sends for some conversations."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self.wire: PushWire | None = None

    def opened(self, wire: PushWire) -> None:
        self.wire = wire

    def lost(self, wire: PushWire, code: int, why: str) -> None:
        self._crowd.fail(f"a sender's connection was lost: {code} {why}")

    def frame(self, wire: PushWire, payload: bytes) -> None:
        try:
            self._crowd.acked += acks_in(JSON, payload)
        except Exception as e:  # noqa: BLE001 whatever it is ends the run, with its reason
            self._crowd.fail(str(e))


class Lane:
    """A conversation: what was sent to it, and how much of that its listeners here were told."""

    def __init__(self, conv_id: str, pen: _Pen) -> None:
        self.conv_id = conv_id
        self.listeners = 0
        self.sent = 0
        self.told = 0
        self._pen = pen
        self._frame: SendFrame | None = None

    def begin(self, rows: int, body_bytes: int) -> None:
        """Frames of so many messages from now on."""
        self._frame = SendFrame(JSON, self.conv_id, rows, body_bytes)
        self.sent = 0
        self.told = 0

    @property
    def in_flight(self) -> float:
        """Messages that not all were told."""
        return self.sent - self.told / self.listeners

    def send(self, due: float) -> None:
        """A frame; times count from `due`."""
        assert self._frame is not None
        assert self._pen.wire is not None
        self.sent += self._frame.count
        self._pen.wire.write(self._frame.next(due))


class Crowd:
    """All connections of the process."""

    def __init__(self) -> None:
        self.acked = 0
        self.notices: Counter[str] = Counter()
        self._devices: list[Device] = []
        self._deaf: list[Device] = []
        self._lanes: dict[str, Lane] = {}
        self._changed = asyncio.Event()
        self._error: str | None = None
        self._begin = 0.0
        self._end = 0.0
        self._window: int | None = None
        """Messages of a lane in flight; None: it is not the listeners that set the pace."""
        self._told = 0
        self._frames = 0
        self._latencies: list[float] = []

    async def open(
        self, url: str, conversations: list[str], listeners: int, seed: int, sends: bool = True, idle: bool = False
    ) -> dict[str, Any]:
        """Listener i of conversation i modulo their number, and connections to send over. `idle`: none listens."""
        text()  # here: the first time takes half a second and more, which a measurement would begin with
        door = Door.of(url, os.environ["IMRAY_TOKEN"], JSON)
        pens = [_Pen(self) for _ in range(min(_SENDERS_MAX, len(conversations)) if sends else 0)]
        for pen in pens:
            await connect(door, pen)
        if sends:
            self._lanes |= {c: Lane(c, pens[i % len(pens)]) for i, c in enumerate(conversations)}
        sampled = max(1, listeners // _SAMPLED_MAX)
        for i in range(listeners):
            conv_id = conversations[i % len(conversations)]
            device = Device(self, door, conv_id, seed + i, i % sampled == sampled - 1, idle)
            self._devices.append(device)
            if sends:
                self._lanes[conv_id].listeners += 1
        await self._come(self._devices[-listeners:])
        await self.until(lambda: all(pen.wire is not None for pen in pens), _OPENED_S_MAX, "senders are there")
        tune_process()
        return {"listening": len(self._devices)}

    async def _come(self, devices: list[Device]) -> None:
        for at in range(0, len(devices), _AT_ONCE):
            some = devices[at : at + _AT_ONCE]
            for device in some:
                await device.come()
            await self.until(lambda some=some: all(d.live for d in some), _OPENED_S_MAX, "all listen")  # type: ignore[misc]

    async def drive(
        self, begin_s: float, end_s: float, rows: int, window: int, body_bytes: int = BODY_BYTES
    ) -> dict[str, Any]:
        """Keep `window` frames of `rows` messages in flight to each conversation until `end_s`: the next one goes out
        when all listeners were told the first."""
        self._start(begin_s, end_s, rows, body_bytes)
        self._window = rows * (window - 1)
        began = time.perf_counter()
        for lane in self._lanes.values():
            for _ in range(window):
                lane.send(time.perf_counter())
        await self.until(lambda: time.perf_counter() >= self._end, end_s - began + 1, "the end")
        self._window = None
        return await self._result()

    async def pace(
        self, begin_s: float, end_s: float, rows: int, rate_per_s: float, body_bytes: int = BODY_BYTES
    ) -> dict[str, Any]:
        """Send so many messages a second, evenly, one conversation after the other: times count from when each was
        due."""
        self._start(begin_s, end_s, rows, body_bytes)
        lanes = list(self._lanes.values())
        due = time.perf_counter()
        at = 0
        while due < self._end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            while due <= time.perf_counter():
                lanes[at % len(lanes)].send(due)
                at += 1
                due += rows / rate_per_s
            self.check()
        return await self._result()

    async def wake(self) -> dict[str, Any]:
        """Who was idle listens."""
        idle = [device for device in self._devices if device.idle]
        for device in idle:
            device.wake()
        await self.until(lambda: all(d.live for d in idle), _OPENED_S_MAX, "all listen")
        return {"listening": len(idle)}

    async def deafen(self, listeners: int) -> dict[str, Any]:
        """So many listeners read nothing any more, and count no more."""
        left = len(self._devices) - listeners
        for device in self._devices[left:]:
            device.deafen()
            self._lanes[device.conv_id].listeners -= 1
        self._deaf += self._devices[left:]
        del self._devices[left:]
        return {}

    async def hear(self) -> dict[str, Any]:
        """The deaf read again. TimeoutError where one had missed nothing: then its neighbours were in no danger."""
        for device in self._deaf:
            device.hear()
        await self.until(lambda: all(d.missed for d in self._deaf), _SETTLED_S_MAX, "the deaf had to be left out")
        return {"missed": len(self._deaf)}

    async def cut(self, back_off_s: float) -> dict[str, Any]:
        """Reset all connections at once; each comes back within `back_off_s`, by chance, and again where it fails.
        When the last one was told all that it had missed (seconds)."""
        began = time.perf_counter()
        for device in self._devices:
            device.cut(back_off_s)
        await self.until(lambda: all(d.current for d in self._devices), _OPENED_S_MAX, "all are current again")
        times = [d.current_at - began for d in self._devices]
        tries = sum(d.tries for d in self._devices)
        return {"p50_s": percentile(times, 0.5), "all_s": max(times), "tries": tries, "notices": dict(self.notices)}

    def told(self, device: Device, messages: int, payload: bytes) -> None:
        """A listener got messages."""
        if device.deaf:
            return
        now = time.perf_counter()
        if self._begin <= now < self._end:
            self._told += messages
            self._frames += 1
            if device.sampled:
                self._latencies += latencies_of(payload, now)
        lane = self._lanes.get(device.conv_id)
        if lane is not None:
            lane.told += messages
            if self._window is not None:
                while lane.in_flight <= self._window:
                    lane.send(time.perf_counter())

    def fail(self, why: str) -> None:
        """The run is over."""
        self._error = self._error or why

    def stop(self) -> None:
        """End a run now."""
        self._end = min(self._end, time.perf_counter())

    def changed(self) -> None:
        """A connection got further."""
        self._changed.set()

    def check(self) -> None:
        """RuntimeError where something went wrong."""
        if self._error is not None:
            raise RuntimeError(self._error)

    async def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until it holds; TimeoutError says what did not."""
        deadline = time.perf_counter() + seconds
        while not condition():
            self.check()
            if time.perf_counter() > deadline:
                raise TimeoutError(f"not in {seconds:.0f} s: {what} {dict(self.notices)}")
            self._changed.clear()
            try:
                async with asyncio.timeout(0.02):
                    await self._changed.wait()
            except TimeoutError:
                continue  # another look

    def _start(self, begin_s: float, end_s: float, rows: int, body_bytes: int) -> None:
        self._begin = begin_s
        self._end = end_s
        self._told = 0
        self._frames = 0
        self._latencies = []
        self._cpu = time.process_time()
        self._wall = time.perf_counter()
        self.acked = 0
        for lane in self._lanes.values():
            lane.begin(rows, body_bytes)

    async def _result(self) -> dict[str, Any]:
        """The figures, once everything that was sent was acked and told."""
        made = self._figures()
        lanes = self._lanes.values()
        sent = sum(lane.sent for lane in lanes)
        await self.until(
            lambda: self.acked == sent and all(lane.told == lane.sent * lane.listeners for lane in lanes),
            _SETTLED_S_MAX,
            "everybody was told everything",
        )
        return made

    def _figures(self) -> dict[str, Any]:
        seconds = self._end - self._begin
        return {
            "told_per_s": self._told / seconds,
            "frames_per_s": self._frames / seconds,
            "generator_cpu": (time.process_time() - self._cpu) / (time.perf_counter() - self._wall),
            "behind": float(self.notices["behind"]),
            **{f"p{p}_ms": percentile(self._latencies, p / 100) * 1e3 for p in (50, 99)},
        }

    async def command(self, ask: dict[str, Any]) -> dict[str, Any]:
        """What a line asks for."""
        known = (self.open, self.drive, self.pace, self.deafen, self.hear, self.wake, self.cut)
        methods: dict[str, Callable[..., Any]] = {method.__name__: method for method in known}
        return await methods[ask.pop("op")](**ask)


async def _main() -> None:
    crowd = Crowd()
    await serve_lines(crowd.command, crowd.stop)


if __name__ == "__main__":
    uvloop.run(_main())
