"""Senders, some to a process: `python -m benchmarks.peers.sender` reads its orders as JSON from standard input.

Says "ready", reads when to begin, and writes a report as JSON. Acks go to an .npz file where they are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.peers.catalogue import peer_of, row_of
from benchmarks.peers.peer import Address, Peer, Row
from benchmarks.peers.work import ID_BYTES, Batch, Client, Source
from imray.deploy.process import tune_process

_RETRY_DELAY_S = 0.05
_ANSWER_TIMEOUT_S = 60.0
"""Of one batch, for a system that is only slow."""
_KILLED_TIMEOUT_S = 5.0
"""The same for a system that is killed meanwhile, and may have lost the batch without a word."""


@dataclass(frozen=True)
class Orders:
    """What a sender process does."""

    key: str
    senders: int
    address: Address
    report_path: str
    acks_path: str | None
    """Keep every ack, for the judgement. Then the server may die: batches are sent again, with the same ids."""


@dataclass
class Report:
    """What senders saw between begin and end."""

    messages: int = 0
    """New ones."""
    latencies_s: list[float] = field(default_factory=list)
    """Of batches: from the send until the last message of it is acked."""
    cpu_s: float = 0.0
    """Of the process."""
    resent: int = 0
    """Batches that had no answer and were sent again."""
    pause_s: float = 0.0
    """The longest time without any ack."""
    last_ack: float = 0.0
    """When the last ack came (time.monotonic)."""


class Senders:
    """The senders of one process."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._row: Row = row_of(orders.key)
        self._peer: Peer = peer_of(orders.key)
        self._report = Report()
        self._acks: list[tuple[np.ndarray, np.ndarray]] = []
        self._end = math.inf

    async def run(self) -> Report:
        """Connect, say so, wait for the order to begin, send until the end."""
        shape = self._row.shape
        places = self._orders.senders * shape.in_flight
        # two to a place: while a batch of one is in flight, the next is made from the other
        sources = [Source(shape.rows, int.from_bytes(os.urandom(8))) for _ in range(2 * places)]
        clients = [await self._connect() for _ in range(places)]
        tune_process()
        print("ready", flush=True)
        begin = float(await asyncio.to_thread(sys.stdin.readline))
        self._report.last_ack = time.monotonic()
        pairs = zip(sources[::2], sources[1::2], strict=True)
        tasks = [asyncio.create_task(self._line(c, *pair, begin)) for c, pair in zip(clients, pairs, strict=True)]
        self._end = float(await asyncio.to_thread(sys.stdin.readline))
        self._report.cpu_s = await self._meter(begin, self._end)
        await asyncio.gather(*tasks)
        if self._orders.acks_path is not None:
            self._keep(self._orders.acks_path)
        return self._report

    def _keep(self, path: str) -> None:
        """Write every ack to a file."""
        ids = np.concatenate([ids for ids, _ in self._acks]) if self._acks else np.zeros((0, ID_BYTES), np.uint8)
        numbers = np.concatenate([numbers for _, numbers in self._acks]) if self._acks else np.zeros(0, np.int64)
        np.savez(path, ids=ids, numbers=numbers)

    async def _connect(self) -> Client:
        return await self._peer.connect(self._row, self._orders.address)

    @staticmethod
    async def _meter(begin: float, end: float) -> float:
        """CPU seconds of this process between begin and end."""
        await asyncio.sleep(max(0.0, begin - time.monotonic()))
        used = time.process_time()
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        return time.process_time() - used

    async def _line(self, client: Client, source: Source, other: Source, begin: float) -> None:
        """One batch in flight after the other; answers are checked, and batches made, while the next is on its way."""
        batch, before = source.next(), None
        try:
            while time.monotonic() < self._end:
                sent = time.monotonic()
                sending = asyncio.ensure_future(client.send(batch))
                await asyncio.sleep(0)  # it is on its way
                if before is not None:
                    other.acked(*before, self._row.once, self._row.numbered)
                following = other.next()
                numbers, client = await self._answer(client, batch, sending)
                if numbers is None:
                    return
                self._count(batch, numbers, sent, begin)
                before, batch = (batch, numbers), following
                source, other = other, source
            if before is not None:
                other.acked(*before, self._row.once, self._row.numbered)
        finally:
            with contextlib.suppress(Exception):  # the server may be gone
                await asyncio.wait_for(client.close(), 1.0)

    def _count(self, batch: Batch, numbers: np.ndarray, sent: float, begin: float) -> None:
        now, report = time.monotonic(), self._report
        if self._orders.acks_path is not None:
            self._acks.append((batch.ids, numbers))
        report.pause_s = max(report.pause_s, now - report.last_ack)
        report.last_ack = now
        if begin <= now < self._end:
            report.messages += batch.rows - batch.retries
            report.latencies_s.append(now - sent)

    async def _answer(
        self, client: Client, batch: Batch, sending: asyncio.Future[np.ndarray]
    ) -> tuple[np.ndarray | None, Client]:
        """The numbers and the client that got them; None where the end came first. Without the order to keep acks any
        failure is an error; with it the batch is sent again until it has an answer."""
        if self._orders.acks_path is None:
            return await asyncio.wait_for(sending, _ANSWER_TIMEOUT_S), client
        while True:
            try:
                return await asyncio.wait_for(sending, _KILLED_TIMEOUT_S), client
            except Exception as e:  # noqa: BLE001 each library has errors of its own for a server that died
                self._report.resent += 1
                if self._report.resent == 1:
                    print(f"    a batch is sent again after {type(e).__name__}: {str(e)[:100]}", file=sys.stderr)
            if time.monotonic() >= self._end:
                return None, client
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.close(), 1.0)
            client = await self._reconnect(client)
            sending = asyncio.ensure_future(client.send(batch))

    async def _reconnect(self, client: Client) -> Client:
        """A new connection; the old one where there is none before the end."""
        while time.monotonic() < self._end:
            try:
                return await asyncio.wait_for(self._connect(), _KILLED_TIMEOUT_S)
            except Exception:  # noqa: BLE001 it is still down: what is awaited is that it is not
                await asyncio.sleep(_RETRY_DELAY_S)
        return client


def main() -> None:
    """Read orders, obey, report. The second and third line are when to begin to count, and when to end."""
    orders = Orders(**json.loads(sys.stdin.readline()))
    Path(orders.report_path).write_text(json.dumps(asdict(uvloop.run(Senders(orders).run()))))


if __name__ == "__main__":
    main()
