"""What a whole run found, as values and as JSON: a record for each row, ratios to imray turn by turn, the targets.

Pure. Knows no system by name but the rows that are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.harness import Figure, Sample, column, ratios
from benchmarks.peers.judge import Verdict
from benchmarks.peers.peer import Row
from benchmarks.peers.work import Shape

TIMES_OF_DURABLE = 10.0
"""Target: imray's rate, in rates of the best other system that is durable before its ack."""
TIMES_OF_RAW = 1.0
"""Target: the same, in rates of producing alone to a broker that keeps everything in memory."""
RATE = "per_second"


@dataclass(frozen=True)
class Killed:
    """What a `kill -9` in mid-run left behind, and how long senders waited."""

    verdict: Verdict
    pause_s: float
    resent: int
    """Batches that senders sent again."""


@dataclass
class Record:
    """A row and all that was measured of it."""

    row: Row
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    """By the number of senders, one for each turn; empty where a turn failed."""
    killed: Killed | None = None
    missing: str = ""
    """What has to be installed first."""
    failures: list[str] = field(default_factory=list)
    pushed: dict[str, list[Sample]] = field(default_factory=dict)
    """By the way of telling listeners, one for each turn; empty where a turn failed."""

    def figure(self, senders: int, name: str) -> float | None:
        """The median of the turns; None where there is none."""
        values = column([s for s in self.samples.get(senders, []) if s], name)
        return median(values) if values else None

    def push_figure(self, way: str, name: str) -> float | None:
        """The same, of a way of telling listeners."""
        values = column([s for s in self.pushed.get(way, []) if s], name)
        return median(values) if values else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Record:
        """The inverse of `as_dict`, also after JSON has made text of the numbers of senders."""
        row = Row(**{**raw["row"], "shape": Shape(**raw["row"]["shape"])})
        killed = raw["killed"]
        if killed is not None:
            killed = Killed(**{**killed, "verdict": Verdict(**killed["verdict"])})
        samples = {int(senders): taken for senders, taken in raw["samples"].items()}
        return cls(row, samples, killed, raw["missing"], raw["failures"], raw.get("pushed", {}))


def times(ours: Record, other: Record, senders: int) -> list[float]:
    """Our rate in rates of the other, turn by turn; turns in which one of them failed are left out."""
    return turn_ratios(ours.samples.get(senders, []), other.samples.get(senders, []), RATE)


def turn_ratios(ours: Sequence[Sample], other: Sequence[Sample], name: str) -> list[float]:
    """The same, of any figure."""
    both = [(a, b) for a, b in zip(ours, other, strict=False) if a and b]
    return ratios(column([a for a, _ in both], name), column([b for _, b in both], name))


def ours_of(records: Sequence[Record], group: str) -> Record | None:
    """The row of imray that a group's ratios are of: its first one."""
    return next((r for r in records if r.row.ours and r.row.group == group and r.samples), None)


def targets(records: Sequence[Record], senders: Sequence[int]) -> list[Figure]:
    """The ratios that imray should reach in the group "batches", for each number of senders."""
    ours = ours_of(records, "batches")
    others = [r for r in records if not r.row.ours and r.row.group == "batches"]
    if ours is None:
        return []
    kinds = (
        ("the best that is durable before its ack", TIMES_OF_DURABLE, [r for r in others if r.row.durable]),
        ("producing alone to a log in memory", TIMES_OF_RAW, [r for r in others if not r.row.once]),
    )
    found: list[Figure] = []
    for name, target, rivals in kinds:
        for count in senders:
            best = max(rivals, key=lambda r: r.figure(count, RATE) or 0.0, default=None)
            if best is not None and (values := times(ours, best, count)):
                title = f"{ours.row.key} / {name} ({best.row.key}), {count} senders"
                found.append(Figure(title, "ratio", values, target, benchmark="peers"))
    return found


def to_json(records: Sequence[Record], machine: Mapping[str, str], options: Mapping[str, Any]) -> str:
    """All of it, every turn included."""
    content = {"machine": dict(machine), "options": dict(options), "rows": [r.as_dict() for r in records]}
    return json.dumps(content, indent=1, ensure_ascii=False)


def from_json(text: str) -> tuple[list[Record], dict[str, str], dict[str, Any]]:
    """What `to_json` wrote."""
    raw = json.loads(text)
    return [Record.from_dict(r) for r in raw["rows"]], raw["machine"], raw["options"]
