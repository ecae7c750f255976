"""`python -m benchmarks.rpc_exchange`: imray's RPC beside Arrow Flight, one call at a time between two processes.

Three ways: imray's RPC; Flight's DoExchange on one kept stream; Flight's do_action, a new gRPC call each time. Three
cases: a batch of one row, a batch of 1,000 rows of 100 bytes, an ask for 1,000 ids. The server decodes what it gets and
answers with an answer of the right size, the client decodes that: no way is spared what imray does with a call.
The ways run in turns, and ratios are taken within a turn. CPU is that of the whole process on each side.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from benchmarks.harness import Sample, column, in_turns, percentile, ratios
from imray.core.columns import Rows
from imray.core.grants import Granted
from imray.core.replies import Appended
from imray.rpc import messages
from imray.rpc.client import RpcClient
from imray.rpc.endpoint import Endpoint, Parts
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection

_LOG = 1
_BODY_BYTES = 100
_ROWS = 1_000
_TIMEOUT_S = 30.0
_WARM_UP_CALLS = 50
_TURNS = 5
_WAYS = ("rpc", "flight exchange", "flight action")

_APPENDED = messages.encode_append_answer(
    Appended(rows=_ROWS, epoch=1, log_position=2, server_ts=3, row=0, seq=1, stable=0, firsts=None)
)
_GRANTED = messages.encode_ask_answer(
    Granted(sequencer=1, grant=1, rows=_ROWS, first=1, plan=None, stable=0, partitions={"group": 4})
)


@dataclass(frozen=True)
class Case:
    """What is sent, in the forms that the ways take it in."""

    name: str
    method: Method
    batch: pa.RecordBatch
    """For Flight's stream."""
    encode: Callable[[], Parts]
    """For the RPC and for an action."""
    decode_answer: Callable[[memoryview], object]


def _messages(rows: int) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "conv_id": pa.array(["conversation"] * rows).dictionary_encode(),
            "client_msg_id": pa.array([i.to_bytes(16, "big") for i in range(rows)], pa.binary(16)),
            "sender": pa.array(["someone"] * rows).dictionary_encode(),
            "body": pa.array([bytes(_BODY_BYTES)] * rows, pa.binary()),
        }
    )


def _stream(batch: pa.RecordBatch) -> Parts:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return (memoryview(sink.getvalue()),)


def _append_case(rows: int) -> Case:
    batch = _messages(rows)
    name = f"batch of {rows:,} row{'s' if rows > 1 else ''}"
    return Case(name, Method.APPEND, batch, lambda: _stream(batch), messages.decode_append_answer)


def _ask_case() -> Case:
    words = np.random.default_rng(1).integers(0, 2**63, (_ROWS, 4)).astype(np.uint64)
    conv = np.zeros(_ROWS, np.int32)
    name = np.frombuffer(b"group", np.uint8)
    ids = np.ascontiguousarray(words[:, :2])
    fps = np.ascontiguousarray(words[:, 2])
    payload = np.ascontiguousarray(words[:, 3])
    rows = Rows(name, np.array([0, len(name)], np.int32), conv, ids, fps, payload)
    columns = {"conv": conv, "id_high": ids[:, 0], "id_low": ids[:, 1], "fps": fps, "payload": payload}
    batch = pa.record_batch({key: pa.array(values) for key, values in columns.items()})
    return Case(
        f"ask for {_ROWS:,} ids",
        Method.ASK,
        batch,
        lambda: messages.encode_ask(1, 2, 3, rows, []),
        messages.decode_ask_answer,
    )


def _cases() -> list[Case]:
    return [_append_case(1), _append_case(_ROWS), _ask_case()]


def _take(method: Method, content: memoryview) -> Parts:
    """The server's work on a call: decode it, and have an answer."""
    if method is Method.ASK:
        messages.decode_ask(content)
        return _GRANTED
    with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
        reader.read_next_batch()
    return _APPENDED


class _FlightServer(flight.FlightServerBase):  # type: ignore[misc]
    """The same calls by Flight. The descriptor, or the action's type, names the method."""

    def do_exchange(self, _context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        answer = b"".join(_GRANTED if descriptor.command == b"ASK" else _APPENDED)
        for chunk in reader:
            assert chunk.data.num_rows
            writer.write_metadata(answer)

    def do_action(self, _context: Any, action: Any) -> list[Any]:
        content = memoryview(bytearray(action.body))  # an ask's columns must be aligned
        return [flight.Result(b"".join(_take(Method[action.type], content)))]


async def _cpu_ns(_content: memoryview, _caller: ServerConnection) -> Parts:
    return (time.process_time_ns().to_bytes(8, "little"),)


async def _append(content: memoryview, _caller: ServerConnection) -> Parts:
    return _take(Method.APPEND, content)


async def _ask(content: memoryview, _caller: ServerConnection) -> Parts:
    return _take(Method.ASK, content)


def _serve(pipe: Connection) -> None:
    """The server's process: both servers, until the other end of the pipe says something."""

    async def run() -> None:
        server = RpcServer(1 << 26)
        server.serve(_LOG, {Method.APPEND: _append, Method.ASK: _ask, Method.STATUS: _cpu_ns})
        endpoint = await server.open("127.0.0.1")
        flights = _FlightServer("grpc://127.0.0.1:0")
        pipe.send((endpoint, flights.port))
        await asyncio.to_thread(pipe.recv)
        await server.close()
        flights.shutdown()

    asyncio.run(run())


class _Client:
    """The client's process: one connection for each way."""

    def __init__(self, endpoint: Endpoint, flight_port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._rpc = self._loop.run_until_complete(RpcClient.connect(endpoint, _TIMEOUT_S))
        self._flight = flight.connect(f"grpc://127.0.0.1:{flight_port}")

    def _server_cpu_ns(self) -> int:
        content = self._loop.run_until_complete(self._rpc.call(_LOG, Method.STATUS, (), _TIMEOUT_S))
        return int.from_bytes(content, "little")

    def turn(self, way: str, case: Case, seconds: float) -> Sample:
        """One measurement: calls one after the other for so long."""
        run = {"rpc": self._by_rpc, "flight exchange": self._by_exchange, "flight action": self._by_action}[way]
        run(case, 0.0)
        server_ns = self._server_cpu_ns()
        client_ns = time.process_time_ns()
        started = time.perf_counter()
        took_s = run(case, seconds)
        elapsed_s = time.perf_counter() - started
        client_ns = time.process_time_ns() - client_ns
        server_ns = self._server_cpu_ns() - server_ns
        calls = len(took_s)
        return {
            "calls/s": calls / elapsed_s,
            "p50 us": 1e6 * percentile(took_s, 0.5),
            "client CPU us": client_ns / 1e3 / calls,
            "server CPU us": server_ns / 1e3 / calls,
            "CPU us": (client_ns + server_ns) / 1e3 / calls,
        }

    def _by_rpc(self, case: Case, seconds: float) -> list[float]:
        async def calls() -> list[float]:
            took_s: list[float] = []
            end = time.perf_counter() + seconds
            while (started := time.perf_counter()) < end or len(took_s) < _WARM_UP_CALLS:
                case.decode_answer(await self._rpc.call(_LOG, case.method, case.encode(), _TIMEOUT_S))
                took_s.append(time.perf_counter() - started)
            return took_s

        return self._loop.run_until_complete(calls())

    def _by_exchange(self, case: Case, seconds: float) -> list[float]:
        descriptor = flight.FlightDescriptor.for_command(case.method.name.encode())
        writer, reader = self._flight.do_exchange(descriptor)
        took_s: list[float] = []
        with writer:
            writer.begin(case.batch.schema)
            end = time.perf_counter() + seconds
            while (started := time.perf_counter()) < end or len(took_s) < _WARM_UP_CALLS:
                writer.write_batch(case.batch)
                case.decode_answer(memoryview(reader.read_chunk().app_metadata))
                took_s.append(time.perf_counter() - started)
            writer.done_writing()
        return took_s

    def _by_action(self, case: Case, seconds: float) -> list[float]:
        took_s: list[float] = []
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end or len(took_s) < _WARM_UP_CALLS:
            action = flight.Action(case.method.name, pa.py_buffer(b"".join(case.encode())))
            for result in self._flight.do_action(action):
                case.decode_answer(memoryview(result.body))
            took_s.append(time.perf_counter() - started)
        return took_s

    def close(self) -> None:
        self._flight.close()
        self._rpc.close()
        self._loop.close()


def _measure(pipe: Connection, endpoint: Endpoint, flight_port: int, seconds: float, turns: int) -> None:
    client = _Client(endpoint, flight_port)
    found: dict[str, dict[str, list[Sample]]] = {}
    for case in _cases():
        sides = {way: _turn(client, way, case, seconds) for way in _WAYS}
        found[case.name] = in_turns(sides, turns)
    client.close()
    pipe.send(found)


def _turn(client: _Client, way: str, case: Case, seconds: float) -> Callable[[], Sample]:
    return lambda: client.turn(way, case, seconds)


def _show(name: str, taken: dict[str, list[Sample]]) -> None:
    figures = list(taken[_WAYS[0]][0])
    print(f"\n{name}\n{'':18}" + "".join(f"{figure:>16}" for figure in figures))
    for way in _WAYS:
        medians = [statistics.median(column(taken[way], figure)) for figure in figures]
        print(f"{way:18}" + "".join(f"{value:16,.1f}" for value in medians))
    for way in _WAYS[1:]:
        shares = [ratios(column(taken[way], figure), column(taken["rpc"], figure)) for figure in figures]
        print(f"{way + ' / rpc':18.18}" + "".join(f"{statistics.median(values):16.2f}" for values in shares))


def main() -> None:
    """Measure, and print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement; there are 9 a turn")
    parser.add_argument("--turns", type=int, default=_TURNS)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=_serve, args=(there,), daemon=True)
    server.start()
    endpoint, flight_port = here.recv()
    results, sender = spawn.Pipe(duplex=False)
    arguments = (sender, endpoint, flight_port, options.seconds, options.turns)
    client = spawn.Process(target=_measure, args=arguments, daemon=True)
    client.start()
    sender.close()  # or the death of the client would not be noticed
    for name, taken in results.recv().items():
        _show(name, taken)
    client.join()
    here.send("end")
    server.join()


if __name__ == "__main__":
    main()
