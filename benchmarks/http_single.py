"""Single sends over HTTP: what share of the requests that an endpoint which does nothing would take?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from benchmarks.harness import Figure, Options, Sample, child, column, in_turns, ratios
from benchmarks.servers import Server, imray, noop

QUESTION = "single sends, 64 keep-alive connections, beside a FastAPI endpoint with the same models that does nothing"
CONNECTIONS = 64
TARGET_RATIO = 0.7
TARGET_CPU_S = 200.0
_WARMUP_S = 1.0


def load(server: Server, seconds: float, *arguments: object) -> Sample:
    """One run of the load generator, in a process of its own."""
    command = ("--url", server.url, "--warmup", _WARMUP_S, "--seconds", seconds, *arguments)
    return child("benchmarks.load", *command, seconds=seconds + _WARMUP_S, env={"IMRAY_TOKEN": server.token})


def run(options: Options) -> list[Figure]:
    """imray with 64 conversations, with one, and the endpoint that does nothing, in turns."""

    def side(server: Server, conversations: int) -> Callable[[], Sample]:
        count = ("--connections", CONNECTIONS, "--conversations", conversations)
        return partial(load, server, options.seconds, "--kind", "single", *count)

    with ExitStack() as stack:
        system, nothing = stack.enter_context(imray(options)), stack.enter_context(noop())
        sides = {"nothing": side(nothing, CONNECTIONS), "64": side(system, CONNECTIONS), "1": side(system, 1)}
        turns = in_turns(sides, options.repeat)
    rates = {name: column(samples, "requests_per_second") for name, samples in turns.items()}
    return [
        Figure("64 conversations", "requests/s", rates["64"]),
        Figure("one conversation", "requests/s", rates["1"]),
        Figure("does nothing", "requests/s", rates["nothing"]),
        Figure("64 conversations / nothing", "ratio", ratios(rates["64"], rates["nothing"]), TARGET_RATIO),
        Figure("one conversation / nothing", "ratio", ratios(rates["1"], rates["nothing"]), TARGET_RATIO),
        Figure(
            "64 conversations: the whole machine",
            "CPU s/million",
            column(turns["64"], "machine_cpu_s_per_million"),
            TARGET_CPU_S,
            more_is_better=False,
            note="whatever else runs included",
        ),
        Figure("64 conversations, p50", "ms", column(turns["64"], "p50_ms")),
        Figure("64 conversations, p99", "ms", column(turns["64"], "p99_ms")),
        Figure("does nothing, p99", "ms", column(turns["nothing"], "p99_ms")),
        Figure("load generator", "cores", column(turns["64"], "generator_cpu"), note="64 conversations"),
        Figure("load generator", "cores", column(turns["nothing"], "generator_cpu"), note="does nothing"),
    ]
