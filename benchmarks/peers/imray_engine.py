"""imray itself, in three rows: senders that are programs on the cluster, senders over HTTP, single sends over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from benchmarks.engine import Engine, cluster, engine, shard_client
from benchmarks.harness import Options
from benchmarks.peers.daemons import Daemon, listens
from benchmarks.peers.http import Connection
from benchmarks.peers.judge import Stored
from benchmarks.peers.peer import Address, Row, Server
from benchmarks.peers.work import CONV, ID_BYTES, Batch, Shape, WrongAnswerError
from benchmarks.requests import ARROW_TYPE
from benchmarks.servers import free_port
from imray.core.errors import UnavailableError
from imray.core.replies import Appended
from imray.core.status import ServingState
from imray.deploy import system
from imray.engine.clients import ShardClient

_ACK = "in a Parquet segment, file and folder fsynced, under a name of its own"
RAY = Row("imray-ray", "imray, Arrow batches from the Ray cluster", _ACK, Shape(5_000, 1), durable=True, ours=True)
HTTP = Row("imray-http", "imray, Arrow batches over HTTP", _ACK, Shape(2_500, 2), durable=True, ours=True)
SINGLE = Row(
    "imray-single",
    "imray, single sends over HTTP",
    _ACK,
    Shape(1, 16),
    durable=True,
    group="single",
    ours=True,
)
_ANSWER_TIMEOUT_S = 15.0
_BACK_TIMEOUT_S = 60.0
_KIND_MESSAGE, _KIND_VOID = 0, 1


class _UpServer:
    """`imray up` as a user starts it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        data = folder / "data"
        command = [str(_command()), "up", "--data", str(data), "--port", str(port), "--json"]
        self._info = data / "run" / "up.json"
        self._daemon = Daemon(command, folder, lambda: self._ready(port))
        self.address: Address = {"port": port, "token": json.loads(self._info.read_text())["token"]}
        self.stop = self._daemon.stop

    def _ready(self, port: int) -> bool:
        return self._info.exists() and listens(port)

    def kill(self) -> None:
        """The gateway, the shards and all of Ray."""
        self._daemon.kill()
        self._info.unlink()

    def restart(self) -> None:
        """Over the same data folder."""
        self._daemon.start()


def _command() -> Path:
    import sys

    return Path(sys.executable).with_name("imray")


class _RayServer:
    """A shard on a local Ray cluster; senders join the cluster."""

    def __init__(self, started: Engine) -> None:
        self._engine = started
        gcs = ray.get_runtime_context().gcs_address
        self.address: Address = {"gcs": gcs, "namespace": started.namespace}
        self._killed: int | None = None

    def kill(self) -> None:
        """The shard's process. Not Ray: it would take the senders along, which are programs on the cluster."""
        pid = self._engine.status().pid
        assert pid is not None, "a serving shard says its process"
        self._killed = pid
        os.kill(pid, signal.SIGKILL)

    def restart(self) -> None:
        """Ray does it; wait until the next one serves."""
        deadline = time.monotonic() + _BACK_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ray.exceptions.RayError):
                status = self._engine.status()
                if status.state is ServingState.SERVING and status.pid != self._killed:
                    return
            time.sleep(0.05)  # between two looks
        raise RuntimeError("the shard did not come back")


class _RayClient:
    def __init__(self, shard: ShardClient) -> None:
        self._shard = shard

    async def send(self, batch: Batch) -> np.ndarray:
        """One call, retried by the link itself where the shard is away."""
        answer = await self._shard.append(pa.py_buffer(batch.arrow), time.monotonic() + _ANSWER_TIMEOUT_S)
        if not isinstance(answer, Appended):
            raise UnavailableError(f"{answer.why}: {answer.detail}")
        if isinstance(answer.seq, int):
            return np.arange(answer.seq, answer.seq + answer.rows, dtype=np.int64)
        return answer.seq

    async def close(self) -> None:
        """Nothing is open but Ray."""


class _ArrowClient:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.close = connection.close

    async def send(self, batch: Batch) -> np.ndarray:
        """One request."""
        content = await self._connection.ask("POST", "/v1/messages:batch", ARROW_TYPE, batch.arrow.data)
        table = pa.ipc.open_stream(content).read_all()
        status = table.column("status").to_numpy()
        if (status >= 500).any():
            raise UnavailableError(f"status {status.max()}")
        if not np.isin(status, (200, 201)).all():
            raise WrongAnswerError(f"status {np.unique(status)}")
        return table.column("conv_seq").to_numpy()


class _SingleClient:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.close = connection.close

    async def send(self, batch: Batch) -> np.ndarray:
        """One request for the one message."""
        content = json.dumps({"client_msg_id": batch.id_list[0].hex(), "body": batch.bodies[0].decode()})
        path = f"/v1/conversations/{CONV}/messages"
        answer = json.loads(await self._connection.ask("POST", path, "application/json", content.encode()))
        return np.array([answer["conv_seq"]], np.int64)


class _Imray:
    ROWS = (RAY, HTTP, SINGLE)

    def missing(self) -> str | None:
        """It is what this repository is."""
        return None

    def version(self) -> str:
        """Stands in the description already."""
        return ""

    @contextlib.contextmanager
    def serve(self, row: Row, folder: Path) -> Iterator[Server]:
        """`imray up`, or one shard on a local cluster."""
        if row is RAY:
            with cluster(), engine(Options(folder)) as started:
                yield _RayServer(started)
            return
        server = _UpServer(folder)
        try:
            yield server
        finally:
            server.stop()

    async def connect(self, row: Row, address: Address) -> _RayClient | _ArrowClient | _SingleClient:
        """Over Ray a sender is a driver of its own, like any program on the cluster."""
        if row is RAY:
            if not ray.is_initialized():
                system.connect(address["gcs"])
            return _RayClient(shard_client(address["namespace"]))
        connection = await Connection.open(address["port"], address["token"])
        return _ArrowClient(connection) if row is HTTP else _SingleClient(connection)

    def stored(self, row: Row, address: Address, folder: Path) -> Stored:
        """Read from the segments, not asked of the engine."""
        paths = sorted(folder.rglob("wal/shard=*/*.parquet"))
        columns = ["conv_id", "conv_seq", "kind", "client_msg_id"]
        parts = [pq.read_table(p, columns=columns, page_checksum_verification=True, partitioning=None) for p in paths]
        table = pa.concat_tables(parts)
        table = table.filter(pc.equal(table.column("conv_id"), CONV))
        messages = table.filter(pc.equal(table.column("kind"), _KIND_MESSAGE))
        ids = messages.column("client_msg_id").combine_chunks()
        flat = np.frombuffer(ids.buffers()[1], np.uint8)[ids.offset * ID_BYTES :][: len(ids) * ID_BYTES]
        return Stored(flat.reshape(-1, ID_BYTES), messages.column("conv_seq").to_numpy())


PEER = _Imray()
