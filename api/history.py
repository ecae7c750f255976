"""Reading: a conversation's history and its head."""

from __future__ import annotations

import base64
import re
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
from fastapi import APIRouter, Request, Response
from starlette.datastructures import QueryParams

from api.auth import Authenticator
from api.checks import TOPIC_BYTES_MAX, invalid
from api.docs import problems
from api.door import RawRoute
from api.problems import refused
from api.schemas import HeadResponse, HistoryResponse, PathConvId, text_schema
from imray.cluster.backend import Backend
from imray.cluster.replies import Refusal
from imray.core.errors import InvalidError
from imray.core.ids import format_client_msg_id
from imray.core.routing import check_conv_id, check_text
from imray.log.schema import MS
from imray.settings import Settings

_SEQ_MAX = 2**63 - 1
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_NUMBER_LENGTH_MAX = 40
_ORDERS = ("asc", "desc")


def _parameters(settings: Settings) -> list[dict[str, Any]]:
    """What the OpenAPI document says of the query, which is read by hand."""
    whole = {"type": "integer", "format": "int64", "maximum": _SEQ_MAX}
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


def routes(backend: Backend, auth: Authenticator) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["history"], route_class=RawRoute)
    settings = backend.settings
    parameters = _parameters(settings)
    known = [p["name"] for p in parameters]

    @router.get(
        "/v1/conversations/{conv_id}/messages",
        summary="Read a conversation's history",
        response_model=HistoryResponse,
        responses=problems(401, 422, 500, 503, 504),
        openapi_extra={"parameters": parameters},
    )
    async def history(conv_id: PathConvId, request: Request) -> Response:
        """Messages with after < conv_seq < before, in the asked order; `holes` explains numbers that are no
        messages; `next` goes into `after` (asc) or `before` (desc) of the next call."""
        auth.caller(request.headers.get("authorization"))
        _check(conv_id)
        query = request.query_params
        if unknown := set(query) - set(known):
            raise invalid(f"unknown parameters {sorted(unknown)}: known are {', '.join(known)}")
        after, before, limit, descending = _window(query, settings)
        found = await backend.history(conv_id, after, before, limit, descending, _topic(query))
        if isinstance(found, Refusal):
            raise refused(found)
        located, page = found
        content = {
            "conv_id": conv_id,
            "messages": _messages(page.messages),
            "holes": [{"from": low, "to": high, "reason": reason} for low, high, reason in page.holes],
            "stable_seq": located.stable,
            "epoch": located.epoch,
            "next": page.next,
        }
        return Response(orjson.dumps(content), media_type="application/json")

    @router.get(
        "/v1/conversations/{conv_id}",
        summary="Where a conversation stands",
        response_model=HeadResponse,
        responses=problems(401, 422, 500, 503, 504),
    )
    async def head(conv_id: PathConvId, request: Request) -> Response:
        """Its last number, and up to which number everything is final."""
        auth.caller(request.headers.get("authorization"))
        _check(conv_id)
        located = await backend.head(conv_id)
        if isinstance(located, Refusal):
            raise refused(located)
        content = {
            "conv_id": conv_id,
            "conv_seq": located.head,
            "stable_seq": located.stable,
            "epoch": located.epoch,
            "shard": backend.shard_of(conv_id),
        }
        return Response(orjson.dumps(content), media_type="application/json")

    return router


def _check(conv_id: str) -> None:
    try:
        check_conv_id(conv_id)
    except InvalidError as e:
        raise invalid(str(e)) from e


def _window(query: QueryParams, settings: Settings) -> tuple[int, int | None, int, bool]:
    order = query.get("order", _ORDERS[0])
    if order not in _ORDERS:
        raise invalid(f"order={order!r}: asc or desc")
    before = _integer(query["before"], "before", 1, _SEQ_MAX) if "before" in query else None
    after = _integer(query.get("after", "0"), "after", 0, _SEQ_MAX)
    limit = _integer(query.get("limit", str(settings.history_limit_default)), "limit", 1, settings.history_limit_max)
    return after, before, limit, order == "desc"


def _topic(query: QueryParams) -> str | None:
    topic = query.get("topic")
    if topic is not None:
        try:
            check_text(topic, "topic", TOPIC_BYTES_MAX)
        except InvalidError as e:
            raise invalid(str(e)) from e
    return topic


def _integer(text: str, name: str, low: int, high: int) -> int:
    """A whole number in any notation of JSON: 4.0 is 4, as in a body."""
    if len(text) <= _NUMBER_LENGTH_MAX and _NUMBER.fullmatch(text):
        value = Decimal(text)
        if low <= value <= high and value == value.to_integral_value():
            return int(value)
    raise invalid(f"{name}={text!r}: a whole number from {low} to {high}")


def _messages(table: pa.Table) -> list[dict[str, Any]]:
    """`api.schemas.Message` for each row."""
    names = ("conv_seq", "client_msg_id", "sender", "topic", "content_type", "client_ts", "server_ts", "body")
    columns = []
    for name in names:
        column = table.column(name)
        columns.append((column.cast(MS).cast(pa.int64()) if name.endswith("_ts") else column).to_pylist())
    messages = []
    for seq, raw, sender, topic, content_type, client_ts, server_ts, body in zip(*columns, strict=True):
        message = {
            "conv_seq": seq,
            "client_msg_id": format_client_msg_id(raw),
            "sender": sender,
            "topic": topic,
            "content_type": content_type,
            "client_ts": client_ts,
            "server_ts": server_ts,
        }
        try:
            message["body"] = body.decode()
        except UnicodeDecodeError:
            message["body_base64"] = base64.b64encode(body).decode()
        messages.append(message)
    return messages
