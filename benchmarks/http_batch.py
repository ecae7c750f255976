"""Batches over HTTP: how many messages a second as JSON, and as Arrow?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.harness import Figure, Options, Sample, column, in_turns
from benchmarks.http_single import load
from benchmarks.servers import Server, imray

QUESTION = "JSON batches of 500 and Arrow batches of 5,000 and 10,000 over HTTP"


@dataclass(frozen=True)
class Case:
    """One way to send batches."""

    kind: str
    rows: int
    connections: int
    conversations: int
    target: float

    @property
    def name(self) -> str:
        where = "one conversation" if self.conversations == 1 else f"{self.conversations} conversations"
        return f"{self.kind} batches of {self.rows:,}, {where}"


# few connections: each holds one batch in flight, and more would only wait in the gateway
CASES = (
    Case("json", 500, 16, 1, 100_000),
    Case("json", 500, 16, 64, 100_000),
    Case("arrow", 5_000, 6, 1, 400_000),
    Case("arrow", 10_000, 4, 1, 400_000),
    Case("arrow", 10_000, 4, 64, 400_000),
)


def run(options: Options) -> list[Figure]:
    """Every case, in turns."""

    def side(server: Server, case: Case) -> Callable[[], Sample]:
        count = ("--rows", case.rows, "--connections", case.connections, "--conversations", case.conversations)
        return partial(load, server, options.seconds, "--kind", case.kind, *count)

    with imray(options) as server:
        turns = in_turns({case.name: side(server, case) for case in CASES}, options.repeat)
    figures = []
    for case in CASES:
        samples = turns[case.name]
        rate = column(samples, "messages_per_second")
        how = f"{case.connections} connections"
        figures.append(Figure(case.name, "messages/s", rate, case.target, note=how))
        figures.append(Figure(f"{case.name}: p99", "ms", column(samples, "p99_ms")))
        figures.append(Figure(f"{case.name}: load generator", "cores", column(samples, "generator_cpu")))
    return figures
