"""What the OpenAPI document says beyond the routes' signatures: hand-read bodies, problems, the bearer token."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.member_schemas import AddMembersRequest, CreateRequest, CursorRequest, RemoveMembersRequest
from api.problems import PROBLEM_TYPE
from api.schemas import BatchMessage, BatchRequest, Conflict, Problem, SendRequest, TopicsRequest
from imray.settings import Settings

_HAND_READ: tuple[type[BaseModel], ...] = (
    SendRequest,
    BatchMessage,
    BatchRequest,
    TopicsRequest,
    CreateRequest,
    AddMembersRequest,
    RemoveMembersRequest,
    CursorRequest,
)
_REF = "#/components/schemas/{model}"

_RETRY_AFTER = {
    "Retry-After": {
        "required": True,
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {
        "WWW-Authenticate": {
            "required": True,
            "description": "How to authenticate.",
            "schema": {"type": "string", "const": "Bearer"},
        }
    },
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
    504: _RETRY_AFTER,
}


def json_body(model: type[BaseModel], *others: str) -> dict[str, Any]:
    """The request body of a route that reads it by hand."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
    for media_type in others:
        content[media_type] = {}  # a binary format of its own: no JSON Schema describes it, "any bytes" would be a lie
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route may answer with."""
    described = {
        400: "Not well-formed",
        401: "No valid token",
        403: "The token does not allow this",
        409: "The id was used with another payload; `conv_seq` is the first one's",
        413: "Too large",
        415: "Wrong content type",
        422: "Not valid",
        429: "Too much of this caller, nothing was written: see Retry-After",
        500: "Stored data does not verify, or a fault of the server",
        503: "Busy, nothing was written: see Retry-After",
        504: "Outcome unknown: retry with the same ids",
    }
    answers: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        schema = {"$ref": _REF.format(model="Conflict" if status == 409 else "Problem")}
        answers[status] = {"description": described[status], "content": {PROBLEM_TYPE: {"schema": schema}}}
        if status in _HEADERS:
            answers[status]["headers"] = _HEADERS[status]
    return answers


def install(app: FastAPI, settings: Settings) -> None:
    """Make `app.openapi()` complete."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
        )
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        hand_written: tuple[type[BaseModel], ...] = (*_HAND_READ, Problem, Conflict)
        for model in hand_written:
            schema = model.model_json_schema(ref_template=_REF)
            schema.pop("$defs", None)
            schemas[model.__name__] = schema
        for model in (SendRequest, BatchMessage):
            schemas[model.__name__]["properties"]["body"]["maxLength"] = settings.body_bytes_max
        schemas[BatchRequest.__name__]["properties"]["messages"]["maxItems"] = settings.batch_messages_max
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
