"""What both clients share about httpx: where the server is, how a request and a failure translate."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable
from typing import Any

import httpx

from imray import __version__
from imray.client.call import Environment, HttpRequest, NoAnswer, RetryPolicy
from imray.client.models import HistoryPage, Order
from imray.core.errors import InvalidError

USER_AGENT = f"imray-python/{__version__}"


def environment(
    timeout_s: float, retry: RetryPolicy | None, clock_s: Callable[[], float], unix_ms: Callable[[], int]
) -> Environment:
    """The real clock and randomness, unless others are given."""
    if timeout_s <= 0:
        raise InvalidError("timeout_s must be positive")
    return Environment(
        timeout_s=timeout_s,
        policy=retry or RetryPolicy(),
        clock_s=clock_s,
        unix_ms=unix_ms,
        # not the generator that all of a program share: a program that seeds it expects its own numbers
        random=random.SystemRandom().random,
        random_bytes=secrets.token_bytes,
    )


def address(url: str | None, token: str | None) -> tuple[httpx.URL, str | None]:
    """The server, and the token. Errors never show the token."""
    url = url or os.environ.get("IMRAY_URL")
    if token is None:
        token = os.environ.get("IMRAY_TOKEN") or None
    if not url:
        raise InvalidError("no server is named: pass url or set IMRAY_URL, such as http://localhost:8080")
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as e:
        raise InvalidError(f"the url is not valid: {e}") from e
    if base.scheme not in ("http", "https") or not base.host:
        raise InvalidError(f"the url {url!r} must start with http:// or https:// and name a host")
    return base, None if token is None else checked_token(token)


def checked_token(token: str) -> str:
    """A token that can stand in a header."""
    if not isinstance(token, str) or not token:
        what = "empty" if isinstance(token, str) else f"of type {type(token).__name__}"
        raise InvalidError(f"the token is {what}: pass one as text, or None to take IMRAY_TOKEN")
    if not all("!" <= c <= "~" for c in token):
        raise InvalidError("the token holds characters that no token has (white space, line ends)")
    return token


def connection(url: str | None, token: str | None) -> dict[str, Any]:
    """httpx's arguments for the server and the token."""
    base, token = address(url, token)
    headers = {"user-agent": USER_AGENT}
    if token:
        headers["authorization"] = f"Bearer {token}"
    return {"base_url": base, "headers": headers}


def arguments(step: HttpRequest) -> dict[str, Any]:
    """httpx's arguments for one request."""
    return {
        "method": step.method,
        "url": step.path,
        "params": step.params or None,  # httpx reads {} as "take the url's query away"
        "content": step.content,
        "headers": step.headers,
    }


def no_answer(error: httpx.RequestError) -> NoAnswer:
    """What a failed exchange means; InvalidError where no server could answer it."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        raise InvalidError(f"the request cannot be sent: {error}") from error
    return NoAnswer(f"{type(error).__name__}: {error}".rstrip(": "))


def next_range(page: HistoryPage, after: int, before: int | None, order: Order) -> tuple[int, int | None] | None:
    """The range of the page after this one; None: there is none."""
    if page.next is None:
        return None
    return (page.next, before) if order == "asc" else (after, page.next)
