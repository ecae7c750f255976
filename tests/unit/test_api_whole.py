"""A small answer in one write is what two messages of ASGI would have made, and ends the request as they do."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from api.door import Answer, RequestRouter, SendHeaders, headers_of
from api.limits import Limits
from api.server import server
from api.whole import answer_whole
from imray.settings import Settings

_CONTENT = b'{"conv_seq":1}'


class Transport:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True


class Exchange:
    """One request of uvicorn's, without a connection."""

    def __init__(self, keep_alive: bool = True) -> None:
        self.transport = Transport()
        self.ended = 0
        transport: Any = self.transport
        logger = logging.getLogger("test")
        self.cycle = RequestResponseCycle(
            scope={"method": "POST"},  # type: ignore[typeddict-item]
            transport=transport,
            flow=FlowControl(transport),
            logger=logger,
            access_logger=logger,
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=True,
            keep_alive=keep_alive,
            on_response=self._end,
        )

    def _end(self) -> None:
        self.ended += 1


async def _by_asgi(exchange: Exchange) -> None:
    headers = [(b"content-length", b"%d" % len(_CONTENT)), (b"content-type", b"application/json")]
    await exchange.cycle.send({"type": "http.response.start", "status": 201, "headers": headers})
    await exchange.cycle.send({"type": "http.response.body", "body": _CONTENT})


async def test_it_says_and_does_what_two_messages_do() -> None:
    for keep_alive in (True, False):
        whole = Exchange(keep_alive)
        parts = Exchange(keep_alive)
        assert answer_whole(whole.cycle, 201, _CONTENT)
        await _by_asgi(parts)
        assert whole.transport.writes == [b"".join(parts.transport.writes)]
        for exchange in (whole, parts):
            assert exchange.ended == 1
            assert exchange.transport.closed is not keep_alive
            assert exchange.cycle.response_complete
            assert not exchange.cycle.waiting_for_100_continue
            assert await exchange.cycle.receive() == {"type": "http.disconnect"}


async def test_a_client_that_is_gone_is_not_written_to() -> None:
    exchange = Exchange()
    exchange.cycle.disconnected = True
    assert answer_whole(exchange.cycle, 201, _CONTENT)
    assert (exchange.transport.writes, exchange.ended) == ([], 0)


async def test_a_client_that_does_not_read_is_waited_for_by_others() -> None:
    exchange = Exchange()
    exchange.cycle.flow.pause_writing()
    assert not answer_whole(exchange.cycle, 201, _CONTENT)
    assert (exchange.transport.writes, exchange.cycle.response_started) == ([], False)


class Peer(Transport):
    """A transport of a connection that nobody is behind."""

    def get_extra_info(self, _name: str) -> None:
        """Nothing is known."""

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    abort = Transport.close


async def test_a_closed_connection_is_gone_at_once() -> None:
    """Not with the next full collection, which may be hours away: what its scope holds must not hold it."""
    limits = Limits(Settings())

    async def send(_conv_id: str, _headers: SendHeaders, _receive: Receive) -> Answer:
        return Answer(201, _CONTENT)

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the send went another way")

    config = server(RequestRouter(app, send, limits), limits.settings).config
    config.load()
    connection: Any = config.http_protocol_class(config, ServerState(), {})  # type: ignore[operator]
    transport = Peer()
    connection.connection_made(transport)
    connection.data_received(b"POST /v1/conversations/c/messages HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    await asyncio.sleep(0.01)
    assert [write.partition(b"\r\n")[0] for write in transport.writes] == [b"HTTP/1.1 201 Created"]
    connection.connection_lost(None)
    seen = weakref.ref(connection)
    gc.disable()
    try:
        del connection
        await asyncio.sleep(0.01)
        assert seen() is None
    finally:
        gc.enable()


def test_of_a_header_that_stands_there_twice_the_first_counts() -> None:
    lines = [(b"authorization", b"Bearer a"), (b"content-length", b"3"), (b"authorization", b"Bearer b")]
    assert headers_of(lines) == SendHeaders("Bearer a", None, "3")
