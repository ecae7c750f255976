"""The merger of a real system: it works beside sends, comes back when it is killed, and ends with the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import System, start

from imray.history.table import Table
from imray.log.store import LocalStore
from tests.support.merging import rows_of_table

_UNTIL_S = 60.0
_QUICK = {
    "IMRAY_CHECKPOINT_WAIT_S": "0.2",
    "IMRAY_CHECKPOINT_SEGMENTS_MIN": "5",
    "IMRAY_READ_S_MAX": "0.5",
    "IMRAY_MERGE_INTERVAL_S": "0.1",
}


def _merging(system: System) -> list[dict[str, Any]]:
    """What the merger says of each shard."""
    answer = httpx.get(f"{system.url}/v1/status", headers={"Authorization": f"Bearer {system.token}"}, timeout=30)
    return [shard["merge"] for shard in answer.json()["shards"] if "merge" in shard]


def _until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + _UNTIL_S
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)  # between two looks
    return found


def _is_quiet(system: System) -> list[dict[str, Any]]:
    merging = _merging(system)
    few = all(max(lag["segments"], lag["unmerged"]) <= 20 for merge in merging for lag in merge["logs"])
    return merging if few and len(merging) == 1 and merging[0]["version"] >= 0 else []


def _send(system: System, count: int) -> None:
    with system.client() as client:
        for n in range(count):
            client.send("tea", f"message {n}", sender="ada")


def _imray(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.timeout(300)
def test_a_system_merges_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _QUICK.items():
        monkeypatch.setenv(name, value)
    system = start(tmp_path / "data", "--shards", "1")
    store = LocalStore(system.data)
    try:
        _send(system, 100)
        (merge,) = _until(lambda: _is_quiet(system), "few segments are left")
        assert merge["detail"] == []
        threads = [int(name) for name in os.listdir(f"/proc/{merge['pid']}/task")]
        assert 10 in [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads], "the one that merges"
        os.kill(merge["pid"], signal.SIGKILL)
        _send(system, 50)
        (after,) = _until(
            lambda: [m for m in _is_quiet(system) if m["pid"] != merge["pid"] and m["version"] > merge["version"]],
            "another one goes on",
        )
        assert after["detail"] == []
        merged = rows_of_table(store)
        assert set(merged.values()) == {1}
        assert len(merged) >= 130
        shown = _imray("status", "--data", str(system.data))
        assert "not_deleted" in shown.stdout
        compacted = _imray("compact", "--data", str(system.data), "--json")
        assert compacted.returncode == 0, compacted.stderr
        assert json.loads(compacted.stdout)["held"] == []
    finally:
        system.process.terminate()
        out, _ = system.process.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.kill(after["pid"], 0)
    assert out == "", "stdout has one line, of JSON: what Ray says of the merger's death is not for it"
    said = (tmp_path / "data.err").read_text()
    assert "ray: " in said
    assert "\x1b" not in said
    assert Table(store).verify().version >= after["version"]
