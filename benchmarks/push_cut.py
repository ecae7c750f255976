"""All connections cut at once: how long until everybody has everything again, what that reads of the log, and what
those who send meanwhile notice.

Owns this one measurement. Does not own how a listener comes back (`benchmarks.push_device`).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from benchmarks.harness import Sample, percentile
from benchmarks.push_process import push_process
from benchmarks.push_reads import pages_read
from benchmarks.push_sides import Measured
from benchmarks.push_wire import JSON

CONNECTIONS = 10_000
CONNECTIONS_QUICK = 1_000
_CONVERSATIONS = 100
_PROCESSES = 2
_SENDERS = 20
_PAUSE_S = 0.2
"""20 senders, each so long after its last answer: some 90 messages a second, each to 100 listeners (quick: 10)."""
_BACK_OFF_S = 1.0
"""The client's first pause, drawn between nothing and this (docs/live.md: with jitter)."""
_CALM_S = 5.0
"""Before the cut, and after all are current again."""
_SENDING_S_MAX = 60.0


def cut_at_once(on: Measured) -> Sample:
    """Seconds, log reads a conversation, and senders' p99 before, during and after."""
    connections = CONNECTIONS_QUICK if on.options.quick else CONNECTIONS
    names = on.names(_CONVERSATIONS)
    with ExitStack() as stack:
        crowds = [stack.enter_context(push_process("benchmarks.push_crowd", on.server)) for _ in range(_PROCESSES)]
        for i, crowd in enumerate(crowds):
            share = connections // _PROCESSES
            crowd.start("open", url=on.server.url, conversations=names, listeners=share, seed=i * share, sends=False)
        for crowd in crowds:
            crowd.answer()
        senders = stack.enter_context(push_process("benchmarks.push_senders", on.server))
        senders.ask("open", url=on.server.url, subprotocol=JSON, conversations=names, connections=_SENDERS, rows=1)
        reads = pages_read(on.server)
        began = time.perf_counter()
        senders.start("run", begin_s=began, end_s=began + _SENDING_S_MAX, window=1, pause_s=_PAUSE_S, each=True)
        time.sleep(_CALM_S)
        cut_s = time.perf_counter()
        for crowd in crowds:
            crowd.start("cut", back_off_s=_BACK_OFF_S)
        back = [crowd.answer() for crowd in crowds]
        healed_s = time.perf_counter()
        time.sleep(_CALM_S)
        calm_s = time.perf_counter()
        senders.start("stop")
        answered = senders.answer(1.0)["answered"]
        reads = pages_read(on.server) - reads
    found = {
        "all_s": max(b["all_s"] for b in back),
        "p50_s": percentile([b["p50_s"] for b in back], 0.5),
        "tries": sum(b["tries"] for b in back) / connections,
        "reads": reads / _CONVERSATIONS,
    }
    return found | _p99s(answered, {"before": (began, cut_s), "during": (cut_s, healed_s), "after": (healed_s, calm_s)})


def _p99s(answered: list[list[float]], spans: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Of what was sent in each span of time, in ms."""
    found = {}
    for name, (begin, end) in spans.items():
        latencies = [latency for at, latency in answered if begin <= at - latency < end]
        found[f"{name}_p99_ms"] = percentile(latencies, 0.99) * 1e3
    return found
