"""`imray status`, `imray audit`, `imray sql`: looking at a system and at its log."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from imray.cli.common import Data, Json, Target, Timeout, Token, Url, find_log, find_target, plain, speaking_to, table
from imray.core.errors import InvalidError, UnavailableError

_TIMEOUT_S = 10.0
_COLUMNS = ("shard", "state", "epoch", "segment", "conversations", "recent_ids", "sealed_ids", "bytes", "pid")


def status(
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Show every shard. Exit code 1: one does not serve.

    Example:

      imray status --data ./chat
    """
    target = find_target(url, token, data)
    with speaking_to(target):
        answer = _get_status(target, timeout)
    if as_json:
        _say_json(answer)
    else:
        shards = answer["shards"]
        typer.echo(table(_COLUMNS, [[shard.get(name) for name in _COLUMNS] for shard in shards]))
    if any(shard.get("state") != "serving" for shard in answer["shards"]):
        raise typer.Exit(1)


def _get_status(target: Target, timeout_s: float) -> dict[str, Any]:
    import httpx
    import orjson

    from imray.client import AuthError, ServerError
    from imray.client.wire import connection

    with httpx.Client(timeout=timeout_s, **connection(target.url, target.token)) as client:
        try:
            reply = client.get("/v1/status")
        except httpx.RequestError as e:
            raise UnavailableError(f"no answer: {e}") from e
    try:
        answer = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        answer = None
    detail = answer.get("detail") if isinstance(answer, dict) else None
    if reply.status_code in (401, 403):
        raise AuthError(detail or f"status {reply.status_code}")
    if reply.status_code in (502, 503, 504):
        raise UnavailableError(f"status {reply.status_code}: {detail or 'no detail'}")
    if reply.status_code != 200 or not isinstance(answer, dict) or not isinstance(answer.get("shards"), list):
        raise ServerError(f"{target.url} does not answer as imray does (status {reply.status_code}): check the url")
    return answer


def audit(data: Data = None, as_json: Json = False) -> None:
    """Ask the log every audit question.

    Exit code 1: a violation, shown with its rows. Works while the system runs and while it is down.

    Examples:

      imray audit --data ./chat

      imray audit --data ./chat --json
    """
    from analytics import audit as audits

    raise NotImplementedError


def sql(
    query: Annotated[str, typer.Argument(metavar="SELECT", help="The query, for DuckDB.", show_default=False)],
    data: Data = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
) -> None:
    """Query the log with SQL.

    Works while the system runs and while it is down.

    Examples:

      imray sql "SELECT conv_id, count(*) FROM messages GROUP BY ALL" --data ./chat

      imray sql "SELECT * FROM messages LIMIT 10" --data ./chat --csv > first.csv
    """
    raise NotImplementedError


def _say_json(value: Any) -> None:
    import orjson

    typer.echo(orjson.dumps(value).decode())
