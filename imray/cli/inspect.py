"""`imray status`, `imray audit`, `imray sql`: looking at a system and at its log."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from imray.cli.common import (
    Data,
    Json,
    Target,
    Timeout,
    Token,
    Url,
    find_log,
    find_target,
    printable,
    speaking_to,
    table,
)
from imray.core.errors import InvalidError, UnavailableError

_TIMEOUT_S = 10.0
_COLUMNS = ("shard", "state", "epoch", "segment", "conversations", "recent_ids", "sealed_ids", "bytes", "pid")

_HOT_COLUMNS = (
    "conv_id",
    "topics",
    "by_rate",
    "rate_per_s",
    "head",
    "stable_seq",
    "lag",
    "grants",
    "oldest_grant_age_s",
    "oldest_grant_slot",
    "voids",
)

_MERGE_COLUMNS = ("shard", "log", "unmerged", "not_deleted", "table_version")


def status(
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Show every shard, and the hot groups. Exit code 1: one does not serve.

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
        away = [f"  shard {shard['shard']}: {shard['detail']}" for shard in shards if shard.get("detail")]
        if away:
            typer.echo("\nnot serving:")
            typer.echo("\n".join(map(printable, away)))
        hot = [group for shard in shards for group in shard.get("hot", ())]
        if hot:
            typer.echo("\nhot groups:")
            typer.echo(table(_HOT_COLUMNS, [[group.get(name) for name in _HOT_COLUMNS] for group in hot]))
        if text := _merging(shards):
            typer.echo("\nmerging into the history (segments):")
            typer.echo(text)
        notes = [f"  shard {shard['shard']}: {note}" for shard in shards for note in shard.get("notes", ())]
        if notes:
            typer.echo("\nnotes:")
            typer.echo("\n".join(map(printable, notes)))
    if any(shard.get("state") != "serving" for shard in answer["shards"]):
        raise typer.Exit(1)


def _merging(shards: list[dict[str, Any]]) -> str:
    """How far the history is behind each log, and what is in the way; empty where nothing is merged."""
    merging = [shard["merge"] for shard in shards if shard.get("merge")]
    if not merging:
        return ""
    rows = [
        [m["shard"], lag["log"], lag["unmerged"], lag["segments"], m["version"]] for m in merging for lag in m["logs"]
    ]
    held = [f"  shard {m['shard']}: {why}" for m in merging for why in m["detail"]]
    return "\n".join([table(_MERGE_COLUMNS, rows), *map(printable, held)])


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


def audit(
    data: Data = None,
    reports: Annotated[bool, typer.Option("--reports", help="Show the figures too: rates, latencies, sizes.")] = False,
    as_json: Json = False,
) -> None:
    """Ask the log every audit question.

    Exit code 1: a violation, shown with its rows. Works while the system runs and while it is down.

    Examples:

      imray audit --data ./chat

      imray audit --data ./chat --json
    """
    folder = find_log(data)
    from analytics import audit as audits

    report = audits.run(folder, reports=reports or as_json, spread=audits.in_processes)
    typer.echo(json.dumps(_value(report.to_dict()), ensure_ascii=False) if as_json else report.to_text(reports))
    if not report.ok:
        raise typer.Exit(1)


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
    if as_json and as_csv:
        raise InvalidError("--json and --csv exclude one another: leave one out")
    folder = find_log(data)
    from analytics import sql as queries

    found = queries.query(folder, query)
    columns = found.column_names
    rows = zip(*(column.to_pylist() for column in found.columns), strict=True)
    if as_json:
        typer.echo(json.dumps([dict(zip(columns, map(_value, row), strict=True)) for row in rows], ensure_ascii=False))
    elif as_csv:
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(columns)
        out.writerows([_cell(value) for value in row] for row in rows)
    else:
        typer.echo(table(columns, [[_cell(value) for value in row] for row in rows]))


def _value(value: Any) -> Any:
    """A value as JSON has it: bytes as hex, times and decimals as text, no number that JSON lacks."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return value.hex()
        case list() | tuple():
            return [_value(v) for v in value]
        case Mapping():
            return {str(k): _value(v) for k, v in value.items()}
    return str(value)


def _cell(value: Any) -> Any:
    """A value as one cell of text has it."""
    shown = _value(value)
    return json.dumps(shown, ensure_ascii=False) if isinstance(shown, list | dict) else shown


def _say_json(value: Any) -> None:
    import orjson

    typer.echo(orjson.dumps(value).decode())
