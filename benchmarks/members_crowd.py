"""Members of one group who listen, most of them passively, each with a token of its own; in a process of their own.

`python -m benchmarks.members_crowd` (key: IMRAY_JWT_KEY_FILE, the service's token: IMRAY_TOKEN) takes JSON lines and
answers each: see the methods of `MembersCrowd` that `command` names. Owns the load. Does not own what is measured of
the system meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import uvloop

from api.auth import make_token
from benchmarks.harness import percentile
from benchmarks.push_frames import SendFrame, acks_in, items_of, latencies_of, span_of
from benchmarks.push_process import serve_lines
from benchmarks.push_wire import JSON, TEXT, Door, PushWire, client_frame, connect
from imray.deploy.process import tune_process

_TOKEN_S: Final = 3600.0
_OPENED_S_MAX: Final = 60.0
_SETTLED_S_MAX: Final = 30.0
_ENDED_S_MAX: Final = 20.0
_AT_ONCE: Final = 100
_HTTP_S_MAX: Final = 30.0


class Member:
    """One listener."""

    __slots__ = ("_crowd", "after", "ended_at", "frames", "heads", "passive", "told_at", "unread", "user", "wire")

    def __init__(self, crowd: MembersCrowd, user: str, passive: bool) -> None:
        self._crowd = crowd
        self.user = user
        self.passive = passive
        self.after: int | None = None
        self.frames = 0
        self.heads = 0
        self.unread = 0
        self.told_at = 0.0
        self.ended_at = 0.0
        self.wire: PushWire | None = None

    def opened(self, wire: PushWire) -> None:
        self.wire = wire
        ask = {"t": "subscribe", "ref": 1, "conv_id": self._crowd.conv, "after": None, "passive": self.passive}
        wire.write(client_frame(TEXT, msgspec.json.encode([ask])))

    def lost(self, wire: PushWire, code: int, why: str) -> None:
        self._crowd.fail(f"{self.user}: the connection was lost: {code} {why}")

    def frame(self, wire: PushWire, payload: bytes) -> None:
        self.frames += 1
        span = span_of(payload)
        if span is not None:
            if span[0] != self.after or self.ended_at:
                self._crowd.fail(f"{self.user}: told what is above {span[0]}, after {self.after}, {self.ended_at}")
            self.after = span[1]
            self.told_at = time.perf_counter()
            self._crowd.told(payload, self.told_at)
            return
        for item in items_of(payload):
            self._item(item)

    def _item(self, item: dict[str, Any]) -> None:
        if item["t"] == "subscribed":
            self.after = item["after"]
        elif item["t"] == "head":
            self.heads += 1
            self.after = item["seq"]
            self.unread = item["unread"]
        elif item["t"] == "ended" and item["reason"] == "removed":
            self.ended_at = time.perf_counter()
        elif item["t"] != "welcome":
            self._crowd.fail(f"{self.user}: {item}")
            return
        self._crowd.changed.set()


class _Pen:
    """The connection of the service, which sends."""

    def __init__(self, crowd: MembersCrowd) -> None:
        self._crowd = crowd
        self.wire: PushWire | None = None
        self.acked = 0

    def opened(self, wire: PushWire) -> None:
        self.wire = wire
        self._crowd.changed.set()

    def lost(self, wire: PushWire, code: int, why: str) -> None:
        self._crowd.fail(f"the sender's connection was lost: {code} {why}")

    def frame(self, wire: PushWire, payload: bytes) -> None:
        try:
            self.acked += acks_in(JSON, payload)
        except Exception as e:  # noqa: BLE001 whatever it is ends the run, with its reason
            self._crowd.fail(str(e))


class MembersCrowd:
    """All connections of the process."""

    def __init__(self) -> None:
        self.conv = ""
        self.changed = asyncio.Event()
        self._url = ""
        self._members: list[Member] = []
        self._pen = _Pen(self)
        self._key = Path(os.environ["IMRAY_JWT_KEY_FILE"]).read_bytes().strip()
        self._frame: SendFrame | None = None
        self._error: str | None = None
        self._latencies: list[float] = []
        self._ending = False

    async def open(self, url: str, conv: str, sender: str, users: list[str], passive: int) -> dict[str, Any]:
        """All of `users` listen, so many of them passively; what is sent is `sender`'s."""
        self._url = url
        self._frame = SendFrame(JSON, conv, 1, sender=sender)  # here: the first one of a process takes half a second
        self.conv = conv
        await connect(Door.of(url, os.environ["IMRAY_TOKEN"]), self._pen)
        self._members = [Member(self, user, passive=i < passive) for i, user in enumerate(users)]
        for at in range(0, len(self._members), _AT_ONCE):
            some = self._members[at : at + _AT_ONCE]
            for member in some:
                await connect(Door.of(url, make_token(self._key, member.user, False, _TOKEN_S)), member)
            await self._until(lambda some=some: all(m.after is not None for m in some), _OPENED_S_MAX, "all listen")  # type: ignore[misc]
        await self._until(lambda: self._pen.wire is not None, _OPENED_S_MAX, "the sender is there")
        tune_process()
        return {"listening": len(self._members)}

    async def pace(self, begin_s: float, end_s: float, rate_per_s: float) -> dict[str, Any]:
        """Send so many messages a second; what each active listener was told, and how often a passive one heard."""
        frame = self._frame
        assert frame is not None
        self._latencies = []
        self._pen.acked = 0
        for member in self._members:
            member.frames = 0
            member.heads = 0
        sent = 0
        due = time.perf_counter()
        while due < end_s and not self._ending:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            assert self._pen.wire is not None
            self._pen.wire.write(frame.next(due))
            sent += 1
            due += 1 / rate_per_s
        await self._until(lambda: self._pen.acked == sent, _SETTLED_S_MAX, "all acked")
        listening = [m for m in self._members if not m.ended_at]
        await self._until(lambda: len({m.after for m in listening}) == 1, _SETTLED_S_MAX, "all have the last one")
        passive = [m.heads for m in listening if m.passive]
        return {
            "sent": sent,
            "p50_ms": percentile(self._latencies, 0.5) * 1e3,
            "p99_ms": percentile(self._latencies, 0.99) * 1e3,
            "heads": sum(passive) / max(1, len(passive)),
        }

    async def remove(self, count: int, rate_per_s: float) -> dict[str, Any]:
        """Remove active listeners, one after the other, while messages are sent: from the request to the answer, to
        the last message, and to the word that it is over. After that word nothing may come."""
        self._ending = False
        sending = asyncio.create_task(self.pace(0.0, time.perf_counter() + _ENDED_S_MAX * count, rate_per_s))
        answered, silent, over = [], [], []
        headers = {"Authorization": f"Bearer {os.environ['IMRAY_TOKEN']}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=_HTTP_S_MAX) as http:
            for member in [m for m in self._members if not m.passive][:count]:
                began = time.perf_counter()
                answer = await http.post(f"/v1/conversations/{self.conv}/members:remove", json={"users": [member.user]})
                answered.append(time.perf_counter() - began)
                if answer.status_code != 200:
                    raise RuntimeError(f"status {answer.status_code}: {answer.text[:300]}")
                await self._until(lambda m=member: bool(m.ended_at), _ENDED_S_MAX, "a removed member is told")  # type: ignore[misc]
                if member.after is not None and member.after > answer.json()["after"]:
                    raise RuntimeError(f"told {member.after}, removed after {answer.json()['after']}")
                silent.append(max(0.0, member.told_at - began))
                over.append(member.ended_at - began)
        self._ending = True
        await sending
        late = [max(0.0, told - said) for told, said in zip(over, answered, strict=True)]
        return {
            "answered_p50_ms": percentile(answered, 0.5) * 1e3,
            "answered_ms": max(answered) * 1e3,
            "silent_ms": max(silent) * 1e3,
            "over_p50_ms": percentile(over, 0.5) * 1e3,
            "over_ms": max(over) * 1e3,
            "late_ms": max(late) * 1e3,
        }

    def told(self, payload: bytes, now: float) -> None:
        """An active listener got messages."""
        self._latencies += latencies_of(payload, now)

    def fail(self, why: str) -> None:
        """The run is over."""
        self._error = self._error or why
        self.changed.set()

    def stop(self) -> None:
        """End a run now."""
        self._ending = True

    async def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.perf_counter() + seconds
        while not condition():
            if self._error is not None:
                raise RuntimeError(self._error)
            if time.perf_counter() > deadline:
                raise TimeoutError(f"not in {seconds:.0f} s: {what}")
            self.changed.clear()
            try:
                async with asyncio.timeout(0.02):
                    await self.changed.wait()
            except TimeoutError:
                continue  # another look

    async def command(self, ask: dict[str, Any]) -> dict[str, Any]:
        """What a line asks for."""
        methods: dict[str, Callable[..., Any]] = {m.__name__: m for m in (self.open, self.pace, self.remove)}
        return await methods[ask.pop("op")](**ask)


async def _main() -> None:
    crowd = MembersCrowd()
    await serve_lines(crowd.command, crowd.stop)


if __name__ == "__main__":
    uvloop.run(_main())
