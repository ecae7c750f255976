"""The light WebSocket client of the benchmarks and storms, against a server of another make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from benchmarks.push_wire import JSON, MSGPACK, TEXT, Door, PushWire, client_frame, connect


class Kept:
    """Keeps what happens to a connection."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.came = asyncio.Event()
        self.opened_wire = asyncio.Event()
        self.end: tuple[int, str] | None = None
        self.ended = asyncio.Event()

    def opened(self, wire: PushWire) -> None:
        self.opened_wire.set()

    def frame(self, wire: PushWire, payload: bytes) -> None:
        self.frames.append(payload)
        self.came.set()

    def lost(self, wire: PushWire, code: int, why: str) -> None:
        self.end = (code, why)
        self.ended.set()


async def answer(connection: ServerConnection) -> None:
    """Echoes; "big N" is answered with N bytes, "parts" in fragments, "ping" with a ping, "bye" with a close."""
    async for message in connection:
        text = message if isinstance(message, str) else message.decode()
        word, _, rest = text.partition(" ")
        if word == "big":
            await connection.send("x" * int(rest))
        elif word == "parts":
            await connection.send(iter(["one ", "two ", "three"]))
        elif word == "ping":
            await (await connection.ping())
            await connection.send("ponged")
        elif word == "bye":
            await connection.close(4401, "no token")
        else:
            await connection.send(message)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with serve(answer, "127.0.0.1", 0, subprotocols=[Subprotocol(JSON)], compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield Door("127.0.0.1", port, "t")


async def said(door: Door, *texts: str, answers: int = 1) -> tuple[PushWire, Kept]:
    kept = Kept()
    wire = await connect(door, kept)
    async with asyncio.timeout(5):
        await kept.opened_wire.wait()
        for text in texts:
            wire.write(client_frame(TEXT, text.encode()))
        while len(kept.frames) < answers:
            await kept.came.wait()
            kept.came.clear()
    return wire, kept


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
async def test_frames_of_any_size_both_ways(door: Door, size: int) -> None:
    wire, kept = await said(door, "y" * size, f"big {size}", answers=2)
    assert [frame.decode() for frame in kept.frames] == ["y" * size, "x" * size]
    wire.close()


async def test_many_frames_in_one_read_and_fragments(door: Door) -> None:
    texts = [f"number {i}" for i in range(500)]
    wire, kept = await said(door, *texts, "parts", answers=501)
    assert [frame.decode() for frame in kept.frames] == [*texts, "one two three"]
    assert wire.frames_in == 500 + 4  # the last part is an empty one
    wire.close()


async def test_pings_are_answered(door: Door) -> None:
    _, kept = await said(door, "ping")
    assert kept.frames == [b"ponged"]


async def test_the_code_of_a_close_is_told(door: Door) -> None:
    wire, kept = await said(door, "x")
    wire.write(client_frame(TEXT, b"bye"))
    async with asyncio.timeout(5):
        await kept.ended.wait()
    assert kept.end == (4401, "no token")


async def test_a_cut_is_no_close(door: Door) -> None:
    wire, kept = await said(door, "x")
    wire.cut()
    async with asyncio.timeout(5):
        await kept.ended.wait()
    assert kept.end == (1006, "closed")


async def test_another_subprotocol_or_answer_is_refused(door: Door) -> None:
    kept = Kept()
    await connect(Door(door.host, door.port, "t", MSGPACK), kept)
    async with asyncio.timeout(5):
        await kept.ended.wait()
    assert kept.end is not None
    assert kept.end[0] == 1006
    assert not kept.opened_wire.is_set()
