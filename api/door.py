"""How a request finds its endpoint: paths matched as they were sent, and a short way for the one that matters most.

Measured: dependency solving and the framework's middlewares take half of the time of a single send, so that one goes
straight to its endpoint; everything else takes FastAPI's way. Both call the same function. Large answers are counted
on that way (`api.limits`); that of a single send is small.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.limits import CALLING, SMALL_BYTES, Account, Limits, over_budget
from api.live_handshake import LiveDoor
from api.live_upgrade import guarded
from api.problems import ProblemError
from api.whole import WHOLE

CONVERSATIONS = "/v1/conversations/"
MESSAGES = "/messages"

_SEND_LENGTH_MIN = len(CONVERSATIONS) + len(MESSAGES)


class SendHeaders(NamedTuple):
    """What a send's headers say, where they say it."""

    authorization: str | None
    content_type: str | None
    content_length: str | None


class Answer(NamedTuple):
    """A status, and what is said in JSON."""

    status: int
    content: bytes


SendHandler = Callable[[str, SendHeaders, Receive], Awaitable[Answer]]


class RawRoute(APIRoute):
    """A route that hands the request to its endpoint as it is; the signature still documents the path's parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            params = {name: decode(name, text) for name, text in request.path_params.items()}
            response: Response = await endpoint(**params, request=request)
            return response

        return handle


class RequestRouter:
    """The ASGI app in front of FastAPI's: below CONVERSATIONS routes match the path as it was sent, so that an
    encoded '/' in a name does not split it; a single send goes straight to `send`."""

    def __init__(self, app: ASGIApp, send: SendHandler, limits: Limits, live: LiveDoor | None = None) -> None:
        self._app = app
        self._send_endpoint = send
        self._limits = limits
        self.http = guarded(limits, live)
        """How uvicorn is to serve it: without this protocol nothing is bounded."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("latin-1") if scope["type"] == "http" else ""
        if not path.startswith(CONVERSATIONS):
            # matched as it was sent, too: "/v1/conversations%2Ftea" is no way to a conversation
            await self._count({**scope, "path": path} if path else scope, receive, send)
            return
        if scope["method"] != "POST" or not path.endswith(MESSAGES) or len(path) < _SEND_LENGTH_MIN:
            if self._limits.full and scope["method"] == "GET":
                # before a page is made that could not be sent
                await over_budget().response()(scope, receive, send)
                return
            await self._count({**scope, "path": path}, receive, send)
            return
        try:
            conv_id = decode("conv_id", path[len(CONVERSATIONS) : -len(MESSAGES)])
            status, content = await self._send_endpoint(conv_id, headers_of(scope["headers"]), receive)
        except ProblemError as e:
            await e.response()(scope, receive, send)
            return
        except ClientDisconnect:
            return  # nobody is there to answer, and nothing was queued
        answer_whole = scope.get(WHOLE)
        if answer_whole is None or not answer_whole(status, content):
            await Response(content, status, media_type="application/json")(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI's way, with the answer's bytes counted."""
        account = CALLING.get()
        try:
            await self._app(scope, receive, send if account is None else CountedSend(account, scope, receive, send))
        except ClientDisconnect:
            return  # nobody is there to answer


class CountedSend:
    """ASGI's `send`, which charges a large answer to the caller, or refuses it before its first byte."""

    def __init__(self, account: Account, scope: Scope, receive: Receive, send: Send) -> None:
        self._account = account
        self._scope = scope
        self._receive = receive
        self._send = send
        self._size = 0
        self._refused = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif not self._refused:
            await self._send(message)
            if self._size and not message.get("more_body", False):
                self._account.answer_written(self._size)

    async def _start(self, message: Message) -> None:
        size = _content_length(message)
        method = self._scope["method"]
        if size > SMALL_BYTES and method != "HEAD":
            self._account.identify()
            # what a POST did is done: its answer must not say that it was not
            if not self._account.take_answer(size, always=method != "GET"):
                self._refused = True
                await over_budget().response()(self._scope, self._receive, self._send)
                return
            self._size = size
        await self._send(message)


def _content_length(message: Message) -> int:
    for name, value in message["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


class Strays:
    """Answers for requests that found no endpoint: the exception handler for what the framework itself refuses."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._methods: list[tuple[re.Pattern[str], set[str]]] = [
            (route.path_regex, route.methods or set())
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
        ]

    async def __call__(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"]
        detail = f"{error.detail}: see /docs for what there is"
        if error.status_code == 405:
            return ProblemError(405, "method", detail, allow=self._allow(path, error)).response()
        if error.status_code != 404:
            return ProblemError(error.status_code, "invalid", detail).response()
        if path.startswith(CONVERSATIONS):
            detail = "a conv_id is one part of the path and not empty: encode a '/' in it as %2F"
            return ProblemError(422, "invalid", detail).response()
        return ProblemError(404, "not-found", detail).response()

    def _allow(self, path: str, error: HTTPException) -> str:
        """All methods of the path: it may have several routes, and the framework names those of the first."""
        known = [methods for pattern, methods in self._methods if pattern.match(path)]
        return ", ".join(sorted(set().union(*known))) or (error.headers or {})["Allow"]


def headers_of(headers: Sequence[tuple[bytes, bytes]]) -> SendHeaders:
    """Of a request; of a header that stands there twice the first."""
    found = dict(reversed(headers)).get
    return SendHeaders(
        _latin(found(b"authorization")), _latin(found(b"content-type")), _latin(found(b"content-length"))
    )


def _latin(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def decode(name: str, text: str) -> str:
    """A path parameter as text; ProblemError where it is not UTF-8, or holds a '/' that should be %2F."""
    if "/" in text:
        raise ProblemError(422, "invalid", f"{name} holds '/': encode it as %2F")
    try:
        return unquote(text, errors="strict") if "%" in text else text
    except UnicodeDecodeError as e:
        raise ProblemError(422, "invalid", f"{name} is not UTF-8: {e}") from e
