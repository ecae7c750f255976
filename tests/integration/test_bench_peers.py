"""The comparison's own row of imray, as the command runs it: a measurement, a kill in mid-run, listeners."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import ROOT


@pytest.mark.timeout(170)
def test_single_sends(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.peers", "imray-single", "--senders", "2", "--repeat", "1", "--no-push"]
    command += ["--seconds", "1", "--json", str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=160, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = json.loads(found.read_text())["rows"]
    (sample,) = row["samples"]["2"]
    assert sample["per_second"] > 0
    assert 0 < sample["p50_ms"] <= sample["p99_ms"]
    assert 100 < sample["disk_bytes"] < 1000
    killed = row["killed"]
    assert killed["resent"] > 0, "the senders noticed"
    verdict = killed["verdict"]
    assert verdict["acked"] > 0
    assert {name: verdict[name] for name in ("lost", "duplicates", "renumbered", "gaps")} == {
        "lost": 0,
        "duplicates": 0,
        "renumbered": 0,
        "gaps": 0,
    }
    assert "imray, single sends over HTTP" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_listeners(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.peers", "imray-single", "--no-speed", "--quick", "--json", str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=160, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = json.loads(found.read_text())["rows"]
    assert not row["samples"]
    assert row["killed"] is None
    (sample,) = row["pushed"]["imray-ws"]
    assert sample["listeners"] == 200
    for load in ("single", "batch"):
        assert sample[f"{load}_told_per_s"] > 0
        assert 0 < sample[f"{load}_p50_ms"] <= sample[f"{load}_p99_ms"]
        assert sample[f"{load}_cpu_s"] > 0
    assert "WebSocket at its" in done.stdout
