"""How peers tell listeners: bodies found in what comes, each listener's check, the loads, the table. No servers."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Options
from benchmarks.peers import __main__ as command
from benchmarks.peers import push_run, results, table
from benchmarks.peers.catalogue import keys, row_of
from benchmarks.peers.push_ear import Bodies, Ear, Split
from benchmarks.peers.push_load import Load
from benchmarks.peers.push_nats import TELLING as NATS
from benchmarks.peers.push_redis import TELLING as REDIS
from benchmarks.peers.push_ways import IMRAY, NOT_ASKED, WAYS, telling_of, way_of, ways_of
from benchmarks.peers.results import Record
from benchmarks.peers.work import Batch
from benchmarks.workload import BODY_BYTES
from tests.support.process import until


class _Crowd:
    """Takes note of what listeners say."""

    def __init__(self) -> None:
        self.split = Split()
        self.marks: list[bytes] = []
        self.why: list[str] = []

    def told(self, ear: Ear, marks: list[bytes], stamps: list[bytes]) -> None:
        self.marks += marks

    def changed(self) -> None:
        pass

    def fail(self, why: str) -> None:
        self.why.append(why)


class _Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        pass


def _listener(crowd: Any, way: str, telling: Any) -> tuple[Ear, _Wire]:
    """One that listens already."""
    ear: Ear = telling.ear(way_of(way), {})(crowd, True)
    wire = _Wire()
    ear.transport = wire  # type: ignore[assignment]
    ear.live = True
    return ear, wire


def test_every_row_has_a_way_or_a_reason() -> None:
    assert {way.row_key for way in WAYS} | set(NOT_ASKED) == set(keys())
    assert not {way.row_key for way in WAYS} & set(NOT_ASKED)
    assert len({way.key for way in WAYS}) == len(WAYS)
    for way in WAYS:
        assert row_of(way.row_key)
        assert way is IMRAY or telling_of(way) is not None


def test_bodies_are_new_and_of_one_size() -> None:
    source = Bodies(3)
    first, second = source.batch(50, 1.5), source.batch(2, 2.5)
    assert {len(body) for body in first.bodies + second.bodies} == {BODY_BYTES}
    assert first.rows == 50
    assert len(set(first.id_list)) == 50
    marks, stamps, at = Split()(b"".join(second.bodies) + b"\r\n")
    assert marks == [b"0300000050", b"0300000051"]
    assert stamps == [b"%020d" % 2_500_000_000] * 2
    assert at == 2 * BODY_BYTES


@pytest.mark.parametrize("seed", range(20))
def test_bodies_are_found_wherever_what_comes_is_cut(seed: int) -> None:
    crowd, rng = _Crowd(), random.Random(seed)
    ear, _ = _listener(crowd, "nats-core", NATS)
    bodies = Bodies(0).batch(30, 1.0).bodies
    data = b"".join(b"MSG chat.room 1 100\r\n%b\r\n" % body for body in bodies)
    while data:
        size = rng.randrange(1, 400)
        ear.data_received(data[:size])
        data = data[size:]
    assert crowd.marks == [b"00%08d" % i for i in range(30)]
    assert ear.heard == 30
    assert not crowd.why


@pytest.mark.parametrize("cut", [7, 60, 1000])
def test_flow_control_and_pings_are_answered_once(cut: int) -> None:
    crowd = _Crowd()
    ear, wire = _listener(crowd, "nats-ordered", NATS)
    body = Bodies(0).batch(1, 1.0).bodies[0]
    request = b"HMSG _INBOX.x.told 1 $JS.FC.chat.a.b 42 42\r\nNATS/1.0 100 FlowControl Request\r\n\r\n\r\n"
    data = b"MSG _INBOX.x.told 1 $JS.ACK.1 100\r\n%b\r\n%bPING\r\n" % (body, request)
    for at in range(0, len(data), cut):
        ear.data_received(data[at : at + cut])
    assert crowd.marks == [b"0000000000"]
    assert wire.written == [b"PUB $JS.FC.chat.a.b 0\r\n\r\n", b"PONG\r\n"]


@pytest.mark.parametrize("cut", [1, 33, 5000])
def test_a_reader_of_the_stream_asks_again_once_an_answer_is_whole(cut: int) -> None:
    crowd = _Crowd()
    ear, wire = _listener(crowd, "redis-always-xread", REDIS)
    source = Bodies(0)
    told = 0
    for rows in (3, 1):
        bodies = source.batch(rows, 1.0).bodies
        entries = [
            b"*2\r\n$3\r\n%d-0\r\n*4\r\n$1\r\ni\r\n$2\r\n\r\n\r\n$1\r\nb\r\n$100\r\n%b\r\n" % (told + i + 1, body)
            for i, body in enumerate(bodies)
        ]
        data = b"*1\r\n*2\r\n$15\r\nlog:room-000000\r\n*%d\r\n" % rows + b"".join(entries)
        for at in range(0, len(data), cut):
            ear.data_received(data[at : at + cut])
        told += rows
        assert wire.written[-1].endswith(b"$3\r\n%d-0\r\n" % told)
    assert len(wire.written) == 2
    assert len(crowd.marks) == 4
    assert not crowd.why


class _Ear(Ear):
    """Of no protocol."""


class _Board:
    """A system: what is sent is told to all, in whichever way the test wants."""

    def __init__(self, ears: list[Ear], spoil: str) -> None:
        self._ears = ears
        self._spoil = spoil
        self._calls = 0

    async def send(self, batch: Batch) -> np.ndarray:
        await asyncio.sleep(0.001)
        self._calls += 1
        data = b"".join(batch.bodies)
        for i, ear in enumerate(self._ears):
            spoiled = i == 1 and self._calls == 3
            if spoiled and self._spoil == "left out":
                continue
            if spoiled and self._spoil == "another order":
                ear.data_received(b"".join(reversed(batch.bodies)))
                continue
            ear.data_received(data)
            if spoiled and self._spoil == "twice":
                ear.data_received(data)
        return np.arange(1, batch.rows + 1)

    async def close(self) -> None:
        pass


async def _driven(spoil: str, one_order: bool) -> dict[str, Any]:
    load = Load()
    ears: list[Ear] = [_Ear(load, i == 0) for i in range(3)]
    for ear in ears:
        ear.live = True
    load._ears = ears
    load._one_order = one_order
    load._clients = [_Board(ears, spoil), _Board(ears, "")]
    load._sources = [Bodies(0), Bodies(1)]
    now = time.perf_counter()
    return await load.drive(now, now + 0.2, rows=4, window=2)


@pytest.mark.parametrize("one_order", [True, False])
def test_a_load_ends_when_all_were_told(one_order: bool) -> None:
    found = asyncio.run(_driven("", one_order))
    assert found["told_per_s"] > 100
    assert 0 < found["p50_ms"] <= found["p99_ms"] < 200


@pytest.mark.parametrize("one_order", [True, False])
@pytest.mark.parametrize("spoil", ["left out", "another order", "twice"])
def test_a_listener_that_is_told_something_else_ends_the_load(spoil: str, one_order: bool) -> None:
    with pytest.raises(RuntimeError, match="told"):
        asyncio.run(_driven(spoil, one_order))


def _sample(rate: float) -> dict[str, float]:
    figures = {"told_per_s": rate, "p50_ms": 1.5, "p99_ms": 20.0, "cpu_s": 3.25, "generator_cpu": 0.5}
    both = {f"{load}_{name}": value for load in ("single", "batch") for name, value in figures.items()}
    return both | {"listeners": 200.0, "batch_told_per_s": 10 * rate}


def _records() -> list[Record]:
    rows = ("imray-single", "redis-always", "nats", "kafka-raw")
    rates = {"imray-ws": 4000.0, "redis-always-xread": 1000.0, "redis-always-pubsub": 2000.0, "nats-core": 8000.0}
    found = [Record(row_of(key)) for key in rows]
    for record in found:
        record.pushed = {w.key: [_sample(rates[w.key])] for w in ways_of(record.row.key) if w.key in rates}
    return found


def test_the_table_of_pushes() -> None:
    records = _records()
    assert results.from_json(results.to_json(records, {}, {}))[0] == records
    text = table.markdown(records, [4], 4, {})
    once = "1.50 / 20.00 | 3.25 | 0.50"
    assert f"| XREAD BLOCK for each listener | yes | yes | 200 | 1 | 1,000 | {once} | 4.0 |" in text
    assert f"| XREAD BLOCK for each listener | yes | yes | 200 | 50 | 10,000 | {once} | 4.0 |" in text
    assert f"| PUBLISH in the same script | yes | no | 200 | 1 | 2,000 | {once} | 2.0 |" in text
    assert f"| core subscriptions to the stream's subject | no | no | 200 | 1 | 8,000 | {once} | 0.5 |" in text
    assert f"No listeners: {row_of('kafka-raw').title}" in text
    records[1].samples = {4: [{"per_second": 1.0, "p50_ms": 1.0, "p99_ms": 1.0, "cpu_s": 1.0, "disk_bytes": 1.0}]}
    assert "| 1.00 | 1.00 | 10,000 | – |" in table.markdown(records, [4], 4, {})
    assert "listeners" not in table.markdown([Record(row_of("nats"))], [4], 4, {})


def test_one_way_that_fails_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_options: Options, key: str) -> dict[str, float]:
        if key == "redis-always-xread":
            raise RuntimeError("no answer")
        return _sample(100.0)

    monkeypatch.setattr(push_run, "measure", measure)
    records = [Record(row_of("redis-always")), Record(row_of("nats"), missing="it"), Record(row_of("kafka-raw"))]
    command.measure_push(records, Options(tmp_path, 2, 1.0))
    assert records[0].push_figure("redis-always-xread", "single_told_per_s") is None
    assert records[0].push_figure("redis-always-pubsub", "single_told_per_s") == 100.0
    assert records[0].failures == ["push redis-always-xread: RuntimeError: no answer"] * 2
    assert not records[1].pushed
    assert not records[2].pushed


def test_what_a_process_spent_is_known_below_a_tick() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        until(lambda: push_run.spent_s(process.pid) > 0, "it has started")
        assert push_run.spent_s(process.pid) < 5
        process.kill()
    before = push_run.spent_s(os.getpid())
    until(lambda: push_run.spent_s(os.getpid()) > before, "waiting takes some time")


def test_as_many_listeners_as_is_said(tmp_path: Path) -> None:
    assert push_run.listeners_of(Options(tmp_path)) == 1_000
    assert push_run.listeners_of(Options(tmp_path, quick=True)) == 200
