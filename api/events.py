"""Server-Sent Events: one conversation for those who only follow it.

Owns the stream's form (https://html.spec.whatwg.org/multipage/server-sent-events.html) and what may wait in it. Does
not own what is told (`imray.engine.feeds`); a WebSocket is told the same (`api.live_connection`).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from api.auth import Caller
from api.checks import invalid
from api.docs import problems
from api.door import RawRoute
from api.limits import CALLING, Account
from api.live_formats import JSON, messages_item, notice_item
from api.live_wire import LiveEngine
from api.problems import refused
from api.schemas import PathConvId
from imray.core.errors import InvalidError
from imray.core.pages import SEQ_MAX
from imray.core.replies import Refusal
from imray.core.routing import check_conv_id
from imray.engine.feeds import Feeds
from imray.engine.listening import Batch, Encoder, Ended, HeadMoved, Notice, Signal
from imray.settings import Settings

EVENT_STREAM: Final = "text/event-stream"
_WRITE_BYTES: Final = 64 * 1024
"""Written at once, or one batch: the rest waits here, where it is counted."""
_DIGITS_MAX: Final = 19
_CHANCE: Final = random.SystemRandom()
_RECONNECT_MS_MIN: Final = 500
_COMMENT: Final = b":\n\n"
_HEADERS: Final = [
    (b"content-type", EVENT_STREAM.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy that gathers would hold messages back
]
_AFTER: Final[list[dict[str, Any]]] = [
    {
        "name": "after",
        "in": "query",
        "required": False,
        "schema": {"type": "integer", "format": "int64", "minimum": 0, "maximum": SEQ_MAX},
        "description": "Every message above it; without it, what comes from now on.",
    },
    {
        "name": "Last-Event-ID",
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "The `id` of the last event, as browsers send it when they come back: instead of `after`.",
    },
]


def routes(live: LiveEngine) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["live"], route_class=RawRoute)

    @router.get(
        "/v1/conversations/{conv_id}/events",
        summary="Follow a conversation",
        response_class=Response,
        responses={
            200: {
                "description": "Events `messages` (their `id` is the last number told), `behind` and `ended`, with "
                "JSON as /docs/live has it; a comment line now and then. It ends with the token, or with the server.",
                "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
            },
            **problems(401, 403, 422, 429, 500, 503, 504),
        },
        openapi_extra={"parameters": _AFTER},
    )
    async def events(conv_id: PathConvId, request: Request) -> Response:
        """Every message above `after`, in order, each once, as Server-Sent Events."""
        caller = live.auth.caller(request.headers.get("authorization"))
        try:
            check_conv_id(conv_id)
        except InvalidError as e:
            raise invalid(str(e)) from e
        if unknown := set(request.query_params) - {"after"}:
            raise invalid(f"unknown parameters {sorted(unknown)}: known is after")
        live.auth.rates.subscribe(caller.sender, caller.service)
        feeds = live.feeds
        account = CALLING.get()
        if account is not None:
            account.identify()
        listener = EventListener(caller, live.settings, account)
        position = _position(request)
        try:
            made = await feeds.subscribe(listener, conv_id, position, False)
            if isinstance(made, Refusal):
                raise refused(made, caller.service)
            if await request.is_disconnected():
                raise ClientDisconnect  # while the subscription was made
        except BaseException:
            feeds.leave(listener)
            raise
        left_s = live.auth.seconds_left(caller)
        return EventResponse(feeds, listener, account, conv_id, left_s)

    return router


def event_batch(batch: Batch) -> bytes:
    """A batch as an event: an `imray.engine.listening.Encoder`."""
    data = JSON.encode(messages_item(batch, texts_only=True))
    return b"event: messages\nid: %d\ndata: %b\n\n" % (batch.upto, data)


class EventListener:
    """One who follows: what waits for it, bounded. Also `api.limits.Stream`."""

    def __init__(self, caller: Caller, settings: Settings, account: Account | None) -> None:
        """`account`: who pays for what waits."""
        self.interval_s = settings.live_ping_interval_s
        self.sender = caller.sender
        self.service = caller.service
        self.encoder: Encoder = event_batch
        self.written = 0
        self.crowded = False
        """Something was refused, and room is to be reported."""
        self._bytes_max = settings.listener_queue_bytes_max
        self._reconnect_ms_max = int(settings.live_reconnect_s_max * 1000)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._account = account
        self._over = False
        self._woken = asyncio.Event()

    def offer(self, data: bytes) -> bool:
        """See `imray.engine.listening.Listener.offer`."""
        if self._over:
            return True
        if self._waiting and self._waiting_bytes + len(data) > self._bytes_max:
            self.crowded = True
            return False
        if self._account is not None and not self._account.take_answer(len(data), always=not self._waiting):
            self.crowded = True
            return False
        self._queue(data)
        return True

    def notify(self, notice: Notice) -> None:
        """See `imray.engine.listening.Listener.notify`. After `ended` the stream ends, too."""
        if self._over or isinstance(notice, HeadMoved | Signal):
            return
        item = notice_item(notice, JSON)
        self._add(b"event: %b\ndata: %b\n\n" % (str(type(item).__struct_config__.tag).encode(), JSON.encode(item)))
        if isinstance(notice, Ended):
            self._over = True

    def end(self) -> None:
        """The server ends, or the connection is lost: say when to come back, another moment for each."""
        if not self._over:
            longest_ms = max(_RECONNECT_MS_MIN, self._reconnect_ms_max)
            self._add(b"retry: %d\n\n" % _CHANCE.randint(_RECONNECT_MS_MIN, longest_ms))
        self._over = True
        self._woken.set()

    def _add(self, data: bytes) -> None:
        if self._account is not None:
            self._account.take_answer(len(data), always=True)
        self._queue(data)

    def _queue(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self._woken.set()

    async def take(self, timeout_s: float) -> bytes:
        """What waits, or the beginning of it; a comment where nothing comes in time; nothing when it is over."""
        if not self._waiting and not self._over:
            self._woken.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._woken.wait()
            except TimeoutError:
                return _COMMENT
        parts = []
        size = 0
        while self._waiting and size < _WRITE_BYTES:
            part = self._waiting.popleft()
            parts.append(part)
            size += len(part)
        self._waiting_bytes -= size
        self.written += size
        if self._account is not None:
            self._account.answer_written(size)
        return b"".join(parts)

    def give_up(self) -> None:
        """Nobody takes what waits any more."""
        self._over = True
        if self._account is not None:
            self._account.answer_written(self._waiting_bytes)
        self._waiting.clear()
        self._waiting_bytes = 0

    @property
    def empty(self) -> bool:
        """Nothing waits."""
        return not self._waiting


class EventResponse(Response):
    """The stream. It has the subscription from its making on, and gives it up when it ends."""

    def __init__(
        self, feeds: Feeds, listener: EventListener, account: Account | None, conv_id: str, left_s: float
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = list(_HEADERS)
        self._feeds = feeds
        self._listener = listener
        self._conv_id = conv_id
        self._account = account
        self._left_s = left_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = self._account
        if account is not None:
            account.begin_stream(self._listener)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._feeds.start(self._listener, self._conv_id)
            await self._stream(send)
        finally:
            if account is not None:
                account.stream = None
            self._listener.give_up()
            self._feeds.leave(self._listener)

    async def _stream(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        listener = self._listener
        expires_at = loop.time() + self._left_s
        data = _COMMENT  # at once, so that the client sees that it is connected
        while data:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            if listener.crowded and listener.empty:
                listener.crowded = False
                self._feeds.resume(listener)
            left_s = expires_at - loop.time()
            if left_s <= 0:
                break
            data = await listener.take(min(listener.interval_s, left_s))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _position(request: Request) -> int | None:
    name = "Last-Event-ID"
    text = request.headers.get(name)
    if not text:
        name = "after"
        text = request.query_params.get(name)
        if text is None:
            return None
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and int(text) <= SEQ_MAX):
        raise invalid(f"{name}={text[:40]!r}: a whole number from 0 to {SEQ_MAX}")
    return int(text)
