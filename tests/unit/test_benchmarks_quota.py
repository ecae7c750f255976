"""What the benchmarks read of CPU, threads and cgroups, and how senders are spread. Limits and measures nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import hot_group_quota, quota
from benchmarks.__main__ import NAMES, minutes
from benchmarks.harness import ROOT, Options
from benchmarks.processes import CpuTime, by_thread, descendants, parse_machine, parse_stat, process_cpu, thread_cpu
from benchmarks.quota import NoQuotaError, Quotas, Throttling, find_hierarchy, own_path, parse_cpu_stat
from benchmarks.requests import ArrowBatch, Target
from benchmarks.senders import spread_topics
from imray.core.routing import slot_for
from imray.log.schema import check_batch, from_ipc
from imray.settings import Settings

_TARGET = Target("127.0.0.1:1", "token")


def test_throttling_in_both_versions() -> None:
    first = "nr_periods 10\nnr_throttled 4\nthrottled_time 2500000000\nnr_bursts 0\nburst_time 0\n"
    second = "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2500000\n"
    assert parse_cpu_stat(first) == parse_cpu_stat(second) == Throttling(10, 4, 2.5)
    assert Throttling(10, 4, 2.5) - Throttling(4, 1, 0.5) == Throttling(6, 3, 2.0)
    assert parse_cpu_stat("usage_usec 5\n") == Throttling()


def test_a_quota_is_short_and_never_less_than_the_kernel_takes() -> None:
    assert quota.period_and_quota_us(0.15) == (10_000, 1_500)
    assert quota.period_and_quota_us(2.0) == (10_000, 20_000)
    assert quota.period_and_quota_us(0.05) == (20_000, 1_000)


def test_own_path_in_each_hierarchy() -> None:
    text = "9:name=systemd:/init\n4:cpu,cpuacct:/docker/a:b\n2:cpuset:/\n0::/user.slice/x\n"
    assert own_path(text, "cpu") == "/docker/a:b"
    assert own_path(text, "cpuset") == "/"
    assert own_path(text, "") == "/user.slice/x"
    assert own_path(text, "memory") == "/"


def _group(folder: Path, hands_on: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").touch()
    if hands_on is not None:
        (folder / "cgroup.subtree_control").write_text(hands_on)
    return folder


def test_groups_of_version_1_are_made_below_our_own(tmp_path: Path) -> None:
    root = _group(tmp_path / "cpu")
    assert find_hierarchy(tmp_path, "1:cpu:/gone\n") == quota.Hierarchy(1, root, root)
    own = _group(root / "ours")
    assert find_hierarchy(tmp_path, "1:cpu:/ours\n0::/\n") == quota.Hierarchy(1, root, own)


@pytest.mark.parametrize("place", ["", "unified"])
def test_groups_of_version_2_are_made_where_the_controller_is_handed_on(tmp_path: Path, place: str) -> None:
    root = _group(tmp_path / "mount" / place, "cpuset memory\n")
    session = _group(root / "user" / "session", "")
    with pytest.raises(NoQuotaError, match="no cpu controller"):
        find_hierarchy(tmp_path / "mount", "0::/user/session\n")
    (root / "cgroup.subtree_control").write_text("cpuset cpu memory\n")
    assert find_hierarchy(tmp_path / "mount", "0::/user/session\n") == quota.Hierarchy(2, root, root)
    (session / "cgroup.subtree_control").write_text("cpu\n")
    assert find_hierarchy(tmp_path / "mount", "0::/user/session\n") == quota.Hierarchy(2, root, session)


def test_without_cgroups_it_is_skipped_and_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hot_group_quota, "find_hierarchy", lambda: find_hierarchy(tmp_path, ""))
    assert hot_group_quota.run(Options(tmp_path, quota=0.15)) == []
    assert capsys.readouterr().err.count("skipped: no cpu controller") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "wanted"),
    [(1, {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "1500"}), (2, {"cpu.max": "1500 10000"})],
)
def test_a_process_gets_its_quota_once_and_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, wanted: dict[str, str]
) -> None:
    monkeypatch.setattr(quota, "_remove", lambda group: made.append(group))
    made: list[Path] = []
    root = _group(tmp_path / "root")
    limits = Quotas(quota.Hierarchy(version, root, root), 0.15)
    limits.limit(os.getpid())
    limits.limit(os.getpid())
    (group,) = (path for path in root.iterdir() if path.is_dir())
    assert {path.name: path.read_text() for path in group.iterdir()} == wanted | {"cgroup.procs": str(os.getpid())}
    (group / "cpu.stat").write_text("nr_periods 2\nnr_throttled 1\n")
    assert limits.throttling(os.getpid()) == Throttling(2, 1, 0.0)
    limits.remove()
    assert (root / "cgroup.procs").read_text() == str(os.getpid())
    assert made == [group]


@pytest.mark.parametrize("partitions", [1, 2, 4, 8])
def test_senders_fall_evenly_on_the_partitions(partitions: int) -> None:
    topics = spread_topics(8)
    assert len(set(topics)) == 8
    slots = [slot_for(topic, partitions) for topic in topics]
    assert {slot: slots.count(slot) for slot in slots} == {k + 1: 8 // partitions for k in range(partitions)}


def test_what_all_senders_have_in_flight_fits_into_a_gateway() -> None:
    rooms = {rows: hot_group_quota.window_for(4, rows) for rows in hot_group_quota.ROWS}
    assert rooms == {200: 4, 2_500: 4, 10_000: 1}
    assert all(8 * rows * window < Settings().gateway_queue_rows_max for rows, window in rooms.items())
    assert hot_group_quota.window_for(1, 2_500) == 1


def test_all_messages_of_a_sender_have_its_topic() -> None:
    source = ArrowBatch(_TARGET, ["a"], 3, "topic-7")
    batch = from_ipc(bytes(source.next()).partition(b"\r\n\r\n")[2])
    check_batch(batch)
    assert batch.column("topic").to_pylist() == ["topic-7"] * 3


def test_cpu_of_a_process_with_any_name() -> None:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    text = "12 (a) b (c)) S " + " ".join(str(n) for n in range(4, 40))
    assert parse_stat(text) == CpuTime(14 * tick_s, 15 * tick_s)
    assert CpuTime(2.0, 3.0) - CpuTime(1.0, 0.5) == CpuTime(1.0, 2.5)
    assert CpuTime(2.0, 3.0).total_s == 5.0
    assert process_cpu(os.getpid()).total_s >= 0
    assert os.getpid() in thread_cpu(os.getpid())


def test_the_processes_below_one_are_found_with_their_commands() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", "a word"], stdin=subprocess.PIPE) as started:
        assert descendants(os.getpid())[started.pid][-2:] == ["a word", ""]
        started.communicate(b"\n")
    assert started.pid not in descendants(os.getpid())


def test_the_machine_is_busy_with_what_is_not_idle_and_not_stolen() -> None:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal guest guest_nice
    busy_s, stolen_s = parse_machine("cpu  100 10 50 1000 200 3 7 20 40 5\ncpu0 1 1 1 1\n")
    assert busy_s == pytest.approx(170 * tick_s)
    assert stolen_s == pytest.approx(20 * tick_s)


def test_threads_are_told_apart_by_their_python_names() -> None:
    first = {1: CpuTime(1.0, 0.0), 2: CpuTime(1.0, 1.0)}
    last = {1: CpuTime(3.0, 0.0), 2: CpuTime(1.0, 2.0), 3: CpuTime(0.5, 0.0), 4: CpuTime(0.25, 0.0)}
    first[5] = last[5] = CpuTime(9.0, 9.0)
    used = by_thread(first, last, {1: "commit-0_0", 2: "put-shard 0_0", 3: "put-shard 0_1", 5: "merge-0_0"})
    assert used == {"commit": CpuTime(2.0, 0.0), "put-shard": CpuTime(0.5, 1.0), "other": CpuTime(0.25, 0.0)}


def test_a_benchmark_says_that_it_does_not_know_a_quota(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "restart", "hot_group_scaling", "--quota", "0.15"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "restart" in run.stderr
    assert "--quota" in run.stderr


def test_every_benchmark_has_an_estimate(tmp_path: Path) -> None:
    assert all(minutes([name], Options(tmp_path)) >= 1.0 for name in NAMES)
    plain = minutes(["hot_group_scaling"], Options(tmp_path))
    assert minutes(["hot_group_scaling"], Options(tmp_path, quota=0.15)) != plain
