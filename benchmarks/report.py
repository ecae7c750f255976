"""Figures as a table, as JSON and as the table in README.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Figure

_WIDTH = 150
"""Where the output is no terminal: nothing wraps."""
_HEADS = ("benchmark", "figure", "median", "least", "most", "unit", "target", "met")


def number(value: float) -> str:
    """Three to four digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """The table's rows."""
    made: list[tuple[str, ...]] = []
    for f in figures:
        target = "" if f.target is None else f"{'≥' if f.more_is_better else '≤'} {number(f.target)}"
        met = {None: "", True: "yes", False: "NO"}[f.met]
        name = f"{f.name} ({f.note})" if f.note else f.name
        made.append((f.benchmark, name, number(f.median), number(min(f.values)), number(max(f.values)), f.unit))
        made[-1] += (target, met)
    return made


def show(figures: Sequence[Figure], machine: Mapping[str, str]) -> None:
    """The table, on the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for name, value in machine.items():
        console.print(f"{name:12} {value}", highlight=False)
    table = Table()
    for head in _HEADS:
        table.add_column(head, justify="right" if head in ("median", "least", "most", "target") else "left")
    before = ""
    for row in rows(figures):
        if before and row[0] != before:
            table.add_section()
        shown = "" if row[0] == before else row[0]
        before = row[0]
        table.add_row(shown, *row[1:-1], f"[red]{row[-1]}[/red]" if row[-1] == "NO" else row[-1])
    console.print(table)


def to_json(figures: Sequence[Figure], machine: Mapping[str, str], how: Mapping[str, Any]) -> str:
    """All of it, every repeat included."""
    return json.dumps(
        {"machine": dict(machine), "options": dict(how), "figures": [f.as_dict() for f in figures]},
        indent=1,
        ensure_ascii=False,
    )


def from_json(text: str) -> tuple[list[Figure], dict[str, str]]:
    """What `to_json` wrote: figures and machine."""
    raw = json.loads(text)
    return [Figure.from_dict(f) for f in raw["figures"]], raw["machine"]


def markdown(figures: Sequence[Figure], machine: Mapping[str, str]) -> str:
    """The table and the machine, for README.md."""
    heads = [h for h in _HEADS if h not in ("least", "most")]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---:|---|---:|---|"]
    for name, figure, median, least, most, unit, target, met in rows(figures):
        spread = f"{median} ({least} to {most})" if least != most else median
        lines.append(f"| {name} | {figure} | {spread} | {unit} | {target} | {met} |")
    lines += ["", "Median (least to most) of the repeats. Measured on: "]
    lines[-1] += "; ".join(f"{k}: {v}" for k, v in machine.items()) + "."
    return "\n".join(lines)


def put_between_marks(readme: Path, text: str, name: str = "results") -> None:
    """Replace what stands between the marks with this name of a file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = readme.read_text()
    if content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{readme} needs one {begin} and one {end}")
    head, _, rest = content.partition(begin)
    _, _, tail = rest.partition(end)
    readme.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
