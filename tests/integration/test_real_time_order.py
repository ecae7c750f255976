"""P1 in a hot group: senders on several gateways, each sends after it saw another's ack; no later send is lower."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from api.server import GatewayConfig
from imray.cli.up import read_info
from imray.client import Client
from imray.deploy import gateway as gateways
from imray.deploy import system
from imray.log.manifest import read
from imray.log.store import LocalStore
from imray.settings import Settings

_GATEWAYS, _SENDERS, _TOPICS, _ROWS = 3, 6, 4, 1000
_DEADLINE_S = 120.0
ROOM = "room"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    head = {"num_cpus": 8, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    yield running
    ray.shutdown()
    running.shutdown()


def _imray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)


def _more_gateways(cluster: Cluster, data: Path, count: int) -> list[str]:
    """Further gateways of a running deployment, on ports of their own."""
    ray.init(address=cluster.address, log_to_driver=False)
    manifest = read(LocalStore(data))
    assert manifest is not None
    config = GatewayConfig("127.0.0.1", 0, {"key_file": str(data / "run" / "jwt.key")})
    namespace = system.namespace_of(manifest)
    made = [gateways.create(namespace, f"gateway-more-{i}", manifest, Settings(), config, None) for i in range(count)]
    return [f"http://127.0.0.1:{p.port}" for p in ray.get([m.ping.remote() for m in made], timeout=60)]


class Sender(threading.Thread):
    """Looks at the highest number that anybody got, sends, and asks whether all its numbers are above it."""

    highest = 0
    lock = threading.Lock()

    def __init__(self, url: str, token: str, topic: str, batches: int) -> None:
        super().__init__(daemon=True)
        self.url, self.token, self.topic, self.batches = url, token, topic, batches
        self.lower: list[tuple[int, int]] = []
        self.sent = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with Client(self.url, self.token, timeout_s=_DEADLINE_S) as client:
                for _ in range(self.batches):
                    self._one(client)
        except BaseException as e:  # noqa: BLE001 the main thread raises it
            self.error = e

    def _one(self, client: Client) -> None:
        rows = pa.table(
            {
                "conv_id": pa.array([ROOM] * _ROWS),
                "client_msg_id": pa.array([secrets.token_bytes(16) for _ in range(_ROWS)], pa.binary(16)),
                "topic": pa.array([self.topic] * _ROWS),
                "body": pa.array([b"x"] * _ROWS, pa.binary()),
            }
        )
        with Sender.lock:
            before = Sender.highest
        seq = client.send_arrow(rows)["conv_seq"].to_numpy()
        with Sender.lock:
            Sender.highest = max(Sender.highest, int(seq.max()))
        if seq.min() <= before:
            self.lower.append((before, int(seq.min())))
        assert (np.diff(seq) > 0).all(), "the order inside a request is kept"
        self.sent += _ROWS


@pytest.mark.parametrize("messages", [120_000, pytest.param(1_200_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_no_later_send_has_a_lower_number(cluster: Cluster, tmp_path: Path, messages: int) -> None:
    data = tmp_path / "chat"
    up = _imray("up", "--data", str(data), "--port", "0", "--shards", "1", "--detach", "--address", cluster.address)
    assert up.returncode == 0, up.stderr
    info = read_info(data)
    assert info is not None
    urls = [info["url"], *_more_gateways(cluster, data, _GATEWAYS - 1)]
    with Client(info["url"], info["token"], timeout_s=_DEADLINE_S) as client:
        client.send(ROOM, "first")
        client.set_topics(ROOM, _TOPICS)
    Sender.highest = 0
    batches = messages // _ROWS // _SENDERS
    senders = [Sender(urls[i % _GATEWAYS], info["token"], f"topic-{i}", batches) for i in range(_SENDERS)]
    for s in senders:
        s.start()
    for s in senders:
        s.join(_DEADLINE_S * 4)
        assert not s.is_alive()
        if s.error is not None:
            raise s.error
    assert sum(s.sent for s in senders) == messages
    assert [s.lower for s in senders] == [[]] * _SENDERS
    logs = sorted(p.name for p in (data / "wal").iterdir())
    assert len(logs) > 2, "several partitions wrote"
    print(f"{messages} messages over {_GATEWAYS} gateways and logs {logs}: none lower than an ack seen before it")
    assert _imray("down", "--data", str(data)).returncode == 0
    assert os.path.exists(data)
