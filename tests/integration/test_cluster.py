"""Several raylets on one machine: shards spread over them, and one that is lost is replaced."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from conftest import listener_pid
from ray.cluster_utils import Cluster

from imray.cli.up import read_info
from imray.client import Client

_DEADLINE_S = 120.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("IMRAY_SHARD_NUM_CPUS", "0.9")
    running = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}, shutdown_at_exit=False
    )
    yield running
    ray.shutdown()
    running.shutdown()


def imray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)


@pytest.mark.timeout(400)
def test_shards_move_when_a_node_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    workers = [cluster.add_node(num_cpus=2) for _ in range(2)]
    data = tmp_path / "chat"
    up = imray("up", "--data", str(data), "--port", "0", "--shards", "3", "--detach", "--address", cluster.address)
    assert up.returncode == 0, up.stderr
    info = read_info(data)
    assert info is not None
    convs = [f"c{i}" for i in range(12)]
    with Client(info["url"], info["token"], timeout_s=_DEADLINE_S) as client:
        first = {c: client.send(c, "before", client_msg_id=f"{i:032x}") for i, c in enumerate(convs)}
        assert {r.shard for r in first.values()} == {0, 1, 2}
        gateway = listener_pid(int(info["url"].rsplit(":", 1)[1]))
        lost = next(w for w in workers if not is_below(gateway, w))
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        again = {c: client.send(c, "before", client_msg_id=f"{i:032x}") for i, c in enumerate(convs)}
        assert all(again[c].duplicate and again[c].conv_seq == first[c].conv_seq for c in convs)
        after = {c: client.send(c, "after") for c in convs}
        assert all(r.conv_seq == 2 for r in after.values())
        for c in convs:
            assert [m.body for page in client.iter_history(c) for m in page.messages] == ["before", "after"]
    assert imray("down", "--data", str(data)).returncode == 0
    wait_until_gone(gateway)
    assert imray("audit", "--data", str(data)).returncode == 0


def is_below(pid: int, node: object) -> bool:
    """Whether a process is a descendant of a raylet of the node."""
    raylets = {p.process.pid for p in node.all_processes["raylet"]}  # type: ignore[attr-defined]
    while pid > 1:
        if pid in raylets:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the gateway does not end"
        time.sleep(0.05)
