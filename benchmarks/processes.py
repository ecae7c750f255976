"""What processes and their threads used of the CPU, out of /proc. Starts and ends none."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_OTHER = "other"
# Fields of a stat file, counted after the name in brackets
_PARENT = 1
_USER = 11
_KERNEL = 12
# Fields of the first line of /proc/stat, counted after the word "cpu"
_IDLE = 3
_WAITS_FOR_DISK = 4
_STOLEN = 7
_GUESTS = 8


@dataclass(frozen=True)
class CpuTime:
    """Seconds on a core, in steps of 10 ms."""

    user_s: float = 0.0
    kernel_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.user_s + self.kernel_s

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s + other.user_s, self.kernel_s + other.kernel_s)

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s - other.user_s, self.kernel_s - other.kernel_s)


def parse_stat(text: str) -> CpuTime:
    """What a stat file of a process or a thread says. Its name may hold spaces and brackets."""
    fields = text.rpartition(")")[2].split()
    return CpuTime(int(fields[_USER]) * _TICK_S, int(fields[_KERNEL]) * _TICK_S)


def process_cpu(pid: int | None) -> CpuTime:
    """What a process used so far, all its threads together; FileNotFoundError where it has ended."""
    assert pid is not None, "who serves says its process"
    return parse_stat((_PROC / str(pid) / "stat").read_text())


def thread_cpu(pid: int) -> dict[int, CpuTime]:
    """What each thread of a process used so far, by its number; one that ends meanwhile is left out."""
    found: dict[int, CpuTime] = {}
    for folder in (_PROC / str(pid) / "task").iterdir():
        try:
            found[int(folder.name)] = parse_stat((folder / "stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def by_thread(first: dict[int, CpuTime], last: dict[int, CpuTime], names: dict[int, str]) -> dict[str, CpuTime]:
    """What the threads used between two looks, by their names without numbers; "other" for those without a name.

    Who used nothing is left out."""
    used: dict[str, CpuTime] = {}
    for thread, spent in last.items():
        name = re.sub(r"([-_ ]\d+)+$", "", names.get(thread, _OTHER))
        used[name] = used.get(name, CpuTime()) + spent - first.get(thread, CpuTime())
    return {name: spent for name, spent in used.items() if spent.total_s > 0}


def descendants(pid: int) -> dict[int, list[str]]:
    """The processes below one, with the words of their command lines; the first is the title of one that has one."""
    parents: dict[int, int] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(folder.name)] = int(fields[_PARENT])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: _command(child) for child in below - {pid}}


def _command(pid: int) -> list[str]:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]
    return [word.decode(errors="replace").strip() for word in words]


def parse_machine(text: str) -> tuple[float, float]:
    """(seconds busy, seconds stolen by the host) of all cores together, out of /proc/stat."""
    ticks = [int(word) for word in text.splitlines()[0].split()[1:]]
    idle = ticks[_IDLE] + ticks[_WAITS_FOR_DISK] + ticks[_STOLEN]
    # guests' time is in that of users already
    return (sum(ticks[:_GUESTS]) - idle) * _TICK_S, ticks[_STOLEN] * _TICK_S


def machine_cpu() -> tuple[float, float]:
    """As `parse_machine`, now."""
    return parse_machine((_PROC / "stat").read_text())
