"""`python -m benchmarks [NAME ...]`: run them, print a table, write JSON."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import machine, report
from benchmarks.harness import ROOT, Figure, Options, say

NAMES = (
    "hot_group",
    "many_conversations",
    "hot_group_scaling",
    "small_commits",
    "http_single",
    "http_batch",
    "ack_latency",
    "memory",
    "restart",
    "push",
    "members",
    "history",
)
_COSTS = {
    "hot_group": (12.0, 3, 3),
    "many_conversations": (12.0, 2, 2),
    "hot_group_scaling": (12.0, 11, 3),
    "small_commits": (12.0, 6, 6),
    "http_single": (10.0, 2, 2),
    "http_batch": (10.0, 6, 6),
    "ack_latency": (30.0, 8, 4),
    "memory": (4.0, 3, 3),
    "restart": (20.0, 2, 2),
    "push": (20.0, 13, 14),
    "members": (30.0, 5, 5),
    "history": (110.0, 2, 0),
}
"""Seconds to start, and how many sides a turn has, in full and in the quick form."""
_KNOW_QUOTA = ("hot_group_scaling",)
_KNOW_ROWS = ("history",)
_QUOTA_SIDES = (15, 12)
"""With a quota, in full and in the quick form."""
_QUOTA_WINDOW = 1
_SIDE_S = 6.0
"""What a side takes beside its measurement: warming up, a fresh folder, processes."""
_QUICK_S = 1.0
_STOP_TIMEOUT_S = 90.0
_ROWS_PER_S = 40_000
"""With --rows, all questions together."""
_README = Path(__file__).with_name("README.md")


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(NAMES)}; none: all.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Turns; the table shows medians.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.2, help="Length of one measurement.")] = 5.0,
    folder: Annotated[
        Path, typer.Option("--dir", help="Where data is written; a real disk, or fsync means nothing.")
    ] = ROOT / "benchmarks" / "results",
    producers: Annotated[int, typer.Option(min=1, help="Producer processes of the engine benchmarks.")] = 2,
    window: Annotated[
        int | None,
        typer.Option(min=1, help=f"Batches in flight for each producer: {Options.window}; 1 with --quota."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short turn of each; all of them within 10 minutes.")
    ] = False,
    quota: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=float(os.cpu_count() or 1),
            help="Cores for each writer (hot_group_scaling): two cores stand for many machines.",
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1000, help="Messages of history: 1,000,000, with --quick 200,000.")
    ] = None,
    segments: Annotated[
        int | None, typer.Option(min=1000, help="history over a folder of so many unmerged segments instead.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write the table into benchmarks/README.md.")] = False,
    results: Annotated[Path | None, typer.Option("--from", help="Show an earlier --json file instead.")] = None,
) -> None:
    """Measure imray on this machine, beside the limit that the machine itself sets."""
    failed: list[str] = []
    if results is not None:
        figures, where = report.from_json(results.read_text())
    else:
        chosen = list(dict.fromkeys(names or NAMES))
        check_names(chosen, quota, rows or segments)
        folder = folder.resolve()
        if machine.filesystem(folder)[0] in machine.NOT_DISKS:
            raise typer.BadParameter(f"{folder} is in memory: choose a folder on a disk with --dir")
        folder.mkdir(parents=True, exist_ok=True)
        window = window or (Options.window if quota is None else _QUOTA_WINDOW)
        options = Options(folder, repeat, seconds, producers, window, quota=quota, rows=rows, segments=segments)
        if quick:
            options = replace(options, repeat=1, seconds=_QUICK_S, quick=True)
        say(f"about {minutes(chosen, options):.0f} min for {', '.join(chosen)}; --quick is the short form")
        where = machine.describe(folder)
        figures = run_one(chosen[0], options) if len(chosen) == 1 else run_each(chosen, options, failed)
        if as_json is not None:
            as_json.write_text(report.to_json(figures, where, asdict(options) | {"folder": str(folder)}))
    if figures or failed:
        report.show(figures, where)
    if markdown:
        report.put_between_marks(_README, report.markdown(figures, where))
    if failed:
        say(f"FAILED: {', '.join(failed)}")
        raise typer.Exit(1)


def check_names(names: list[str], quota: float | None, size: int | None) -> None:
    """BadParameter for a benchmark that there is not, or that does not know what is asked of it."""
    if unknown := [n for n in names if n not in NAMES]:
        raise typer.BadParameter(f"{unknown}: there are {', '.join(NAMES)}")
    if quota is not None and (others := [n for n in names if n not in _KNOW_QUOTA]):
        raise typer.BadParameter(f"{', '.join(others)} do not know --quota: {', '.join(_KNOW_QUOTA)} does")
    if size is not None and (others := [n for n in names if n not in _KNOW_ROWS]):
        raise typer.BadParameter(f"{', '.join(others)} do not know --rows and --segments: {', '.join(_KNOW_ROWS)} does")


def minutes(names: list[str], options: Options) -> float:
    """How long some benchmarks take, about, as was measured on two cores."""
    total_s = 0.0
    for name in names:
        fixed_s, full_sides, quick_sides = _COSTS[name]
        if options.quota is not None:
            full_sides, quick_sides = _QUOTA_SIDES
        sides = quick_sides if options.quick else full_sides
        total_s += fixed_s + options.repeat * sides * (_SIDE_S + options.seconds)
    total_s += (options.rows or 0) / _ROWS_PER_S
    return max(1.0, total_s / 60)


def run_one(name: str, options: Options) -> list[Figure]:
    """One benchmark, in this process."""
    started = time.monotonic()
    module = importlib.import_module(f"benchmarks.{name}")
    say(f"{name}: {module.QUESTION}")
    figures = [replace(f, benchmark=name) for f in module.run(options)]
    say(f"{name}: took {time.monotonic() - started:.0f} s")
    return figures


def run_each(names: list[str], options: Options, failed: list[str]) -> list[Figure]:
    """Several, each in a process of its own: none inherits another's Ray, memory or threads.

    One that fails is named in `failed`, and the others go on."""
    figures: list[Figure] = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            found = Path(scratch) / "figures.json"
            command = [sys.executable, "-m", "benchmarks", name, "--json", str(found), "--dir", str(options.folder)]
            command += ["--repeat", str(options.repeat), "--seconds", str(options.seconds)]
            command += ["--producers", str(options.producers), "--window", str(options.window)]
            command += ["--quick"] * options.quick
            if _wait(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)) or not found.exists():
                failed.append(name)
                continue
            figures += [Figure.from_dict(f) for f in json.loads(found.read_text())["figures"]]
    return figures


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. Where we are ended, it is, too, with the time to end its own servers."""
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)
        raise


def end_in_order(_number: int, _frame: object) -> None:
    """Ctrl-C and SIGTERM: what was started is ended on the way out, which no second signal disturbs."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, end_in_order)
    typer.run(main)
