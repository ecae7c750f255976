"""Records as tables: on the terminal, in benchmarks/README.md, and the short one of README.md.

Owns words and layout, no measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.peers.push_table import PUSH_HEADS, pushed_in_short, pushes, unasked
from benchmarks.peers.results import RATE, Record, ours_of, targets, times

Lines = list[list[str]]
_NOTHING = "–"
PUSHED = "deliveries/s, batches of 50"
"""To listeners; the table of pushes has the rest."""


def speed_heads(senders: Sequence[int], middle: int) -> list[str]:
    """Of the table of speeds."""
    heads = ["system", "durable before ack"] + [f"messages/s, {n} {_noun(n)}" for n in senders]
    at = f"{middle} {_noun(middle)}"
    return [*heads, f"p50 / p99 ms, {at}", "CPU s per million", "bytes on disk", PUSHED, "imray is × times as fast"]


def _noun(senders: int) -> str:
    return "sender" if senders == 1 else "senders"


def speeds(records: Sequence[Record], senders: Sequence[int], middle: int) -> Lines:
    """A line for each row that was measured: medians; latency, CPU and disk at `middle` senders."""
    lines: Lines = []
    for record in records:
        if not record.samples:
            continue
        row = record.row
        ours = ours_of(records, row.group)
        rates = [_number(record.figure(n, RATE)) for n in senders]
        latency = f"{_number(record.figure(middle, 'p50_ms'))} / {_number(record.figure(middle, 'p99_ms'))}"
        cost = [_number(record.figure(middle, name)) for name in ("cpu_s", "disk_bytes")]
        ratio = _NOTHING if ours is None or ours is record else " / ".join(_times(ours, record, n) for n in senders)
        lines.append(
            [row.title, "yes" if row.durable else "no", *rates, latency, *cost, pushed_in_short(record), ratio]
        )
    return lines


def _times(ours: Record, other: Record, senders: int) -> str:
    values = times(ours, other, senders)
    return f"{median(values):.1f}" if values else _NOTHING


def _number(value: float | None) -> str:
    return _NOTHING if value is None else report.number(value)


KILL_HEADS = [
    "system",
    "what its ack means",
    "acked",
    "of these lost",
    "there twice",
    "under another number",
    "gaps",
    "pause s",
]


def kills(records: Sequence[Record]) -> Lines:
    """A line for each row that was killed."""
    lines: Lines = []
    for record in records:
        if record.killed is None:
            continue
        verdict, row = record.killed.verdict, record.row
        numbers = [f"{verdict.renumbered:,}", f"{verdict.gaps:,}"] if row.numbered else [_NOTHING, _NOTHING]
        counts = [f"{n:,}" for n in (verdict.acked, verdict.lost, verdict.duplicates)]
        lines.append([row.title, row.ack, *counts, *numbers, f"{record.killed.pause_s:.1f}"])
    return lines


def remarks(records: Sequence[Record]) -> list[str]:
    """What did not run, and why."""
    said = [f"Not run: {r.row.title}: install {r.missing}." for r in records if r.missing]
    said += unasked(records)
    return said + [f"FAILED: {r.row.title}: {text}." for r in records for text in r.failures]


def show(records: Sequence[Record], senders: Sequence[int], middle: int, machine: Mapping[str, str]) -> None:
    """Everything, on the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for heads, lines in (
        (speed_heads(senders, middle), speeds(records, senders, middle)),
        (PUSH_HEADS, pushes(records)),
        (KILL_HEADS, kills(records)),
    ):
        if not lines:
            continue
        table = Table()
        for head in heads:
            table.add_column(head, justify="left" if head in heads[:2] else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for text in remarks(records):
        console.print(text, highlight=False)
    report.show(targets(records, senders), machine)


def markdown(records: Sequence[Record], senders: Sequence[int], middle: int, machine: Mapping[str, str]) -> str:
    """Everything, for benchmarks/README.md."""
    goals = [
        [f.name, f"{f.median:.2f} ({min(f.values):.2f} to {max(f.values):.2f})", f"≥ {f.target:g}", _met(f.met)]
        for f in targets(records, senders)
    ]
    parts = [
        _markdown(speed_heads(senders, middle), speeds(records, senders, middle)),
        pushes_markdown(records),
        "`kill -9` of the server in mid-run, four senders that send again what has no ack:",
        _markdown(KILL_HEADS, kills(records)),
        _markdown(["ratio", "median (least to most)", "target", "met"], goals),
        "\n".join(f"- {text}" for text in remarks(records)),
        "Medians. Measured on: " + "; ".join(f"{k}: {v}" for k, v in machine.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part)


def pushes_markdown(records: Sequence[Record]) -> str:
    """The table of pushes; "" where none was measured."""
    lines = pushes(records)
    words = "Durable messages to the listeners of one conversation, one and 50 messages in a batch:"
    return f"{words}\n\n{_markdown(PUSH_HEADS, lines)}" if lines else ""


def summary(records: Sequence[Record], middle: int) -> str:
    """One line for each row, at `middle` senders, for README.md."""
    rate = f"messages/s, {middle} {_noun(middle)}"
    heads = ["system", "durable before ack", rate, "p50 / p99 ms", "imray is × times as fast"]
    # without what a message costs in CPU and disk
    return _markdown(heads, [[*line[:4], line[-1]] for line in speeds(records, [middle], middle)])


def _met(met: bool | None) -> str:
    return "yes" if met else "NO"


def _markdown(heads: Sequence[str], lines: Lines) -> str:
    rule = "|" + "|".join("---" if head in heads[:2] else "---:" for head in heads) + "|"
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)])
