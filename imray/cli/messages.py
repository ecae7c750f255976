"""`imray send` and `imray tail`: single messages, by hand or in a pipe."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from imray.cli.common import Data, Json, Target, Timeout, Token, Url, find_target, printable, speaking_to
from imray.core.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    from imray.client import Client, Hole, Message, Outcome, Outgoing, SendResult, UnknownOutcomeError

_TIMEOUT_S = 10.0
_TAIL_MESSAGES = 20
_LINES_MAX = 500
"""In one request: what a pipe had ready meanwhile; a line that comes alone does not wait."""

Conv = Annotated[str, typer.Argument(metavar="CONV", help="The conversation.", show_default=False)]


def send(
    conv: Conv,
    text: Annotated[str, typer.Argument(metavar="[TEXT | -]", help="-: stdin, each line a message.")] = "-",
    msg_id: Annotated[
        str | None, typer.Option("--id", help="UUID, ULID or base64 of 128 bits; a retry keeps it. None: made here.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Topic inside the conversation.")] = None,
    content_type: Annotated[str | None, typer.Option(help="Media type of the text.")] = None,
    sender: Annotated[str | None, typer.Option(help="Who says it; for tokens with the role service.")] = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Send a message, or each line of stdin as one. It is durable when its number is printed.

    Examples:

      imray send hello 'first message' --data ./chat

      imray send hello 'once only' --id 0190b0f2-6f2e-7c3a-9d27-0242ac120002

      seq 1000 | imray send numbers - --json
    """
    from imray.client import Client, Outgoing

    target = find_target(url, token, data)
    with speaking_to(target), Client(target.url, target.token, timeout_s=timeout) as client:
        if text != "-":
            message = Outgoing(
                conv_id=conv,
                body=text,
                client_msg_id=msg_id,
                content_type=content_type,
                topic=topic,
                client_ts=None,
                sender=sender,
            )
            _send_one(client, message, as_json)
            return
        if msg_id is not None:
            raise InvalidError("--id is one message's: leave it out with -, each line gets an id of its own")
        sent = 0
        for lines in _stdin_lines():
            messages = [
                Outgoing(
                    conv_id=conv,
                    body=line,
                    client_msg_id=None,
                    content_type=content_type,
                    topic=topic,
                    client_ts=None,
                    sender=sender,
                )
                for line in lines
            ]
            for outcome in _send_lines(client, messages, sent):
                _print_result(outcome, as_json)
                sent += 1


def _send_one(client: Client, message: Outgoing, as_json: bool) -> None:
    from imray.client import UnknownOutcomeError

    try:
        result = client.send(**vars(message))
    except UnknownOutcomeError as e:
        detail = f"it is unknown whether it is stored: {_what(e)}; repeat it with --id {e.client_msg_ids[0]}"
        raise UnavailableError(detail) from e
    _print_result(result, as_json)


def _send_lines(client: Client, messages: list[Outgoing], before: int) -> list[Outcome]:
    from imray.client import ServerError, UnknownOutcomeError

    try:
        outcomes = client.send_batch(messages)
    except UnknownOutcomeError as e:
        detail = f"lines 1 to {before} are stored; of the next {len(messages)} it is unknown: {_what(e)}"
        raise UnavailableError(detail) from e
    for i, outcome in enumerate(outcomes):
        if not outcome.stored:
            raise ServerError(f"line {before + i + 1} was refused with {outcome.status}: {outcome.detail}")
    return outcomes


def _what(error: UnknownOutcomeError) -> str:
    """The detail without the client's advice: here it is an option of the command."""
    return str(error.detail).removesuffix("; send again with the same ids")


def _print_result(result: SendResult | Outcome, as_json: bool) -> None:
    if as_json:
        _print_json({name: value for name, value in asdict(result).items() if value is not None})
        return
    state = "stored before" if result.duplicate else "stored"
    typer.echo(f"{result.conv_seq}  {result.client_msg_id}  {state}")


def _stdin_lines() -> Iterator[list[str]]:
    """What stdin has, a list at a time; a line that is there does not wait for the next."""
    lines: queue.Queue[str | Exception | None] = queue.Queue(2 * _LINES_MAX)
    threading.Thread(target=_read_lines, args=(lines.put,), daemon=True).start()
    while True:
        ready = [lines.get()]
        while len(ready) < _LINES_MAX and ready[-1] is not None and not lines.empty():
            ready.append(lines.get())
        texts = [line for line in ready if isinstance(line, str)]
        if texts:
            yield texts
        for line in ready:
            if isinstance(line, Exception):
                raise line
        if ready[-1] is None:
            return


def _read_lines(put: Callable[[str | Exception | None], None]) -> None:
    lines_read = 0
    try:
        # a file object of its own: at exit Python closes sys.stdin and aborts where a thread still reads it
        with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as lines:
            for line in lines:
                put(line.removesuffix(b"\n").removesuffix(b"\r").decode())
                lines_read += 1
    except UnicodeDecodeError:
        put(InvalidError(f"line {lines_read + 1} of stdin is not UTF-8: the lines before it were sent"))
    except OSError as e:
        put(InvalidError(f"stdin cannot be read: {e}"))
    put(None)


def tail(
    conv: Conv,
    after: Annotated[int | None, typer.Option(min=0, help="Only numbers above it.")] = None,
    last: Annotated[int | None, typer.Option(min=0, help=f"So many of the last; default {_TAIL_MESSAGES}.")] = None,
    topic: Annotated[str | None, typer.Option("--topic", help="Show only messages of this topic.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes; Ctrl-C ends it.")] = False,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Show a conversation in order.

    Each message is shown once. Numbers that will never be messages are shown as holes with their
    reason. With --follow what comes is pushed, and shown as soon as it is durable.

    Examples:

      imray tail hello --last 5 --data ./chat

      imray tail hello --after 120 --follow --json
    """
    import asyncio

    if after is not None and last is not None:
        raise InvalidError("--after and --last exclude one another: leave one out")
    target = find_target(url, token, data)
    with speaking_to(target):
        count = _TAIL_MESSAGES if last is None else last
        asyncio.run(_tail(target, conv, after, count, topic, follow, as_json, timeout))


async def _tail(
    target: Target,
    conv: str,
    after: int | None,
    last: int,
    topic: str | None,
    follow: bool,
    as_json: bool,
    timeout: float,
) -> None:
    import asyncio

    from imray.client import AsyncClient, ConversationFollower, Hole

    async with AsyncClient(target.url, target.token, timeout_s=timeout) as client:
        stable = (await client.head(conv)).stable_seq
        start = after if after is not None else max(0, stable - last)
        if not follow and start >= stable:
            return
        follower = client.follow(conv, start) if follow else ConversationFollower(client, conv, start)
        loop = asyncio.get_running_loop()
        try:
            # a follower itself waits for a server for ever
            async with asyncio.timeout(None if follow else timeout) as patience:
                async for item in follower:
                    if topic is None or (not isinstance(item, Hole) and item.topic == topic):
                        (_print_item_json if as_json else _print_item)(item)
                    if not follow and (follower.last_shown or 0) >= stable:
                        return
                    if not follow:
                        patience.reschedule(loop.time() + timeout)
        except TimeoutError as e:
            raise UnavailableError(f"no more of {conv} after {follower.last_shown} within {timeout:g} s") from e


def item_line(item: Message | Hole) -> str:
    """An item for a person to read. Nothing in it steers the terminal."""
    from imray.client import Hole

    if isinstance(item, Hole):
        numbers = str(item.from_seq) if item.from_seq == item.to_seq else f"{item.from_seq}..{item.to_seq}"
        return f"{numbers}  (no messages: {printable(item.reason)})"
    when = datetime.fromtimestamp(item.server_ts / 1000, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
    topic = f" [{printable(item.topic)}]" if item.topic else ""
    body = f"({len(item.body)} bytes)" if isinstance(item.body, bytes) else printable(item.body)
    return f"{item.conv_seq}  {when}  {printable(item.sender)}{topic}: {body}"


def _print_item(item: Message | Hole) -> None:
    _print_line(item_line(item))


def _print_item_json(item: Message | Hole) -> None:
    from base64 import b64encode

    fields = asdict(item)
    if isinstance(fields.get("body"), bytes):
        fields["body_base64"] = b64encode(fields.pop("body")).decode()
    _print_json(fields)


def _print_json(value: object) -> None:
    import orjson

    _print_line(orjson.dumps(value).decode())


def _print_line(line: str) -> None:
    print(line, flush=True)
