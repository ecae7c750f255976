"""What there is to read about the live side: /docs/live, one plain page made of the item types themselves.

Does not own the types (`api.live_items`). `spec/asyncapi.yaml` says the same for machines.
"""

from __future__ import annotations

import html
import typing
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from api.live_formats import FORMATS
from api.live_items import ClientItem, LiveHole, LiveMessage, ServerItem
from api.problems import ProblemError

_HEAD: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>imray: live</title>
<style>body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}
td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}</style>
<h1>Live delivery</h1>
<p>WebSocket at <code>/v1/ws</code>, sub-protocols <code>%s</code>. A frame is an array of items, both ways;
<code>t</code> says what an item is, and a <code>ref</code> is repeated by its answer. The token comes with the
handshake (<code>Authorization: Bearer ...</code>) or in a first item <code>auth</code>. Server-Sent Events of one
conversation:
<code>/v1/conversations/{conv_id}/events</code>.</p>
"""
_UPGRADE: Final = "this is a WebSocket: ask for an upgrade, on a connection where no other request waits for its answer"


def routes() -> APIRouter:
    """The routes of this module."""
    router = APIRouter(include_in_schema=False)
    page = live_page()

    @router.get("/docs/live")
    async def live_docs() -> Response:
        return HTMLResponse(page)

    @router.get("/v1/ws")
    async def plain() -> Response:
        answer = ProblemError(426, "invalid", _UPGRADE).response()
        answer.headers["Upgrade"] = "websocket"
        return answer

    return router


def live_page() -> str:
    """The page."""
    parts = [_HEAD % "</code> and <code>".join(FORMATS)]
    for title, types in (
        ("From the client", typing.get_args(ClientItem)),
        ("From the server", typing.get_args(ServerItem)),
        ("In them", (LiveMessage, LiveHole)),
    ):
        parts.append(f"<h2>{title}</h2>\n<table><tr><th>item<th>fields<th>\n")
        parts += map(_row, types)
        parts.append("</table>\n")
    return "".join(parts)


def item_tag(item: Any) -> str | None:
    """What stands under `t`; None: it is no item of its own."""
    tag = item.__struct_config__.tag
    return tag if isinstance(tag, str) else None


def _row(item: Any) -> str:
    fields: Sequence[msgspec.structs.FieldInfo] = msgspec.structs.fields(item)
    told = ", ".join(f"<code>{f.encode_name}</code>{'' if f.required else '?'}" for f in fields)
    name = html.escape(item_tag(item) or item.__name__)
    return f"<tr><td><code>{name}</code><td>{told}<td>{html.escape(item.__doc__ or '')}\n"
