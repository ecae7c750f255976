"""A local Ray cluster is its owner's alone: whoever else knows its ports runs nothing in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import System

_TIMEOUT_S = 120
_DRIVER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("runs as", ray.get(ray.remote(lambda: __import__("getpass").getuser()).remote()))
"""
_NODE = """
import sys
# private: what `ray start --address` does, ended with this program
from ray._private import node, parameter
known = parameter.RayParams(gcs_address=sys.argv[1], num_cpus=1, include_dashboard=False, resources={"trap": 1})
joined = node.Node(known, head=False, shutdown_at_exit=True, spawn_reaper=False)
print("joined as", joined.unique_id)
"""


def _below(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it ended while we looked
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, []))
    return found


def _read(pid: int, name: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").split("\0")
    except OSError:
        return []  # it ended while we looked


def _argument(system: System, name: str) -> str:
    """An argument of the cluster's raylet."""
    for pid in _below(system.process.pid):
        for argument in _read(pid, "cmdline"):
            if argument.startswith(f"--{name}="):
                return argument.partition("=")[2]
    raise LookupError(f"no process has --{name}")


def _attack(program: str, *arguments: str, **auth: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "IMRAY_"))} | auth
    # the address is one of loopback, which Ray otherwise takes for the machine's outer one
    env |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # a refusal is final
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env, check=False)


_WITHOUT = [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}]


@pytest.mark.parametrize("auth", _WITHOUT, ids=["no token", "a wrong token"])
def test_a_program_without_the_token_runs_nothing_in_the_cluster(system: System, auth: dict[str, str]) -> None:
    done = _attack(_DRIVER, _argument(system, "gcs-address"), **auth)
    assert "runs as" not in done.stdout
    assert "InvalidAuthToken" in done.stderr


@pytest.mark.parametrize("auth", _WITHOUT, ids=["no token", "a wrong token"])
def test_a_node_without_the_token_does_not_join_the_cluster(system: System, auth: dict[str, str]) -> None:
    done = _attack(_NODE, _argument(system, "gcs-address"), **auth)
    assert "joined as" not in done.stdout
    assert "InvalidAuthToken" in done.stderr


def test_with_the_token_of_the_folder_a_program_runs_in_the_cluster(system: System) -> None:
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(system.data / "run" / "ray.token")}
    done = _attack(_DRIVER, _argument(system, "gcs-address"), **known)
    assert "runs as" in done.stdout, done.stderr


def test_the_token_stands_in_its_file_and_nowhere_else(system: System) -> None:
    file = system.data / "run" / "ray.token"
    token = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    pids = _below(system.process.pid)
    assert len(pids) > 3
    told = [text for pid in pids for name in ("cmdline", "environ") for text in _read(pid, name)]
    assert any(str(file) in text for text in told)
    assert not any(token in text for text in told)
    folders = (system.data, Path(_argument(system, "temp-dir")))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path != file]
    assert any(path.name.startswith("raylet") for path in files)
    assert not any(token.encode() in path.read_bytes() for path in files)


def test_nobody_else_reaches_the_sockets_and_logs_of_the_cluster(system: System) -> None:
    folder = Path(_argument(system, "temp-dir"))
    # Ray opens its own folder to everybody, so the one above must be closed
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert folder.parent.stat().st_uid == os.geteuid()
    for name in ("store_socket_name", "raylet_socket_name"):
        assert folder in Path(_argument(system, name)).parents
