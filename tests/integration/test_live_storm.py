"""Fault 27: a thousand listeners of one conversation while it turns hot and cold, connections are cut and delayed, and
the gateway, the home shard and its partitions are killed. Each was shown the same: what can be read, in order, once.

`IMRAY_LIVE_STORM_S` says how long (seconds; 20), `IMRAY_LIVE_STORM_LISTENERS` how many listen (1,000).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import start, stop

from tests.checker.invariants import check
from tests.support.storm import Storm

_SECONDS = float(os.environ.get("IMRAY_LIVE_STORM_S", "20"))
_LISTENERS = int(os.environ.get("IMRAY_LIVE_STORM_LISTENERS", "1000"))
_SENDERS = 20
_CURRENT_S_MAX = 20.0
"""After each disturbance all listeners are current again within so long (fault 28)."""


def steps(storm: Storm) -> list[tuple[str, Callable[[], None]]]:
    """What happens, one after the other, and from the beginning again while there is time."""

    def turn_while_killing(partitions: int, who: str) -> None:
        turning = threading.Thread(target=storm.turn, args=(partitions,))
        turning.start()
        storm.kill(who)
        turning.join()

    def cut_while_delayed() -> None:
        storm.delay(0.3, 2.0)
        storm.cut(0.3)

    return [
        ("cutting and delaying, cold", cut_while_delayed),
        ("killing the home shard, cold", lambda: storm.kill("shard")),
        ("turning hot", lambda: storm.turn(4)),
        ("killing a partition", lambda: storm.kill("partition")),
        ("cutting and delaying, hot", cut_while_delayed),
        ("killing the gateway, hot", lambda: storm.kill("gateway")),
        ("turning cold while the home shard is killed", lambda: turn_while_killing(0, "shard")),
        ("turning hot while the gateway is killed", lambda: turn_while_killing(4, "gateway")),
        ("killing the home shard, hot", lambda: storm.kill("shard")),
        ("turning cold", lambda: storm.turn(0)),
    ]


@pytest.mark.timeout(900)
def test_a_thousand_listeners_in_a_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMRAY_CONNECTIONS_PER_PEER_MAX", "4096")  # all of them come from one address
    system = start(tmp_path / "data", "--shards", "2")
    storm = None
    try:
        storm = Storm(system, tmp_path, _LISTENERS, _SENDERS)
        storm.until(lambda: all(s.acked for s in storm.senders), "every sender has an ack")
        storm.all_current("coming")
        ends = time.monotonic() + _SECONDS
        for number, (what, happen) in enumerate(itertools.cycle(steps(storm))):
            if time.monotonic() > ends and number >= len(steps(storm)):
                break
            happen()
            storm.all_current(what)
        storm.end_of_sending()
        storm.read_back()
    finally:
        if storm is not None:
            storm.close()
        stop(system)
    report = check(sorted(tmp_path.glob("*.jsonl")))
    print(report.to_text())
    print(f"{dict(storm.counts)}, pauses of senders up to {max(s.slowest_s for s in storm.senders):.1f} s")
    print("current again: " + ", ".join(f"{what} {s:.1f} s" for what, s in storm.recoveries_s))
    assert report.ok, report.to_text()
    assert report.checked["listeners"] == _LISTENERS
    assert max(s for _, s in storm.recoveries_s[1:]) < _CURRENT_S_MAX
