"""The load generator: keep-alive connections, each with one request in flight, on raw asyncio. A process of its own.

`python -m benchmarks.load --url URL --kind single|json|arrow ...` (token: IMRAY_TOKEN) prints JSON: rates, latencies
and its own share of a core, since a generator that is busy all the time measures itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.harness import percentile
from benchmarks.processes import machine_cpu
from benchmarks.requests import Source, Target, sources
from imray.deploy.process import tune_process

_HEAD_END = b"\r\n\r\n"
_HEAD_BYTES_MAX = 64 * 1024
_ANSWER_TIMEOUT_S = 30.0


class ResponseParser:
    """HTTP/1.1 answers with a Content-Length, out of pieces of any size. One answer at a time: no pipelining."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have = 0
        self._head: tuple[int, int, int] | None = None
        """Status, where the body starts, where it ends."""

    def feed(self, data: bytes) -> tuple[int, bytes] | None:
        """(status, body) when the answer is complete. ValueError for what no such answer can be."""
        self._parts.append(data)
        self._have += len(data)
        if self._head is None:
            joined = b"".join(self._parts)
            self._parts = [joined]
            at = joined.find(_HEAD_END)
            if at < 0:
                if len(joined) > _HEAD_BYTES_MAX:
                    raise ValueError("the head of an answer does not end")
                return None
            status, length = parse_head(joined[:at])
            start = at + len(_HEAD_END)
            self._head = status, start, start + length
        status, start, end = self._head
        if self._have < end:
            return None
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if len(whole) > end:
            raise ValueError(f"{len(whole) - end} bytes after the answer to the only request")
        self._parts, self._have, self._head = [], 0, None
        return status, whole[start:end]


def parse_head(head: bytes) -> tuple[int, int]:
    """Status and Content-Length of an answer's head."""
    if not head.startswith(b"HTTP/1.") or not head[9:12].isdigit():
        raise ValueError(f"not HTTP: {head[:40]!r}")
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise ValueError("an answer without Content-Length")
    value = lower[at + len(b"\r\ncontent-length:") :].split(b"\r\n", 1)[0].strip()
    if not value.isdigit():
        raise ValueError(f"Content-Length {value!r}")
    return int(head[9:12]), int(value)


@dataclass
class Clock:
    """The measured time, and what came in it."""

    begin: float
    end: float
    latencies: list[float] = field(default_factory=list)
    rows: int = 0


class Connection(asyncio.Protocol):
    """Sends the next request as soon as the last one is answered, until the clock's end."""

    def __init__(self, source: Source, clock: Clock, done: asyncio.Future[None]) -> None:
        self._source, self._clock, self._done = source, clock, done
        self._parser = ResponseParser()
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        request = self._source.next()
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._parser.feed(data)
            if answer is None:
                return
            now = time.perf_counter()
            self._source.check(*answer)
        except Exception as e:  # noqa: BLE001 whatever it is ends the run, with its reason
            self._finish(e)
            return
        clock = self._clock
        if clock.begin <= now < clock.end:
            clock.latencies.append(now - self._sent_at)
            clock.rows += self._source.rows
        if now < clock.end:
            self._send()
        else:
            self._finish(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(exc or ConnectionError("the server closed the connection"))

    def _finish(self, error: Exception | None) -> None:
        if not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)
        if self._transport is not None:
            self._transport.close()


async def measure(host: str, port: int, all_sources: Sequence[Source], warmup_s: float, seconds: float) -> dict:
    """Drive one connection for each source; rates and latencies of what was answered after the warm-up."""
    now = time.perf_counter()
    return await measure_between(host, port, all_sources, now + warmup_s, now + warmup_s + seconds)


async def measure_between(host: str, port: int, all_sources: Sequence[Source], begin_s: float, end_s: float) -> dict:
    """As `measure`: drive from now on until `end_s`, and count from `begin_s` on (both time.perf_counter)."""
    loop = asyncio.get_running_loop()
    clock = Clock(begin_s, end_s)
    seconds = end_s - begin_s
    finished: list[asyncio.Future[None]] = []
    for source in all_sources:
        done = loop.create_future()
        finished.append(done)
        await loop.create_connection(partial(Connection, source, clock, done), host, port)
    await asyncio.sleep(max(0.0, clock.begin - time.perf_counter()))
    cpu, wall = time.process_time(), time.perf_counter()
    busy_s, _ = machine_cpu()
    await asyncio.sleep(max(0.0, clock.end - time.perf_counter()))
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    busy_s = machine_cpu()[0] - busy_s
    await asyncio.wait_for(asyncio.gather(*finished), _ANSWER_TIMEOUT_S)
    return {
        "requests_per_second": len(clock.latencies) / seconds,
        "messages_per_second": clock.rows / seconds,
        "p50_ms": percentile(clock.latencies, 0.5) * 1e3,
        "p99_ms": percentile(clock.latencies, 0.99) * 1e3,
        "generator_cpu": share,
        "machine_cpu_s_per_million": 1e6 * busy_s / max(1, clock.rows),
    }


def main() -> None:
    """Parse arguments, measure, print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--kind", choices=("single", "json", "arrow"), default="single")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--rows", type=int, default=500, help="messages in a batch")
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    a = parser.parse_args()
    url = urlsplit(a.url)
    target = Target(url.netloc, os.environ.get("IMRAY_TOKEN", "none"))
    made = sources(a.kind, target, a.connections, a.conversations, a.rows)
    tune_process()
    print(json.dumps(uvloop.run(measure(url.hostname or "127.0.0.1", url.port or 80, made, a.warmup, a.seconds))))


if __name__ == "__main__":
    main()
