"""Errors as RFC 9457 problem details: the one table from what went wrong to an HTTP status."""

from __future__ import annotations

import math
import re

import orjson
from starlette.requests import Request
from starlette.responses import Response

from imray.core.replies import Refusal, Refused

_DETAIL_LENGTH_MAX = 500
PROBLEM_TYPE = "application/problem+json"

_TITLES = {
    "invalid": "The request is not valid; nothing was written",
    "unauthenticated": "No valid token; nothing was written",
    "forbidden": "The token does not allow this; nothing was written",
    "not-found": "There is nothing here",
    "method": "The method is not allowed here",
    "conflict": "The id was used with another payload; nothing was written",
    "exists": "It is there already, and different; nothing was written",
    "too-large": "Too large; nothing was written",
    "media-type": "The content type is not supported; nothing was written",
    "too-many": "Too much of one caller; nothing was written",
    "busy": "Busy; nothing was written",
    "late": "The request did not arrive in time; nothing was written",
    "unavailable": "The outcome is unknown; a retry with the same client_msg_id is safe",
    "corrupt": "Stored data does not verify; a person must look",
    "internal": "A fault of the server; the outcome is unknown",
}

STATUS_OF_REFUSAL = {
    Refused.INVALID: (422, "invalid"),
    Refused.BUSY: (503, "busy"),
    Refused.FORBIDDEN: (403, "forbidden"),
    Refused.EXISTS: (409, "exists"),
    Refused.ABSENT: (404, "not-found"),
    Refused.UNAVAILABLE: (504, "unavailable"),
    Refused.CORRUPT: (500, "corrupt"),
}

SERVICE_HINT = "on the machine that holds the data `imray token --service` makes one"
"""Ends the text of a refusal for want of a role."""
_CORRUPT = "stored data does not verify, and nothing is served from it: an operator must look"
_FILE = re.compile(r"[^\s'\"(:,]*(?:[/\\][^\s'\"):,]*|\.(?:parquet|arrow|json|key|log|tmp)\b)")


class ProblemError(Exception):
    """An answer that is a problem document. `detail` says what to do."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        retry_after_s: float | None = None,
        allow: str | None = None,
        **extra: object,
    ) -> None:
        # what is wrong may be as long as what was sent
        detail = detail if len(detail) <= _DETAIL_LENGTH_MAX else f"{detail[:_DETAIL_LENGTH_MAX]} ..."
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.allow = allow
        self.extra = extra

    def response(self) -> Response:
        """The HTTP response."""
        content = {
            "type": f"urn:imray:problem:{self.kind}",
            "title": _TITLES[self.kind],
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.allow is not None:
            headers["Allow"] = self.allow
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(orjson.dumps(content), self.status, headers, PROBLEM_TYPE)


def told(refusal: Refusal, service: bool) -> str:
    """A refusal's detail as a caller may read it: files are named to services only, who else can do nothing there."""
    if service:
        return refusal.detail
    if refusal.why is Refused.CORRUPT:
        return _CORRUPT
    return without_files(refusal.detail)


def told_unreadable(why: str, service: bool) -> str:
    """Why a message's first send cannot be read, as a caller may read it."""
    return why if service else _CORRUPT


def without_files(detail: str) -> str:
    """A text without names of files and folders."""
    return _FILE.sub("(a file)", detail)


def refused(refusal: Refusal, service: bool = False) -> ProblemError:
    """The problem that a shard's or gateway's refusal is, as a caller may read it."""
    status, kind = STATUS_OF_REFUSAL[refusal.why]
    retry_after_s = refusal.retry_after_s if status in (503, 504) else None
    detail = told(refusal, service)
    if refusal.why is Refused.UNAVAILABLE:
        detail += ". The outcome is unknown: retry with the same client_msg_id, it is safe"
    return ProblemError(status, kind, detail, retry_after_s)


def unexpected() -> ProblemError:
    """What a caller is told of an exception that nobody foresaw: nothing of the inside."""
    detail = "the server met a fault of its own, which is in its log. A send may be retried with the same client_msg_id"
    return ProblemError(500, "internal", detail)


async def on_problem(_request: Request, error: Exception) -> Response:
    """Exception handler of the app."""
    assert isinstance(error, ProblemError)
    return error.response()


async def on_unexpected(_request: Request, _error: Exception) -> Response:
    """Exception handler of the app for what nobody foresaw. The framework raises it again afterwards, for the log."""
    return unexpected().response()
