"""Reading: a conversation's history and its head."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pyarrow as pa
from fastapi import APIRouter, Request, Response

from api.auth import Authenticator
from api.checks import invalid
from api.docs import problems
from api.door import RawRoute
from api.problems import refused
from api.schemas import HeadResponse, HistoryResponse
from imray.cluster.backend import Backend
from imray.cluster.replies import Refusal
from imray.core.errors import InvalidError
from imray.core.ids import format_client_msg_id
from imray.core.routing import check_conv_id
from imray.log.schema import MS

_SEQ_MAX = 2**63 - 1
_QUERY = [
    ("after", "integer", "Only numbers above it (default 0)."),
    ("before", "integer", "Only numbers below it (default: no bound)."),
    ("limit", "integer", "At most so many messages (default 100, at most 10000)."),
    ("order", "string", "asc (default) or desc."),
    ("topic", "string", "Only messages of this topic; `next` still leads through the whole conversation."),
]


def _parameters() -> dict[str, Any]:
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": {"type": kind}, "description": text}
            for name, kind, text in _QUERY
        ]
    }


def routes(backend: Backend, auth: Authenticator) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["history"], route_class=RawRoute)
    settings = backend.settings

    @router.get(
        "/v1/conversations/{conv_id:path}/messages",
        summary="Read a conversation's history",
        response_model=HistoryResponse,
        responses=problems(401, 422, 500, 503, 504),
        openapi_extra=_parameters(),
    )
    async def history(conv_id: str, request: Request) -> Response:
        """Messages with after < conv_seq < before, in the asked order; `holes` explains numbers that are no
        messages; `next` goes into `after` (asc) or `before` (desc) of the next call."""
        auth.caller(request.headers.get("authorization"))
        _check(conv_id)
        after, before, limit, descending = _query(request, settings.history_limit_default, settings.history_limit_max)
        found = await backend.history(conv_id, after, before, limit, descending, request.query_params.get("topic"))
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
        "/v1/conversations/{conv_id:path}",
        summary="Where a conversation stands",
        response_model=HeadResponse,
        responses=problems(401, 422, 500, 503, 504),
    )
    async def head(conv_id: str, request: Request) -> Response:
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


def _query(request: Request, limit_default: int, limit_max: int) -> tuple[int, int | None, int, bool]:
    query = request.query_params
    if unknown := set(query) - {name for name, _, _ in _QUERY}:
        raise invalid(f"unknown parameters {sorted(unknown)}: known are after, before, limit, order, topic")
    order = query.get("order", "asc")
    if order not in ("asc", "desc"):
        raise invalid(f"order={order!r}: asc or desc")
    before = _integer(query.get("before"), "before", 1, _SEQ_MAX) if "before" in query else None
    after = _integer(query.get("after", "0"), "after", 0, _SEQ_MAX)
    limit = _integer(query.get("limit", str(limit_default)), "limit", 1, limit_max)
    return after, before, limit, order == "desc"


def _integer(text: str | None, name: str, low: int, high: int) -> int:
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 19 or not low <= int(text) <= high:
        raise invalid(f"{name}={text!r}: a whole number from {low} to {high}")
    return int(text)


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
