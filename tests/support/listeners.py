"""Hundreds of devices that listen to one conversation, in a process of their own: they record all that they were shown.

`python -m tests.support.listeners URL CONV FIRST COUNT EVENTS` (token: IMRAY_TOKEN) takes JSON lines and answers each
with one. Owns what a device does by docs/live.md: it comes back with jitter, and subscribes from what it was shown
last. Does not judge what it was shown: what comes is recorded as it comes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.push_wire import BINARY, JSON, MSGPACK, TEXT, Door, PushWire, client_frame, connect
from tests.checker.events import EventLog

_BACK_OFF_S_MIN = 0.1
_BACK_OFF_S_MAX = 3.0
_HELD_S = 2.0
"""Only a connection that held for so long makes the next try a quick one again."""
_CONNECT_S_MAX = 10.0
_ANSWER_S_MAX = 15.0
"""A handshake or subscription without an answer for so long is given up with its connection."""
_FLUSH_S = 1.0
_SAME_FRAMES_MAX = 64
"""Frames that are remembered decoded: most go to everybody."""

Row = tuple[int, str, str]


class Frames:
    """Decodes frames, the same bytes once."""

    def __init__(self, subprotocol: str) -> None:
        self.door_says = subprotocol
        packed = subprotocol == MSGPACK
        self._decode = msgspec.msgpack.decode if packed else msgspec.json.decode
        self._encode = msgspec.msgpack.encode if packed else msgspec.json.encode
        self._opcode = BINARY if packed else TEXT
        self._known: dict[bytes, list[dict[str, Any]]] = {}

    def items(self, payload: bytes) -> list[dict[str, Any]]:
        """The items of a frame; of `messages`, the rows are made already."""
        found = self._known.get(payload)
        if found is None:
            found = self._decode(payload)
            for item in found:
                if item["t"] == "messages":
                    item["told"] = _told(item)
            if len(self._known) >= _SAME_FRAMES_MAX:
                self._known.pop(next(iter(self._known)))
            self._known[payload] = found
        return found

    def frame(self, *items: dict[str, Any]) -> bytes:
        """A frame to send."""
        return client_frame(self._opcode, self._encode(items))


def digest(body: str) -> str:
    """How a payload is named in events."""
    return hashlib.blake2b(body.encode(), digest_size=8).hexdigest()


def _told(item: dict[str, Any]) -> list[Row | tuple[int, int, str, str]]:
    """Rows and holes (low, high, reason, "hole") of an item, in their order: messages as they come, each hole before
    the first message above it."""
    holes = [(h["from"], h["to"], h["reason"], "hole") for h in item["holes"]]
    told: list[Any] = []
    for m in item["messages"]:
        while holes and holes[0][0] < m["conv_seq"]:
            told.append(holes.pop(0))
        told.append((m["conv_seq"], m["client_msg_id"], digest(m["body"])))
    return [*told, *holes]


class Device:
    """One listener, over as many connections as it takes."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self._frames = crowd.formats[number % len(crowd.formats)]
        self._log = crowd.log.as_client(f"l{number}")
        self._rng = random.Random(number)
        self._rows: list[Row] = []
        self.after = 0
        self.wire: PushWire | None = None
        self.live = False
        """The last subscription was answered, and is not over."""
        self._listened = False
        self._ref = 0
        self._asked_at = 0.0
        self._lost = asyncio.Event()
        self._back_off_s = _BACK_OFF_S_MIN
        self._come_back_in_s: float | None = None

    async def run(self) -> None:
        """Connect, listen, and again until the process ends."""
        door = Door.of(self._crowd.url, self._crowd.token, self._frames.door_says)
        while True:
            self._lost.clear()
            began = time.monotonic()
            try:
                async with asyncio.timeout(_CONNECT_S_MAX):
                    self._asked_at = time.monotonic()
                    self.wire = await connect(door, self)
                await self._lost.wait()
            except (OSError, TimeoutError):
                self._crowd.counts["not connected"] += 1
            self.wire = None
            self.live = False
            held = time.monotonic() - began >= _HELD_S
            self._back_off_s = _BACK_OFF_S_MIN if held else min(_BACK_OFF_S_MAX, 2 * self._back_off_s)
            wait_s = self._come_back_in_s or self._rng.uniform(0, self._back_off_s)
            self._come_back_in_s = None
            await asyncio.sleep(wait_s)

    def opened(self, wire: PushWire) -> None:
        self._crowd.counts["connections"] += 1
        self.wire = wire
        self._subscribe(wire)

    def lost(self, wire: PushWire, code: int, why: str) -> None:
        self._crowd.counts[f"lost {code} {why[:40]}"] += 1
        self._lost.set()

    def frame(self, wire: PushWire, payload: bytes) -> None:
        if wire is not self.wire and self.wire is not None:
            return
        for item in self._frames.items(payload):
            self._item(wire, item)

    def _subscribe(self, wire: PushWire) -> None:
        self.live = False
        self._ref += 1
        self._asked_at = time.monotonic()
        ask = {"t": "subscribe", "ref": self._ref, "conv_id": self._crowd.conv, "after": self.after}
        wire.write(self._frames.frame(ask))

    def _item(self, wire: PushWire, item: dict[str, Any]) -> None:
        kind = item["t"]
        if kind == "messages":
            # before a new subscription is answered this belongs to the one before it, which may have left some out
            if self.live:
                self._messages(item)
        elif kind == "subscribed" and item["ref"] == self._ref:
            self.flush()
            self._log.listen(self._crowd.conv, item["after"], again=self._listened)
            self._listened = True
            self.live = True
        elif kind in ("behind", "ended") or (kind == "error" and item.get("ref") == self._ref):
            self._crowd.counts[f"{kind} {item.get('reason', item.get('status', ''))}"] += 1
            self.live = False
            wait_s = 0.0 if kind == "behind" else self._rng.uniform(_BACK_OFF_S_MIN, 1.0)
            asyncio.get_running_loop().call_later(wait_s, self._again, wire)
        elif kind == "drain":
            self._crowd.counts["drain"] += 1
            self._come_back_in_s = max(0.001, item["reconnect_in_s"])
            wire.close()

    def _again(self, wire: PushWire) -> None:
        if wire is self.wire and not self.live:
            self._subscribe(wire)

    def _messages(self, item: dict[str, Any]) -> None:
        if item["after"] != self.after:
            # the checker finds what is wrong with it; this says where to look
            self._crowd.counts["items that do not follow"] += 1
        for told in item["told"]:
            if len(told) == 4:
                self.flush()
                self._log.told_hole(self._crowd.conv, *told[:3])
            else:
                self._rows.append(told)
        self.after = item["upto"]

    def look(self, now: float) -> None:
        """Give a connection up that does not answer."""
        if self.wire is not None and not self.live and now - self._asked_at > _ANSWER_S_MAX:
            self._crowd.counts["no answer"] += 1
            self._asked_at = now
            self.wire.cut()

    def flush(self) -> None:
        """Write down what was shown."""
        if self._rows:
            self._log.shown(self._crowd.conv, self._rows)
            self._rows = []


class Crowd:
    """All devices of the process."""

    def __init__(self, url: str, conv: str, log: EventLog) -> None:
        self.url = url
        self.conv = conv
        self.log = log
        self.token = os.environ["IMRAY_TOKEN"]
        self.formats = [Frames(JSON), Frames(JSON), Frames(JSON), Frames(MSGPACK)]
        self.counts: Counter[str] = Counter()
        self.devices: list[Device] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._rng = random.Random(conv)

    def start(self, first: int, count: int) -> None:
        """Let so many devices come."""
        self.devices = [Device(self, first + i) for i in range(count)]
        self._tasks = [asyncio.create_task(d.run()) for d in self.devices]
        self._tasks.append(asyncio.create_task(self._keep_up()))

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            now = time.monotonic()
            for device in self.devices:
                device.look(now)
                device.flush()

    def command(self, ask: dict[str, Any]) -> dict[str, Any]:
        """What a line asks for."""
        for task in self._tasks:
            if task.done():
                task.result()  # a device that ended has a bug: it is told here
        op = ask["op"]
        chosen = [d for d in self.devices if d.wire is not None and self._rng.random() < ask.get("share", 0.0)]
        if op == "cut":
            for device in chosen:
                if device.wire is not None:
                    device.wire.cut()
        elif op == "delay":
            for device in chosen:
                self._delay(device, self._rng.uniform(0, ask["seconds_max"]))
        elif op == "end":
            for device in self.devices:
                device.flush()
        current = sum(d.live and d.after >= ask.get("upto", 0) for d in self.devices)
        return {"current": current, "live": sum(d.live for d in self.devices), "counts": dict(self.counts)}

    def _delay(self, device: Device, seconds: float) -> None:
        """Frames come later: nothing is read from the connection for a while."""
        wire = device.wire
        if wire is None or wire.transport is None or wire.transport.is_closing():
            return
        wire.transport.pause_reading()
        asyncio.get_running_loop().call_later(seconds, _resume, wire)


def _resume(wire: PushWire) -> None:
    if wire.transport is not None and not wire.transport.is_closing():
        wire.transport.resume_reading()


async def _serve(url: str, conv: str, first: int, count: int, events: Path) -> None:
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    with EventLog(events, f"listeners {first}") as log:
        crowd = Crowd(url, conv, log)
        crowd.start(first, count)
        while line := await stdin.readline():
            ask = json.loads(line)
            print(json.dumps(crowd.command(ask)), flush=True)
            if ask["op"] == "end":
                break


if __name__ == "__main__":
    where, room, begin, many, file = sys.argv[1:]
    uvloop.run(_serve(where, room, int(begin), int(many), Path(file)))
