"""What the OpenAPI document says beyond the routes' signatures: hand-read bodies, problems, the bearer token."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import PROBLEM_TYPE, ProblemError
from api.schemas import BatchMessage, BatchRequest, Problem, SendRequest

_HAND_READ: tuple[type[BaseModel], ...] = (SendRequest, BatchMessage, BatchRequest)
_REF = "#/components/schemas/{model}"


class RawRoute(APIRoute):
    """A route that hands the request to its endpoint as it is: parsing and checking by hand, on the hot path, costs
    a third of what dependency solving does. The signature still documents the path's parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            params = {name: _decode(name, text) for name, text in request.path_params.items()}
            return await endpoint(**params, request=request)

        return handle


class RawPath:
    """ASGI middleware: routes below `prefix` match the path as it was sent, so that an encoded '/' in a name
    does not split it; `RawRoute` decodes."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._prefix):
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self._app(scope, receive, send)


def _decode(name: str, text: str) -> str:
    if "/" in text:
        raise ProblemError(422, "invalid", f"{name} holds '/': encode it as %2F")
    try:
        return unquote(text, errors="strict") if "%" in text else text
    except UnicodeDecodeError as e:
        raise ProblemError(422, "invalid", f"{name} is not UTF-8: {e}") from e


def json_body(model: type[BaseModel], *others: str) -> dict[str, Any]:
    """The request body of a route that reads it by hand."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
    for media_type in others:
        content[media_type] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route may answer with."""
    schema = {"$ref": _REF.format(model="Problem")}
    described = {
        400: "Not well-formed",
        401: "No valid token",
        403: "The token does not allow this",
        409: "The id was used with another payload; `conv_seq` is the first one's",
        413: "Too large",
        415: "Wrong content type",
        422: "Not valid",
        500: "Stored data does not verify",
        503: "Busy, nothing was written: see Retry-After",
        504: "Outcome unknown: retry with the same ids",
    }
    return {s: {"description": described[s], "content": {PROBLEM_TYPE: {"schema": schema}}} for s in statuses}


def install(app: FastAPI) -> None:
    """Make `app.openapi()` complete."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
        )
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        hand_written: tuple[type[BaseModel], ...] = (*_HAND_READ, Problem)
        for model in hand_written:
            schema = model.model_json_schema(ref_template=_REF)
            schema.pop("$defs", None)
            schemas[model.__name__] = schema
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
        for path, methods in document["paths"].items():
            for operation in methods.values():
                operation["responses"] = {
                    status: answer
                    for status, answer in operation["responses"].items()
                    if "HTTPValidationError" not in str(answer)
                }
                if path not in ("/livez", "/readyz"):
                    operation["security"] = [{"bearer": []}]
        app.openapi_schema = document
        return document

    app.openapi = openapi  # type: ignore[method-assign]
