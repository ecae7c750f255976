"""`imray hot`, `imray cold`: a conversation spread over partitions, and back."""

from __future__ import annotations

from typing import Annotated

import typer

from imray.cli.common import Data, Json, Timeout, Token, Url, find_target, printable, speaking_to
from imray.core.routing import PARTITIONS_MAX

_TIMEOUT_S = 60.0
"""Partitions are processes: they take seconds to start."""
_Conv = Annotated[str, typer.Argument(metavar="CONV", help="The conversation.", show_default=False)]


def hot(
    conv_id: _Conv,
    topics: Annotated[
        int, typer.Option("--topics", min=1, max=PARTITIONS_MAX, help="Partitions that take its sends.")
    ] = 4,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Spread a conversation over partitions, or change how many.

    Senders see a pause at most. docs/hot-groups.md says when it pays.

    Example:

      imray hot launch-party --topics 4 --data ./chat
    """
    _set(conv_id, topics, url, token, data, as_json, timeout)


def cold(
    conv_id: _Conv,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Let a conversation's home shard alone write it again.

    Example:

      imray cold launch-party --data ./chat
    """
    _set(conv_id, 0, url, token, data, as_json, timeout)


def _set(
    conv_id: str, topics: int, url: Url, token: Token, data: Data, as_json: bool, timeout_s: float
) -> None:  # fmt: skip
    import orjson

    from imray.client import Client

    target = find_target(url, token, data)
    with speaking_to(target), Client(target.url, target.token, timeout_s=timeout_s) as client:
        now = client.set_topics(conv_id, topics)
    if as_json:
        typer.echo(orjson.dumps({"conv_id": conv_id, "topics": now}).decode())
    else:
        how = f"is written by {now} partitions" if now else "is written by its home shard alone"
        typer.echo(f"{printable(conv_id)} {how}")
