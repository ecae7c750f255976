"""A small server of docs/live.md over a log in memory, with knobs to cut, repeat, lose, delay and be behind.

Owns honest answers in both formats, and the faults that a test asks for. It stands in for a gateway where a test is
about the client; what a gateway does is tested on a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from imray.client.live_wire import FORMATS, JSON, LiveFormat
from tests.support.live_log import Log, page_of, range_of

_WAIT_S = 20
"""The most that a test waits for a client."""


class LiveServer:
    """The log, the connections, the knobs."""

    def __init__(self) -> None:
        self.url = ""
        self.log: dict[str, Log] = defaultdict(list)
        """By number, from 1; None is a void."""
        self.ids: dict[tuple[str, str], dict[str, Any]] = {}
        self.connections: set[Connection] = set()
        self.accepted = 0
        """Connections that were ever welcomed."""
        self.seen: list[dict[str, Any]] = []
        self.cursors: dict[str, int] = {}
        self.token: str | None = None
        """The only one that is taken; None: all are."""
        self.lose: Counter[str] = Counter()
        """So many of the next items of a kind are not told."""
        self.refuse: list[dict[str, Any]] = []
        """Errors for the next sends, which are not stored."""
        self.cut_before_ack = 0
        """So many of the next sends are stored, and the connection is cut before their ack."""
        self.statuses: list[tuple[int, dict[str, str]]] = []
        """Answers to the next handshakes."""
        self.malformed: Callable[[dict[str, Any]], bool] = lambda _: False
        """A frame with such an item is answered with an error without a ref, and the connection is closed with 4400."""
        self.repeat = False
        """Every item of messages is told twice."""
        self.is_silent = False  # True: nothing is told any more
        self.forbidden: set[str] = set()
        self.forbidden_status = 403
        self.epoch = 1
        self.part_max = 100  # numbers in one item
        self.ping_interval_s = 20.0
        self.frame_bytes_max = 1024 * 1024
        self.changed = asyncio.Event()  # a client came, went, or said something

    def append(self, conv_id: str, body: str | bytes, sender: str = "ada", client_msg_id: str | None = None) -> int:
        """Store a message, and tell it."""
        seq = len(self.log[conv_id]) + 1
        message: dict[str, Any] = {
            "conv_seq": seq,
            "client_msg_id": client_msg_id or f"00000000-0000-7000-8000-{seq:012x}",
            "sender": sender,
            "server_ts": 1_700_000_000_000 + seq,
            "body": body,
        }
        self.log[conv_id].append(message)
        self.push(conv_id)
        return seq

    def void(self, conv_id: str, count: int) -> None:
        """Numbers that will never be messages."""
        self.log[conv_id] += [None] * count
        self.push(conv_id)

    def push(self, conv_id: str) -> None:
        """Tell listeners what they were not told."""
        for connection in self.connections:
            connection.push(conv_id)

    def fall_behind(self, conv_id: str, bodies: list[str]) -> None:
        """Store messages that no listener is told of, but that it is behind."""
        for connection in self.connections:
            if conv_id in connection.told:
                after = connection.told[conv_id]
                head = len(self.log[conv_id]) + len(bodies)
                connection.told[conv_id] = head
                connection.put({"t": "behind", "conv_id": conv_id, "after": after, "head": head})
        for body in bodies:
            self.append(conv_id, body)

    def remove(self, conv_id: str) -> None:
        """Nobody may listen any more."""
        self.forbidden.add(conv_id)
        for connection in self.connections:
            if conv_id in connection.told:
                after = connection.told.pop(conv_id)
                connection.put({"t": "ended", "conv_id": conv_id, "after": after, "reason": "removed"})

    def tell(self, item: dict[str, Any]) -> None:
        """Tell everybody."""
        for connection in self.connections:
            connection.put(item)

    def cut(self) -> None:
        """Every connection breaks, without a word."""
        for connection in self.connections:
            connection.socket.transport.abort()

    def said(self, kind: str) -> list[dict[str, Any]]:
        """The items of one kind that clients said."""
        return [item for item in self.seen if item["t"] == kind]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of what clients did."""
        async with asyncio.timeout(_WAIT_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    def store(self, item: dict[str, Any], sender: str) -> dict[str, Any]:
        """A send's ack or error."""
        conv_id = item["conv_id"]
        key = (conv_id, item["client_msg_id"])
        known = self.ids.get(key)
        if known is not None and known["body"] != item["body"]:
            problem = {"status": 409, "kind": "conflict", "detail": "another payload", "conv_seq": known["conv_seq"]}
            return {"t": "error", "ref": item["ref"], **problem}
        seq = self.append(conv_id, item["body"], sender, item["client_msg_id"]) if known is None else known["conv_seq"]
        self.ids.setdefault(key, {"conv_seq": seq, "body": item["body"]})
        return {
            "t": "ack",
            "ref": item["ref"],
            "conv_id": conv_id,
            "conv_seq": seq,
            "client_msg_id": item["client_msg_id"],
            "duplicate": known is not None,
            "epoch": self.epoch,
            "server_ts": 1_700_000_000_000 + seq,
            "stable_seq": len(self.log[conv_id]),
        }

    def head_of(self, conv_id: str) -> dict[str, Any]:
        """As `GET /v1/conversations/{conv_id}` says it."""
        head = len(self.log[conv_id])
        return {"conv_id": conv_id, "conv_seq": head, "stable_seq": head, "epoch": self.epoch, "shard": 0}


class Connection:
    """One client."""

    def __init__(self, server: LiveServer, socket: ServerConnection) -> None:
        self.server = server
        self.socket = socket
        self.told: dict[str, int] = {}
        self.passive: set[str] = set()
        self.format: LiveFormat = FORMATS.get(socket.subprotocol or "", JSON)
        self._out: list[dict[str, Any]] = []
        self._more = asyncio.Event()

    def put(self, item: dict[str, Any]) -> None:
        """Tell it, unless this one is to be lost."""
        if self.server.lose[item["t"]] > 0:
            self.server.lose[item["t"]] -= 1
            return
        copies = 2 if self.server.repeat and item["t"] == "messages" else 1
        self._out += [item] * copies
        self._more.set()

    def push(self, conv_id: str) -> None:
        """What it was not told, in parts."""
        server = self.server
        head = len(server.log[conv_id])
        if conv_id in self.passive:
            self.put({"t": "head", "conv_id": conv_id, "seq": head, "unread": head - self.told[conv_id]})
            return
        while conv_id in self.told and (after := self.told[conv_id]) < head:
            upto = min(head, after + server.part_max)
            self.told[conv_id] = upto
            self.put(
                {"t": "messages", "after": after, "upto": upto, **range_of(conv_id, server.log[conv_id], after, upto)}
            )

    async def serve(self, sender: str) -> None:
        """From the welcome to the end."""
        writer = asyncio.create_task(self._write())
        try:
            self.put(self._welcome(sender))
            async for frame in self.socket:
                assert len(frame) <= self.server.frame_bytes_max
                items = self.format.items_of(frame)
                if any(map(self.server.malformed, items)):
                    told = self.format.encoded({"t": "error", "status": 400, "kind": "invalid", "detail": "not valid"})
                    await self.socket.send(self.format.frame_of([told]))
                    await self.socket.close(4400)
                    return
                for item in items:
                    self.server.seen.append(item)
                    self._answer(item, sender)
                    self.server.changed.set()
        except ConnectionClosed:
            return
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer

    def _welcome(self, sender: str) -> dict[str, Any]:
        item = {
            "t": "welcome",
            "version": 1,
            "sender": sender,
            "service": False,
            "expires_in_s": 600,
            "items_max": 1000,
        }
        return item | {"frame_bytes_max": self.server.frame_bytes_max, "ping_interval_s": self.server.ping_interval_s}

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._more.wait()
                self._more.clear()
                out = self._out
                self._out = []
                for at in range(0, 0 if self.server.is_silent else len(out), 50):
                    encoded = [self.format.encoded(item) for item in out[at : at + 50]]
                    await self.socket.send(self.format.frame_of(encoded))

    def _answer(self, item: dict[str, Any], sender: str) -> None:
        server = self.server
        match item["t"]:
            case "subscribe":
                self._subscribe(item)
            case "unsubscribe":
                self.told.pop(item["conv_id"], None)
                self.put({"t": "ok", "ref": item["ref"]})
            case "send":
                if server.refuse:
                    self.put({"t": "error", "ref": item["ref"], **server.refuse.pop(0)})
                    return
                answer = server.store(item, item.get("sender", sender))
                if server.cut_before_ack > 0:
                    server.cut_before_ack -= 1
                    self.socket.transport.abort()
                else:
                    self.put(answer)
            case "pull":
                self.put(page_of(server.log[item["conv_id"]], item, server.epoch))
            case "read":
                server.cursors[item["conv_id"]] = item["seq"]
                self.put({"t": "ok", "ref": item["ref"]})
            case "signal":
                told = {name: item[name] for name in ("conv_id", "kind", "data")}
                for other in server.connections - {self}:
                    other.put({"t": "signal", "sender": sender, **told})
            case "ping":
                self.put({"t": "pong", "ref": item["ref"]})
            case "auth":
                self.put({"t": "ok", "ref": item["ref"]})

    def _subscribe(self, item: dict[str, Any]) -> None:
        conv_id = item["conv_id"]
        if conv_id in self.server.forbidden:
            problem = {"status": self.server.forbidden_status, "kind": "forbidden", "detail": "not yours"}
            self.put({"t": "error", "ref": item["ref"], **problem})
            return
        head = len(self.server.log[conv_id])
        after = head if item["after"] is None else item["after"]
        self.told[conv_id] = after
        self.passive.discard(conv_id)
        if item["passive"]:
            self.passive.add(conv_id)
        told = {"after": after, "live": head + 1, "stable_seq": head, "epoch": self.server.epoch}
        self.put({"t": "subscribed", "ref": item["ref"], "conv_id": conv_id, **told})
        self.push(conv_id)


@asynccontextmanager
async def live_server(server: LiveServer | None = None) -> AsyncIterator[LiveServer]:
    """A server that runs, on a port of its own."""
    live = server or LiveServer()

    def check(_socket: ServerConnection, request: Request) -> Response | None:
        if request.path.startswith("/v1/conversations/"):
            return _socket.respond(http.HTTPStatus.OK, json.dumps(live.head_of(request.path.rpartition("/")[2])))
        if live.statuses:
            status, headers = live.statuses.pop(0)
            response = _socket.respond(http.HTTPStatus(status), '{"detail": "because"}')
            for name, value in headers.items():
                response.headers[name] = value
            return response
        if live.token is not None and request.headers.get("Authorization") != f"Bearer {live.token}":
            return _socket.respond(http.HTTPStatus.UNAUTHORIZED, '{"detail": "the token is not taken"}')
        return None if request.path == "/v1/ws" else _socket.respond(http.HTTPStatus.NOT_FOUND, "")

    async def handle(socket: ServerConnection) -> None:
        connection = Connection(live, socket)
        live.connections.add(connection)
        live.accepted += 1
        live.changed.set()
        token = (socket.request.headers.get("Authorization") or "Bearer me") if socket.request else "Bearer me"
        try:
            await connection.serve(token.removeprefix("Bearer "))
        finally:
            live.connections.discard(connection)
            live.changed.set()

    names = [Subprotocol(name) for name in FORMATS]
    running: Server = await serve(handle, "127.0.0.1", 0, subprotocols=names, process_request=check, compression=None)
    try:
        live.url = f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}"
        yield live
    finally:
        running.close()
        await running.wait_closed()
