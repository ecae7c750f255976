"""`imray replay`: a chat out of a Parquet file through the gateway, and the proof that it arrived as it was."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imray.cli.common import Data, Json, Target, Timeout, Token, Url, find_target, printable, speaking_to

if TYPE_CHECKING:
    from imray.cli.replay_check import Proof
    from imray.cli.replay_plan import Chat
    from imray.cli.replay_send import Acks

_TIMEOUT_S = 120.0
"""Long enough for a gateway or a node to come back; until then the client retries with the same ids."""
_TRY_TIMEOUT_S = 20.0
"""Longer than the gateway's own deadline (15 s), so that the gateway says what is wrong."""
_HOLES_SHOWN_MAX = 5


@dataclass(frozen=True)
class _Options:
    batch: int
    concurrency: int
    by_sender: bool
    as_arrow: bool
    timeout_s: float
    events: Path | None
    show_progress: bool


@dataclass
class _Result:
    acks: Acks
    proof: Proof
    send_s: float
    read_s: float


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="The chat.", show_default=False)],
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Messages in one request at most.")] = 500,
    concurrency: Annotated[int, typer.Option(min=1, max=100, help="Requests in flight at most.")] = 16,
    by_sender: Annotated[bool, typer.Option("--by-sender", help="Every sender on its own, all at once.")] = False,
    arrow: Annotated[bool, typer.Option("--arrow", help="Send columns (Arrow) instead of JSON.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many rows from the start.")] = None,
    prefix: Annotated[str, typer.Option(help="Before each conversation's name.")] = "",
    events: Annotated[
        Path | None, typer.Option(help="Write what the client saw, as JSON lines for `python -m tests.checker`.")
    ] = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Send a chat, read it back, compare.

    Exit code 1: what was read back differs from the file or from the acks.

    Columns: conversation (or log, conv_id), sender (or nick; null: "-"), text (or body); rows in the order of the
    file. An id is made of the file's content and the row, so a second replay stores nothing. In one conversation a
    batch is sent when the one before it was answered; many conversations go at once. With --by-sender that holds for
    each sender in a conversation, and the senders go at once. The token needs the role service.

    Examples:

      imray replay chat.parquet --data ./chat

      imray replay chat.parquet --by-sender --prefix again- --batch 200 --json

      imray replay chat.parquet --limit 10000 --events seen.jsonl; python -m tests.checker seen.jsonl
    """
    import asyncio

    from imray.cli.replay_plan import load

    target = find_target(url, token, data)
    chat = load(file, prefix, limit)
    options = _Options(
        batch=batch,
        concurrency=concurrency,
        by_sender=by_sender,
        as_arrow=arrow,
        timeout_s=timeout,
        events=events,
        show_progress=sys.stderr.isatty() and not as_json,
    )
    with speaking_to(target):
        result = asyncio.run(_replay(target, chat, options))
    (_print_json if as_json else _print_text)(chat, result, by_sender)
    if result.proof.differences_count:
        raise typer.Exit(1)


async def _replay(target: Target, chat: Chat, options: _Options) -> _Result:
    from imray.cli.events import EventLog
    from imray.cli.replay_check import read_back
    from imray.cli.replay_plan import lanes_of
    from imray.cli.replay_send import Sender
    from imray.client import AsyncClient, RetryPolicy

    with ExitStack() as stack:
        recorder = stack.enter_context(EventLog(options.events, chat)) if options.events else None
        advance = stack.enter_context(_progress(options.show_progress, len(chat)))
        async with AsyncClient(
            target.url, target.token, timeout_s=options.timeout_s, retry=RetryPolicy(try_timeout_s=_TRY_TIMEOUT_S)
        ) as client:
            sender = Sender(client, chat, options.as_arrow, lambda rows: advance("sending", rows), recorder)
            started_s = time.monotonic()
            await sender.run(lanes_of(chat, options.by_sender, options.batch), options.concurrency)
            sent_s = time.monotonic()
            proof = await read_back(
                client,
                chat,
                sender.acks,
                options.by_sender,
                options.concurrency,
                lambda messages: advance("reading back", messages),
                recorder,
            )
            return _Result(sender.acks, proof, sent_s - started_s, time.monotonic() - sent_s)


@contextmanager
def _progress(show: bool, rows: int) -> Iterator[Callable[[str, int], None]]:
    """Bars on stderr for the two halves; what is yielded moves one of them on."""
    if not show:
        yield lambda what, count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = {what: progress.add_task(what, total=rows) for what in ("sending", "reading back")}
        yield lambda what, count: progress.advance(tasks[what], count)


def _figures(chat: Chat, result: _Result, by_sender: bool) -> dict[str, Any]:
    from imray.cli.replay_send import CONFLICT, NEW, STORED_BEFORE

    acks = result.acks
    proof = result.proof
    return {
        "ok": not proof.differences_count,
        "sent": len(chat),
        "new": acks.count(NEW),
        "duplicates": acks.count(STORED_BEFORE),
        "conflicts": acks.count(CONFLICT),
        "seconds": round(result.send_s, 3),
        "messages_per_s": round(len(chat) / result.send_s) if result.send_s else 0,
        "order": "by sender" if by_sender else "file",
        "read_seconds": round(result.read_s, 3),
        "conversations": proof.conversations,
        "proved": proof.found,
        "others": proof.others,
        "holes": [{"conv_id": c, "from": h.from_seq, "to": h.to_seq, "reason": h.reason} for c, h in proof.holes],
        "differences": proof.differences_count,
        "first_differences": proof.differences,
    }


def _print_json(chat: Chat, result: _Result, by_sender: bool) -> None:
    import orjson

    typer.echo(orjson.dumps(_figures(chat, result, by_sender)).decode())


def _print_text(chat: Chat, result: _Result, by_sender: bool) -> None:
    f = _figures(chat, result, by_sender)
    typer.echo(
        f"sent       {f['sent']} messages in {f['seconds']:.1f} s ({f['messages_per_s']}/s): "
        f"{f['new']} new, {f['duplicates']} stored before, {f['conflicts']} conflicts"
    )
    order = "each sender's order" if by_sender else "the order"
    typer.echo(
        f"read back  {f['proved']} messages in {f['conversations']} conversations in {f['read_seconds']:.1f} s: "
        f"{f['others']} other messages, {len(f['holes'])} holes"
    )
    for hole in f["holes"][:_HOLES_SHOWN_MAX]:
        typer.echo(f"  hole {hole['conv_id']} {hole['from']}..{hole['to']}: {printable(hole['reason'])}")
    if f["ok"]:
        typer.echo(f"proved     text, sender, number and {order} are those of the file and of the acks")
        return
    typer.echo(f"differs    in {f['differences']} places; the first:")
    for text in f["first_differences"]:
        typer.echo(f"  {printable(text)}")
