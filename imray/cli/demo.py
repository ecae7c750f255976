"""What `make up` shows first: a small chat sent through the gateway, its numbers, a retry, and an audit."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import typer

_CONVERSATION = "demo/tea-kitchen"
_CHAT = [
    ("ada", "Morning! Is the kettle on?"),
    ("grace", "It is. Who wants tea?"),
    ("linus", "Coffee, please \u2615"),
    ("ada", "Tea for me"),
    ("grace", "Noted, in the order you asked."),
    ("edsger", "Is that order the same for all of us?"),
    ("grace", "It is: every message has one number, and the server gave it when the message was on disk."),
]


def run_demo(info: Mapping[str, str]) -> None:
    """Send the sample chat to the system that `imray up` started, show the numbers and a clean audit.

    The ids are fixed, so a second run sends retries: the same numbers come back."""
    from rich.console import Console
    from rich.table import Table

    from analytics.audit import run
    from imray.client import Client

    console = Console()
    with Client(info["url"], info["token"]) as client:
        table = Table(title=f"a sample chat in {_CONVERSATION!r}", title_justify="left")
        for column in ("seq", "sender", "text", "where in the log", ""):
            table.add_column(column)
        for i, (sender, text) in enumerate(_CHAT):
            sent = client.send(_CONVERSATION, text, client_msg_id=f"00000000-0000-4000-8000-{i:012d}", sender=sender)
            where = f"shard {sent.shard}, segment {sent.segment}, row {sent.row}"
            table.add_row(str(sent.conv_seq), sender, text, where, "a retry: its first number" * sent.duplicate)
    console.print(table)
    report = run(Path(info["data"]))
    typer.echo(report.to_text())
    url = info["url"]
    data = info["data"]
    typer.echo(
        f"""Try next, in another terminal:
  export IMRAY_DATA={shlex.quote(str(data))} PATH="$PWD/.venv/bin:$PATH"
  imray send hello "first message"        imray tail hello --follow
  imray status                            imray audit
  imray sql "SELECT conv_id, count(*) FROM messages GROUP BY ALL"
  curl -H "Authorization: Bearer $(imray token)" '{url}/v1/conversations/demo%2Ftea-kitchen/messages?limit=3'"""
    )
