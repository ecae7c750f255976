"""The commands of `imray`, put together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import imray
from imray.cli import chat, groups, history, inspect, members, messages, replay, up
from imray.core.errors import InvalidError

app = typer.Typer(
    name="imray",
    help="Message ordering for chat: durable, numbered, once.",
    epilog="Examples:\n\n  imray up --data ./chat --detach\n\n  imray send hello 'first message' --data ./chat",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"imray {imray.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    """Message ordering for chat: durable, numbered, once."""


def bench(context: typer.Context) -> None:
    """Measure this machine.

    Runs the benchmarks of the source checkout; arguments are passed on to them. They say beforehand how long they take.

    Examples:

      imray bench --quick    # all of them within 10 minutes

      imray bench hot_group --repeat 5

      imray bench hot_group_scaling --quota 0.15    # what a hot group gives on many machines (needs root)
    """
    root = Path(imray.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "__main__.py").exists():
        raise InvalidError("benchmarks come with the source checkout: clone it, and run `imray bench` there")
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "benchmarks", *context.args]
    raise typer.Exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode)


for _command in (
    up.up,
    up.down,
    up.token,
    inspect.status,
    messages.send,
    messages.tail,
    chat.chat,
    members.create,
    members.members,
    replay.replay,
    groups.hot,
    groups.cold,
    inspect.audit,
    inspect.sql,
    history.compact,
    history.vacuum,
):
    app.command()(_command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)
