"""Attacks on a gateway, each in a process of its own: `python attacks.py NAME`, with a `Target` as a line of JSON on
stdin. It says when it is ready, begins at the next line, ends when stdin ends, and then says what it saw, by kind.

Numbers of connections are a fifth of those in docs/security.md. So are rates, where the text names a flood without
one: each connection has a pace, and all together take a fifth of what one core answers, or less."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.support.attack_requests import Asked, arrow_bombs, bad_batches, hostile_tokens, page_of, ready, request

MB = 1024 * 1024
_SOURCES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1")
"""The last one is that of the honest clients."""
_NICE = 10
"""An attacker brings its own cores; here it shares those of the gateway, and must not be judged by what it takes."""
_TRY_AGAIN_S = 0.2
_ANSWER_S_MAX = 120.0
_UNREAD_S = 15.0
"""Beyond the door's deadline for who does not read."""
_CONNECTIONS_A_SECOND = 100
READY = "ready\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Target:
    """Where the gateway is, and what an attacker has: tokens of several subjects, and the name of a long history."""

    port: int
    tokens: list[str]
    """Valid ones."""
    hostile: list[str]
    """Signed with the right key, with claims of strange make."""
    history: str


@dataclass
class Attack:
    """One attack: what it saw."""

    target: Target
    seen: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def connect(self, at: int, buffer: int | None = None) -> AsyncIterator[Streams]:
        """A connection from the next address; `buffer`: what the kernel holds of an answer."""
        raw = socket.socket()
        raw.setblocking(False)
        if buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            raw.bind((_SOURCES[at % len(_SOURCES)], 0))
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", self.target.port))
        except BaseException:
            raw.close()
            raise
        streams = await asyncio.open_connection(sock=raw, limit=buffer or 64 * 1024)
        try:
            yield streams
        finally:
            streams[1].transport.abort()

    async def again(self, at: int, turn: Callable[[int], Coroutine[Any, Any, None]], pause_s: float = 0.0) -> None:
        """Do it for ever; a closed connection is an answer, too."""
        while True:
            try:
                await turn(at)
            except (OSError, asyncio.IncompleteReadError) as e:
                self.seen["late" if isinstance(e, TimeoutError) else "cut"] += 1
                await asyncio.sleep(_TRY_AGAIN_S)
            await asyncio.sleep(pause_s)

    async def ask(self, at: int, requests: Iterator[Asked], per_s: float) -> None:
        """Send requests over one connection at a pace, until it is closed."""
        async with self.connect(at) as streams:
            due = time.monotonic()
            for asked in requests:
                streams[1].write(asked.data)
                async with asyncio.timeout(_ANSWER_S_MAX):
                    status, closes = await answer(streams[0])
                self.seen[f"{asked.kind} {status}"] += 1
                if closes:
                    return
                # one that was kept waiting does not hurry to catch up
                due = max(due + 1 / per_s, time.monotonic())
                await asyncio.sleep(due - time.monotonic())


async def answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read an answer to its end: its status, and whether the server closes after it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(None, 2)[1])
    if b"transfer-encoding: chunked" in head:
        size = 1
        while size:
            size = int(await reader.readuntil(b"\r\n"), 16)
            await reader.readexactly(size + 2)
    else:
        length = head.partition(b"content-length: ")[2].split(b"\r\n")[0]
        await reader.readexactly(int(length or 0))
    return status, b"connection: close" in head


# connections


def header_floods(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """Lines without end: 6 MB where the text has 31."""
    lines = b"".join(b"X-%06d: y\r\n" % i for i in range(5000))

    async def turn(at: int) -> None:
        async with attack.connect(at) as (reader, writer):
            writer.write(b"POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n")
            with suppress(ConnectionError):  # refused in the middle: its answer is still to be read
                for _ in range(6 * MB // len(lines)):
                    writer.write(lines)
                    await writer.drain()
            attack.seen[str((await answer(reader))[0])] += 1

    return (attack.again(at, turn, 0.4) for at in range(4))


def silent_connections(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """840 connections that say nothing, half a header, or half a body; closed ones are opened again."""
    head = b"POST /v1/messages:batch HTTP/1.1\r\nHost: x\r\n"
    starts = (b"", head, head + b"Content-Length: 1000\r\n\r\nabc")

    async def turn(at: int) -> None:
        async with attack.connect(at) as (reader, writer):
            writer.write(starts[at % 3])
            heard = await reader.read()
            attack.seen[heard.split(b" ", 2)[1].decode() if heard else "closed"] += 1

    async def later(at: int) -> None:
        await asyncio.sleep(at / _CONNECTIONS_A_SECOND)
        await attack.again(at, turn)

    return (later(at) for at in range(840))


def unfinished_bodies(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """12 bodies of 16 MB that stop after 15."""
    start = request("POST", "/v1/messages:batch", attack.target.tokens[0], b"", length=16 * MB)
    part = b"x" * 100_000

    async def turn(at: int) -> None:
        async with attack.connect(at) as (reader, writer):
            writer.write(start)
            with suppress(ConnectionError):
                for _ in range(150):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.02)  # its network takes 5 MB/s
            attack.seen[str((await answer(reader))[0])] += 1

    return (attack.again(at, turn, 1.0) for at in range(12))


def unread_pages(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """4 clients that ask for 45 MB and never read."""

    async def turn(at: int) -> None:
        async with attack.connect(at, 4096) as (reader, writer):
            asked = page_of(attack.target.history, attack.target.tokens[1])
            writer.write(asked.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            # it waits for its turn before it begins
            head = await reader.readuntil(b"\r\n\r\n")
            attack.seen[head.split(None, 2)[1].decode()] += 1
            await asyncio.sleep(_UNREAD_S)
            if head.startswith(b"HTTP/1.1 200 "):
                end = b""
                while part := await reader.read(MB):
                    end = (end + part)[-7:]
                attack.seen["whole" if end == b"\r\n0\r\n\r\n" else "left"] += 1

    return (attack.again(at, turn) for at in range(4))


# requests


def ready_storm(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """10 connections ask for readiness, 40 times a second each."""
    return (attack.again(at, lambda n: attack.ask(n, ready(), 40)) for at in range(10))


def token_flood(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """10 connections, 20 times a second each: unknown keys, wrong signatures, strange claims."""
    return (attack.again(at, lambda n: attack.ask(n, hostile_tokens(n, attack.target.hostile), 20)) for at in range(10))


def bombs(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """4 connections with Arrow streams that say much in little, twice a second each."""
    made = arrow_bombs(attack.target.tokens[2])
    return (attack.again(at, lambda n: attack.ask(n, made(), 2)) for at in range(4))


def batches(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """4 connections with batches that must not be written, 5 times a second each."""
    made = bad_batches(attack.target.tokens[3])
    return (attack.again(at, lambda n: attack.ask(n, made(), 5)) for at in range(4))


def history_hogs(attack: Attack) -> Iterator[Coroutine[Any, Any, None]]:
    """16 callers take pages of 32 MB. Without a pause a few of them keep the history reader as busy as 80 do, so each
    has one: together they ask for a fifth of what it reads, three such pages a second."""
    every_s = 16 / (3 / 5)

    def pages(at: int) -> Iterator[Asked]:
        while True:
            yield Asked("page", page_of(attack.target.history, attack.target.tokens[4 + at]))

    async def later(at: int) -> None:
        await asyncio.sleep(at * every_s / 16)
        await attack.again(at, lambda n: attack.ask(n, pages(n), 1 / every_s))

    return (later(at) for at in range(16))


ATTACKS = {
    make.__name__: make
    for make in (
        *(header_floods, silent_connections, unfinished_bodies, unread_pages),
        *(ready_storm, token_flood, bombs, batches, history_hogs),
    )
}
CALLERS = 4 + 16
"""Valid tokens that a target must have."""


async def _run(attack: Attack, work: Iterator[Coroutine[Any, Any, None]]) -> Counter[str]:
    tasks = [asyncio.create_task(w) for w in work]
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        task.result()  # an attack ends by its error only
    return attack.seen


def main() -> None:
    """See the module."""
    os.nice(_NICE)
    target = Target(**json.loads(sys.stdin.readline()))
    attack = Attack(target)
    work = ATTACKS[sys.argv[1]](attack)
    print(READY, end="", flush=True)
    if sys.stdin.readline():
        print(json.dumps(asyncio.run(_run(attack, work))), flush=True)


def to_json(target: Target) -> str:
    """What `main` reads."""
    return json.dumps(asdict(target)) + "\n"


if __name__ == "__main__":
    main()
