"""What the figures were measured on: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.workload import chat_file

_PACKAGES = ("imray", "ray", "pyarrow", "numpy", "numba", "xxhash", "fastapi", "uvicorn", "uvloop", "httptools")
NOT_DISKS = ("tmpfs", "ramfs")


def describe(folder: Path) -> dict[str, str]:
    """The machine, the disk under `folder` and the versions."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": " on ".join(filesystem(folder)),
        "load before": " ".join(f"{x:.2f}" for x in os.getloadavg()),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
        "commit": _commit(),
        "text": "irc-ubuntu" if chat_file() else "generated words",
    }


def filesystem(folder: Path, mounts: str | None = None) -> tuple[str, str]:
    """(type, device) of the file system that holds a folder."""
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    best, found = -1, ("unknown", "unknown")
    for line in text.splitlines():
        device, point, kind = line.split()[:3]
        at = Path(point.encode().decode("unicode_escape"))
        # the last mount on a point hides earlier ones
        if (at == folder or at in folder.parents) and len(at.parts) >= best:
            best, found = len(at.parts), (kind, device)
    return found


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
