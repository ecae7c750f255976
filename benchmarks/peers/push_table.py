"""Pushes to listeners as lines of a table, and what is said of rows that have none. Words and layout only."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks import report
from benchmarks.peers.push_run import BATCH, DELIVERIES, LOADS, Load
from benchmarks.peers.push_ways import IMRAY, NOT_ASKED, Way, ways_of
from benchmarks.peers.results import Record, turn_ratios

_NOTHING = "–"
PUSH_HEADS = [
    "system",
    "how listeners are told",
    "only when durable",
    "missed ones are told",
    "listeners",
    "messages a batch",
    "deliveries/s",
    "p50 / p99 ms",
    "server CPU s per million",
    "generator cores",
    "imray delivers × as many",
]


def pushes(records: Sequence[Record]) -> list[list[str]]:
    """A line for each way that was measured and each load, one load after the other: medians."""
    measured = [(r, way) for r in records for way in ways_of(r.row.key) if any(r.pushed.get(way.key, []))]
    return [_line(records, record, way, load) for load in LOADS for record, way in measured]


def pushed_in_short(record: Record) -> str:
    """What stands in the table of speeds: the first way of the row, many in a batch."""
    ways = ways_of(record.row.key)
    return _number(record.push_figure(ways[0].key, f"{BATCH.name}_{DELIVERIES}")) if ways else _NOTHING


def unasked(records: Sequence[Record]) -> list[str]:
    """Rows without listeners, and the reason; nothing where listeners were not the question."""
    if not any(record.pushed for record in records):
        return []
    return [f"No listeners: {r.row.title}: {NOT_ASKED[r.row.key]}." for r in records if r.row.key in NOT_ASKED]


def _line(records: Sequence[Record], record: Record, way: Way, load: Load) -> list[str]:
    rate, p50, p99, cpu, generator = (
        _number(record.push_figure(way.key, f"{load.name}_{name}"))
        for name in (DELIVERIES, "p50_ms", "p99_ms", "cpu_s", "generator_cpu")
    )
    first = "yes" if way.durable_first and record.row.durable else "no"
    missed = "yes" if way.again else "no"
    listeners = f"{record.push_figure(way.key, 'listeners') or 0:,.0f}"
    told = [rate, f"{p50} / {p99}", cpu, generator, _times(records, record, way, load)]
    return [record.row.title, way.how, first, missed, listeners, str(load.rows), *told]


def _times(records: Sequence[Record], record: Record, way: Way, load: Load) -> str:
    """Imray's rate in rates of this one, turn by turn."""
    ours = next((r.pushed[IMRAY.key] for r in records if IMRAY.key in r.pushed), None)
    if ours is None or way is IMRAY:
        return _NOTHING
    values = turn_ratios(ours, record.pushed[way.key], f"{load.name}_{DELIVERIES}")
    return f"{median(values):.1f}" if values else _NOTHING


def _number(value: float | None) -> str:
    return _NOTHING if value is None else report.number(value)
