"""Reading: a conversation's history and its head."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from typing import Any

import orjson
import pyarrow as pa
from fastapi import APIRouter, Request, Response
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect

from api.auth import Authenticator, Caller
from api.checks import TOPIC_BYTES_MAX, invalid
from api.docs import problems
from api.door import RawRoute
from api.pages import PageResponse, encode
from api.problems import refused
from api.rights import check_listens
from api.schemas import HeadResponse, HistoryResponse, PathConvId, text_schema
from api.turns import Pulls
from imray.core.errors import InvalidError
from imray.core.pages import SEQ_MAX, Page, PageAsk
from imray.core.replies import Located, Refusal
from imray.core.routing import check_conv_id, check_text
from imray.engine.engine import Engine
from imray.settings import Settings

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_NUMBER_LENGTH_MAX = 40
_ORDERS = ("asc", "desc")


def _parameters(settings: Settings) -> list[dict[str, Any]]:
    """What the OpenAPI document says of the query, which is read by hand."""
    whole = {"type": "integer", "format": "int64", "maximum": SEQ_MAX}
    limits = {"minimum": 1, "maximum": settings.history_limit_max, "default": settings.history_limit_default}
    known: list[tuple[str, dict[str, Any], str]] = [
        ("after", {**whole, "minimum": 0, "default": 0}, "Only numbers above it."),
        ("before", {**whole, "minimum": 1}, "Only numbers below it (default: no bound)."),
        ("limit", {"type": "integer", **limits}, "At most so many messages."),
        ("order", {"type": "string", "enum": list(_ORDERS), "default": _ORDERS[0]}, "By conv_seq, up or down."),
        (
            "topic",
            text_schema(TOPIC_BYTES_MAX),
            f"Only messages of this topic, 1 to {TOPIC_BYTES_MAX} bytes of UTF-8 (`maxLength` counts characters), no "
            "control characters; `next` still leads through the whole conversation.",
        ),
    ]
    return [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
        for name, schema, description in known
    ]


def routes(engine: Engine, auth: Authenticator, pulls: Pulls) -> APIRouter:
    """The routes of this module. `pulls`: the turns of all who pull, over whichever protocol."""
    router = APIRouter(tags=["history"], route_class=RawRoute)
    settings = engine.settings
    parameters = _parameters(settings)
    known = [p["name"] for p in parameters]
    pages = _Pages(engine, pulls)

    @router.get(
        "/v1/conversations/{conv_id}/messages",
        summary="Read a conversation's history",
        response_model=HistoryResponse,
        responses=problems(401, 403, 422, 429, 500, 503, 504),
        openapi_extra={"parameters": parameters},
    )
    async def history(conv_id: PathConvId, request: Request) -> Response:
        """Messages with after < conv_seq < before, in the asked order; `holes` explains numbers that are no
        messages; `next` goes into `after` (asc) or `before` (desc) of the next call. What was created and is not
        public only members may read."""
        caller = auth.caller(request.headers.get("authorization"))
        check_conv(conv_id)
        query = request.query_params
        if unknown := set(query) - set(known):
            raise invalid(f"unknown parameters {sorted(unknown)}: known are {', '.join(known)}")
        ask = _ask(conv_id, query, settings)
        await check_listens(engine, conv_id, caller)
        return await pages.pull(request, caller, ask)

    @router.get(
        "/v1/conversations/{conv_id}",
        summary="Where a conversation stands",
        response_model=HeadResponse,
        responses=problems(401, 403, 422, 429, 500, 503, 504),
    )
    async def head(conv_id: PathConvId, request: Request) -> Response:
        """Its last number, and up to which number everything is final."""
        caller = auth.caller(request.headers.get("authorization"))
        check_conv(conv_id)
        await check_listens(engine, conv_id, caller)
        located = await engine.head(conv_id)
        if isinstance(located, Refusal):
            raise refused(located, caller.service)
        content = {
            "conv_id": conv_id,
            "conv_seq": located.head,
            "stable_seq": located.stable,
            "epoch": located.epoch,
            "shard": engine.shard_of(conv_id),
        }
        return Response(orjson.dumps(content), media_type="application/json")

    return router


class _Pages:
    """Pulls pages, each in its turn, and sends them."""

    def __init__(self, engine: Engine, pulls: Pulls) -> None:
        self._engine = engine
        self._pulls = pulls
        self._encoders = ThreadPoolExecutor(1, "pages")
        """Beside the event loop, which answers others meanwhile."""

    async def pull(self, request: Request, caller: Caller, ask: PageAsk) -> Response:
        """One page."""
        async with self._pulls.turn(self._engine.shard_of(ask.conv_id), caller.sender, ask.limit):
            if await request.is_disconnected():
                raise ClientDisconnect  # while it waited
            found = await self._engine.history(ask)
            if isinstance(found, Refusal):
                raise refused(found, caller.service)
            located, page = found
            # before the next turn is given
            size = page.messages.nbytes
            large = self._pulls.hold_page(caller.sender, size)
        ends = _around(ask.conv_id, located, page)
        if not large:
            return Response(ends[0] + encode(page.messages) + ends[1], media_type="application/json")
        done = partial(self._pulls.taken, caller.sender, size)
        settings = self._engine.settings
        timeout_s = settings.history_send_timeout_s + size / settings.write_bytes_per_s_min
        return PageResponse(request, page.messages, ends, self._encoders, timeout_s, done)


def _around(conv_id: str, located: Located, page: Page[pa.Table]) -> tuple[bytes, bytes]:
    """What stands before and after the messages in `api.schemas.HistoryResponse`."""
    after = {
        "holes": [{"from": low, "to": high, "reason": reason} for low, high, reason in page.holes],
        "stable_seq": located.stable,
        "epoch": located.epoch,
        "next": page.next,
    }
    return orjson.dumps({"conv_id": conv_id})[:-1] + b',"messages":[', b"]," + orjson.dumps(after)[1:]


def check_conv(conv_id: str) -> None:
    """422 where it is no name of a conversation."""
    try:
        check_conv_id(conv_id)
    except InvalidError as e:
        raise invalid(str(e)) from e


def _ask(conv_id: str, query: QueryParams, settings: Settings) -> PageAsk:
    order = query.get("order", _ORDERS[0])
    if order not in _ORDERS:
        raise invalid(f"order={order!r}: asc or desc")
    before = integer(query["before"], "before", 1, SEQ_MAX) if "before" in query else None
    after = integer(query.get("after", "0"), "after", 0, SEQ_MAX)
    limit = integer(query.get("limit", str(settings.history_limit_default)), "limit", 1, settings.history_limit_max)
    return PageAsk(conv_id, after, before, limit, order == "desc", _topic(query))


def _topic(query: QueryParams) -> str | None:
    topic = query.get("topic")
    if topic is not None:
        try:
            check_text(topic, "topic", TOPIC_BYTES_MAX)
        except InvalidError as e:
            raise invalid(str(e)) from e
    return topic


def integer(text: str, name: str, low: int, high: int) -> int:
    """A whole number in any notation of JSON: 4.0 is 4, as in a body."""
    if len(text) <= _NUMBER_LENGTH_MAX and _NUMBER.fullmatch(text):
        value = Decimal(text)
        if low <= value <= high and value == value.to_integral_value():
            return int(value)
    raise invalid(f"{name}={text!r}: a whole number from {low} to {high}")
