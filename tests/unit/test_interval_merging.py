"""Merges of sealed intervals in a child process: the same as here, and its end costs no more than another try."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imray.core.errors import DerivedError, StorageError
from imray.log import sealed
from imray.log.sealed import SealedInterval, remove
from imray.log.store import LocalStore
from imray.shard import interval_merging
from imray.shard.committer import Committer
from imray.shard.interval_merging import IntervalMerger
from tests.support.batches import Msg, commit, msg_id, open_committer, seal
from tests.support.process import until


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "MERGE_FANOUT", 2)
    monkeypatch.setattr(interval_merging, "IN_CHILD_IDS_MIN", 0)


@pytest.fixture
def committer(tmp_path: Path) -> Committer:
    made = open_committer(LocalStore(tmp_path))
    for n in range(2):
        commit(made, [Msg("c", msg_id(10 * n + i)) for i in range(10)])
        seal(made)
    return made


def _pid(merger: IntervalMerger) -> int:
    assert merger._child is not None
    return merger._child.pid


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_child_merges_and_is_started_anew(committer: Committer, monkeypatch: pytest.MonkeyPatch) -> None:
    merger = IntervalMerger()
    step = merger.step(committer.store, committer.intervals)
    assert step is not None
    parts, whole = step
    assert [p.interval for p in parts] == [p.interval for p in committer.intervals]
    assert (whole.interval.ids, whole.interval.last) == (20, committer.intervals[-1].interval.last)
    pid = _pid(merger)
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    remove(committer.store, whole.interval)
    os.kill(pid, signal.SIGKILL)
    until(lambda: _is_gone(pid) or _state(pid) == "Z", "it died")
    with pytest.raises(StorageError, match="ended"):
        merger.step(committer.store, committer.intervals)
    monkeypatch.setattr(interval_merging, "_IDLE_S", 0.01)
    again = merger.step(committer.store, committer.intervals)
    assert again is not None
    assert committer.merged(*again)
    assert merger.step(committer.store, committer.intervals) is None, "nothing is due"
    until(lambda: merger._child is None, "it ends without work")
    rows = commit(committer, [Msg("c", msg_id(3)), Msg("c", msg_id(13))])
    assert [(r.status, r.seq) for r in rows] == [("duplicate", 4), ("duplicate", 14)]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_damage_is_told_as_it_is_here(committer: Committer) -> None:
    merger = IntervalMerger()
    gone = committer.intervals[0].interval.ids_names[0]
    committer.store.delete(gone)
    with pytest.raises(DerivedError) as e:
        merger.step(committer.store, committer.intervals)
    assert e.value.file == gone
    merger.stop()
    with pytest.raises(StorageError):
        merger.step(committer.store, committer.intervals)


def test_who_stops_does_not_wait_for_a_merge(committer: Committer) -> None:
    merger = IntervalMerger()
    errors: list[Exception] = []

    def work() -> None:
        try:
            merger.step(committer.store, committer.intervals)
        except StorageError as e:
            errors.append(e)

    thread = threading.Thread(target=work)
    with merger._lock:
        thread.start()
    until(lambda: merger._child is not None or not thread.is_alive(), "it began")
    pid = _pid(merger)
    os.kill(pid, signal.SIGSTOP)  # a merge that takes long
    merger.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert _is_gone(pid)
    assert len(errors) == 1


def test_small_ones_and_other_stores_are_merged_here(committer: Committer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Another(LocalStore):
        pass

    merger = IntervalMerger()
    parts: list[SealedInterval] = committer.intervals
    assert isinstance(committer.store, LocalStore)
    assert merger.step(Another(committer.store.root), parts) is not None
    monkeypatch.setattr(interval_merging, "IN_CHILD_IDS_MIN", 21)
    assert merger.step(committer.store, parts) is not None
    assert merger._child is None


_PARENT = """
import time
from imray.shard.interval_merging import IntervalMerger
merger = IntervalMerger()
print(merger._started().pid, flush=True)
time.sleep(600)
"""


def test_a_child_ends_with_its_parent_however_that_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: "merge_process" in Path(f"/proc/{pid}/cmdline").read_text(), "it runs")
        parent.kill()
    until(lambda: _is_gone(pid) or _state(pid) == "Z", "it ended, too")
