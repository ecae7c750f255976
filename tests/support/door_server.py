"""A door over an app of a few lines, under the gateway's real HTTP server: for tests of what connections may hold."""

from __future__ import annotations

import socket
import sys
import threading
from dataclasses import replace
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.checks import receive_body
from api.door import Answer, RequestRouter, SendHeaders, headers_of
from api.limits import CALLING, Limits
from api.problems import ProblemError
from api.server import bind, server
from imray.settings import Settings

_STOP_TIMEOUT_S = 10.0
PATH = "/v1/conversations/c/messages"


def _authenticate(name: str | None) -> None:
    """As `api.app` does: who is named in the header is believed."""
    account = CALLING.get()
    if account is not None and name is not None:
        account.subject = name


async def _send(_conv_id: str, headers: SendHeaders, receive: Receive) -> Answer:
    _authenticate(headers.authorization)
    return Answer(200, b'{"bytes":%d}' % len(await receive_body(headers.content_length, receive, 64 * 1024 * 1024)))


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """GET: as many bytes as the query asks for. POST: how many came."""
    request = Request(scope, receive)
    if scope["method"] == "POST":
        status, content = await _send("", headers_of(scope["headers"]), receive)
        await Response(content, status, media_type="application/json")(scope, receive, send)
        return
    _authenticate(request.headers.get("authorization"))
    query = parse_qs(scope["query_string"].decode())
    body = b"x" * int(query.get("bytes", ["2"])[0])
    if "part" in query:
        await _stream(body, int(query["part"][0]), send)
        return
    try:
        await Response(body, media_type="text/plain")(scope, receive, send)
    except ProblemError as e:
        await e.response()(scope, receive, send)


async def _stream(body: bytes, part: int, send: Send) -> None:
    """As pages of history are sent: without a length, the next part when the one before is taken."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for at in range(0, len(body), part):
        await send({"type": "http.response.body", "body": body[at : at + part], "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class DoorServer:
    """A running door; a context manager."""

    def __init__(self, app: ASGIApp = _app, **settings: Any) -> None:
        made = replace(Settings(), **settings)
        self.limits = Limits(made)
        self._listener = bind("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        self.server = server(RequestRouter(app, _send, self.limits), made)
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],), daemon=True)
        self._listener.listen(2048)

    def connect(self, read_buffer: int | None = None, source: str = "127.0.0.1") -> socket.socket:
        """A connection; a small `read_buffer` lets the server feel at once that nobody reads."""
        made = socket.socket()
        made.settimeout(20)
        if read_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_buffer)
        made.bind((source, 0))
        made.connect(("127.0.0.1", self.port))
        return made

    def __enter__(self) -> DoorServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self._thread.join(_STOP_TIMEOUT_S)
        assert not self._thread.is_alive()


def main() -> None:
    """In a process of its own, whose memory is looked at: prints the port, and ends with its standard input."""
    with DoorServer() as running:
        print(running.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
