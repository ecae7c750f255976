"""HTTP senders of Arrow batches into one conversation, in a process of their own that stays for many measurements.

Each sender is a topic of its own. Partitions take sends by topic, so which senders share a partition is chosen here,
not left to luck.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness import Sample
from benchmarks.requests import ArrowBatch, Target
from benchmarks.servers import Server
from imray.core.routing import slot_for

_READY_TIMEOUT_S = 60.0
_ANSWER_GRACE_S = 60.0


def spread_topics(slots: int) -> list[str]:
    """One topic for each slot of so many partitions, in their order.

    The slots of 8 partitions fall evenly on those of 4, 2 and 1 too: the parts that keys hash to are counted off round
    by round, and 8 is a multiple of each."""
    found: dict[int, str] = {}
    for number in itertools.count():
        topic = f"topic-{number}"
        found.setdefault(slot_for(topic, slots), topic)
        if len(found) == slots:
            return [found[slot] for slot in sorted(found)]
    raise AssertionError("numbers do not end")


class Senders:
    """The other end of the senders' process: one measurement at a time."""

    def __init__(self, pipe: Connection, pid: int) -> None:
        self._pipe = pipe
        self.pid = pid

    def start(self, rows: int, begin_s: float, end_s: float) -> None:
        """Send batches of `rows` from now on until `end_s`, and count from `begin_s` on (both time.perf_counter)."""
        self._pipe.send((rows, begin_s, end_s))

    def result(self, seconds: float) -> Sample:
        """What `start` led to, at most `seconds` from now. RuntimeError where a batch was not acked as it should be."""
        if not self._pipe.poll(seconds + _ANSWER_GRACE_S):
            raise RuntimeError("the senders do not answer")
        answer: Any = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return dict(answer)


@contextlib.contextmanager
def senders(server: Server, conversation: str, topics: Sequence[str], windows: Mapping[int, int]) -> Iterator[Senders]:
    """A sender for each topic. `windows`: messages in a batch, and how many of them each sender has in flight."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_work, args=(there, server, conversation, topics, windows), daemon=True)
    process.start()
    there.close()  # or the death of the process would not be noticed
    try:
        if not here.poll(_READY_TIMEOUT_S):
            raise RuntimeError("the senders did not start")
        yield Senders(here, int(here.recv()))
    finally:
        process.terminate()
        process.join()


def _work(
    pipe: Connection, server: Server, conversation: str, topics: Sequence[str], windows: Mapping[int, int]
) -> None:
    """The process: make all batches, then send as asked until the other end is gone."""
    import os
    import signal

    import uvloop

    from benchmarks.load import measure_between
    from imray.deploy.process import tune_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us, and ends us
    url = urlsplit(server.url)
    target = Target(url.netloc, server.token)
    made = {
        rows: [ArrowBatch(target, [conversation], rows, topic) for topic in topics for _ in range(window)]
        for rows, window in windows.items()
    }
    tune_process()
    pipe.send(os.getpid())
    while True:
        try:
            rows, begin_s, end_s = pipe.recv()
        except EOFError:
            return
        try:
            run = measure_between(url.hostname or "127.0.0.1", url.port or 80, made[rows], begin_s, end_s)
            pipe.send(uvloop.run(run))
        except Exception as e:  # noqa: BLE001 whoever waits for the answer gets the reason
            pipe.send(f"{type(e).__name__}: {e}")
