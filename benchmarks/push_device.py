"""A listener of a crowd: one connection, one conversation, and no message twice, or left out.

Owns what one listener does. Does not own the crowd (`benchmarks.push_crowd`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Final, Protocol

import msgspec

from benchmarks.push_frames import items_of, span_of
from benchmarks.push_wire import TEXT, Door, PushWire, client_frame, connect

_BACK_OFF_S_MAX: Final = 5.0


class Listened(Protocol):
    """The crowd, as its listeners see it."""

    notices: Counter[str]

    def told(self, device: Device, messages: int, payload: bytes) -> None:
        """Messages came."""

    def changed(self) -> None:
        """It got further."""

    def fail(self, why: str) -> None:
        """Something came that must not."""


class Device:
    """One listener. It comes back by itself where it was cut."""

    __slots__ = (
        "_back_off_s",
        "_crowd",
        "_door",
        "_live_from",
        "_ref",
        "_rng",
        "_task",
        "after",
        "conv_id",
        "current_at",
        "deaf",
        "idle",
        "live",
        "missed",
        "sampled",
        "tries",
        "wire",
    )

    def __init__(self, crowd: Listened, door: Door, conv_id: str, seed: int, sampled: bool, idle: bool) -> None:
        self._crowd = crowd
        self._door = door
        self.conv_id = conv_id
        self.sampled = sampled
        self.idle = idle
        self._rng = random.Random(seed)
        self._back_off_s: float | None = None
        self.deaf = False
        self.missed = False
        """It did not read, and was left out or left."""
        self._ref = 0
        self._live_from = 0
        self._task: asyncio.Task[None] | None = None
        self.after: int | None = None
        self.current_at = 0.0
        self.live = False
        self.tries = 0
        self.wire: PushWire | None = None

    @property
    def current(self) -> bool:
        """It was told everything up to where live begins."""
        return self.live and self.after is not None and self.after >= self._live_from - 1

    def wake(self) -> None:
        """Listen, after having been idle."""
        assert self.wire is not None
        self.idle = False
        self._subscribe(self.wire)

    async def come(self) -> None:
        """Connect, and subscribe from what it has."""
        self.tries += 1
        await connect(self._door, self)

    def cut(self, back_off_s: float) -> None:
        """Reset the connection, and come back within so long."""
        self._back_off_s = back_off_s
        self.tries = 0
        self.live = False
        if self.wire is not None:
            self.wire.cut()

    def deafen(self) -> None:
        """Read nothing any more."""
        self.deaf = True
        if self.wire is not None and self.wire.transport is not None:
            self.wire.transport.pause_reading()

    def hear(self) -> None:
        """Read again, to see what is left."""
        if self.wire is not None and self.wire.transport is not None:
            self.wire.transport.resume_reading()

    def opened(self, wire: PushWire) -> None:
        self.wire = wire
        if self.idle:
            self.live = True
            self._crowd.changed()
        else:
            self._subscribe(wire)

    def lost(self, wire: PushWire, code: int, why: str) -> None:
        self.live = False
        self.wire = None
        if self.deaf:
            self.missed = True  # whoever does not read may be left
            self._crowd.changed()
            return
        if self._back_off_s is None:
            self._crowd.fail(f"a listener's connection was lost: {code} {why}")
            return
        self._task = asyncio.get_running_loop().create_task(self._come_back())

    async def _come_back(self) -> None:
        assert self._back_off_s is not None
        await asyncio.sleep(self._rng.uniform(0, self._back_off_s))
        while True:
            try:
                await self.come()
            except OSError:
                self._crowd.notices["not connected"] += 1
                self._back_off_s = min(_BACK_OFF_S_MAX, 2 * self._back_off_s)
                await asyncio.sleep(self._rng.uniform(0, self._back_off_s))
            else:
                return

    def frame(self, wire: PushWire, payload: bytes) -> None:
        span = span_of(payload)
        if span is None:
            self._items(wire, payload)
            return
        if not self.live:
            return  # of the subscription before, which fell behind
        after, upto = span
        if after != self.after:
            self._crowd.fail(f"{self.conv_id}: told what is above {after}, after {self.after}")
        self.after = upto
        if not self.current_at and self.current:
            self.current_at = time.perf_counter()
            self._crowd.changed()
        self._crowd.told(self, upto - after, payload)

    def _subscribe(self, wire: PushWire) -> None:
        self.live = False
        self._ref += 1
        ask = {"t": "subscribe", "ref": self._ref, "conv_id": self.conv_id, "after": self.after}
        wire.write(client_frame(TEXT, msgspec.json.encode([ask])))

    def _items(self, wire: PushWire, payload: bytes) -> None:
        for item in items_of(payload):
            kind = item["t"]
            if kind == "subscribed":
                if self.after is not None and item["after"] != self.after:
                    self._crowd.fail(f"{self.conv_id}: subscribed after {item['after']}, not {self.after}")
                self.after = item["after"]
                self._live_from = item["live"]
                self.live = True
                self.current_at = time.perf_counter() if self.current else 0.0
                self._crowd.changed()
            elif self.deaf:
                self.missed |= kind == "behind"
                self._crowd.changed()
            elif kind in ("behind", "ended"):
                self._crowd.notices[kind] += 1
                self._subscribe(wire)
            elif kind == "error":
                self._crowd.fail(f"{self.conv_id}: {item}")
            elif kind != "welcome":
                self._crowd.notices[kind] += 1
