"""A limit on the CPU of single processes: a cgroup for each, with a quota. Version 1 and version 2 of cgroups.

Owns the groups that it makes, and removes them. Owns no process: each goes back to the group that it came from.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_PERIOD_US = 10_000
"""Short: a process that has used its share waits for the next period, and that must not show as latency."""
_QUOTA_US_MIN = 1_000
"""The kernel takes no less."""
_REMOVE_TIMEOUT_S = 2.0
_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


class NoQuotaError(Exception):
    """This machine lets us limit no process; the text says why."""


@dataclass(frozen=True)
class Hierarchy:
    """Where groups with a CPU quota are made."""

    version: int
    mount: Path
    parent: Path
    """New groups go below this one."""


@dataclass(frozen=True)
class Throttling:
    """What a group was held up by, since it was made."""

    periods: int = 0
    throttled_periods: int = 0
    throttled_s: float = 0.0
    """Summed over cores: threads on two cores that wait a second wait two."""

    def __sub__(self, other: Throttling) -> Throttling:
        return Throttling(
            self.periods - other.periods,
            self.throttled_periods - other.throttled_periods,
            self.throttled_s - other.throttled_s,
        )


def parse_cpu_stat(text: str) -> Throttling:
    """What the file cpu.stat says: nanoseconds in version 1, microseconds in version 2."""
    values = {name: int(value) for name, value in (line.split() for line in text.splitlines())}
    if "throttled_usec" in values:
        throttled_s = values["throttled_usec"] / 1e6
    else:
        throttled_s = values.get("throttled_time", 0) / 1e9
    return Throttling(values.get("nr_periods", 0), values.get("nr_throttled", 0), throttled_s)


def period_and_quota_us(cores: float) -> tuple[int, int]:
    """Period and quota that make so many cores: 10 ms, or as long as the least quota asks for."""
    period_us = max(_PERIOD_US, round(_QUOTA_US_MIN / cores))
    return period_us, max(_QUOTA_US_MIN, round(period_us * cores))


def own_path(cgroups: str, controller: str) -> str:
    """A process's path in a hierarchy, out of its file /proc/PID/cgroup; the controller "" is version 2."""
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def find_hierarchy(mount: Path = _CGROUPS, cgroups: str | None = None) -> Hierarchy:
    """Where this process may make groups with a quota. NoQuotaError where there is no such place.

    In version 1 below its own group, in version 2 below the nearest group that hands the controller on."""
    text = (_PROC / "self" / "cgroup").read_text() if cgroups is None else cgroups
    for folder in ("cpu", "cpu,cpuacct", "cpuacct,cpu"):
        root = mount / folder
        if (root / "cgroup.procs").exists():
            own = root / own_path(text, "cpu").lstrip("/")
            return _usable(Hierarchy(1, root, own if own.is_dir() else root))
    for root in (mount, mount / "unified"):
        at = root / own_path(text, "").lstrip("/")
        for parent in (at, *at.parents):
            handed_on = parent / "cgroup.subtree_control"
            if handed_on.exists() and "cpu" in handed_on.read_text().split():
                return _usable(Hierarchy(2, root, parent))
            if parent == root:
                break
    raise NoQuotaError(f"no cpu controller of cgroups below {mount}")


def _usable(found: Hierarchy) -> Hierarchy:
    if not os.access(found.parent, os.W_OK) or not os.access(found.parent / "cgroup.procs", os.W_OK):
        raise NoQuotaError(f"{found.parent} is not ours to write: this needs root")
    return found


@dataclass
class Quotas:
    """Groups of one process each, all with the same quota."""

    hierarchy: Hierarchy
    cores: float
    _name: str = field(default_factory=lambda: f"imray-bench-{secrets.token_hex(4)}")
    _groups: dict[int, Path] = field(default_factory=dict)
    _origins: dict[int, str] = field(default_factory=dict)

    def limit(self, pid: int) -> None:
        """Give a process its quota, all its threads together; one that has it keeps it.

        NoQuotaError where the kernel refuses."""
        if pid in self._groups:
            return
        group = self.hierarchy.parent / f"{self._name}-{pid}"
        controller = "cpu" if self.hierarchy.version == 1 else ""
        self._origins[pid] = own_path((_PROC / str(pid) / "cgroup").read_text(), controller)
        period_us, quota_us = period_and_quota_us(self.cores)
        try:
            group.mkdir()
            self._groups[pid] = group
            if self.hierarchy.version == 1:
                (group / "cpu.cfs_period_us").write_text(str(period_us))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (group / "cpu.max").write_text(f"{quota_us} {period_us}")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as e:
            raise NoQuotaError(f"the kernel took no quota: {e}") from e

    def throttling(self, pid: int) -> Throttling:
        """What a limited process was held up by so far."""
        return parse_cpu_stat((self._groups[pid] / "cpu.stat").read_text())

    def remove(self) -> None:
        """Let every process go back to where it came from, and remove the groups."""
        for pid in self._groups:
            for home in (self.hierarchy.mount / self._origins[pid].lstrip("/"), self.hierarchy.parent):
                # its group may be out of sight, and it may have ended
                with contextlib.suppress(OSError):
                    (home / "cgroup.procs").write_text(str(pid))
                    break
        for group in self._groups.values():
            _remove(group)
        self._groups.clear()


def _remove(group: Path) -> None:
    """A group is busy for a moment while its last process ends."""
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    while True:
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def quotas(cores: float) -> Iterator[Quotas]:
    """Groups with a quota of so many cores, removed whatever happens. NoQuotaError where there can be none."""
    made = Quotas(find_hierarchy(), cores)
    try:
        yield made
    finally:
        made.remove()
