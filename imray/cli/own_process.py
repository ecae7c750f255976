"""Whether a process that a note names is the `imray up` that wrote the note, and ending it.

A number alone may have passed to another process, or be planted: it is believed only with the start time that was
noted, the owner that we are, and the command line of `imray up`."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping
from pathlib import Path


def started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since boot; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def runs(info: Mapping[str, object]) -> bool:
    """Whether the `imray up` that left this note still runs."""
    pid = info.get("pid")
    noted = info.get("started")
    if not isinstance(pid, int) or pid <= 1 or noted is None or started(pid) != noted:
        return False
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
        arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False  # it ended while we looked
    return owner == os.geteuid() and _is_up(arguments)


def _is_up(arguments: list[str]) -> bool:
    """`imray up ...`, as a script or as `python -m imray.cli up ...`."""
    if "up" not in arguments:
        return False
    program = arguments[: arguments.index("up")]
    return any("imray" in Path(a).name for a in program)


def end(info: Mapping[str, object], timeout_s: float) -> bool:
    """Ask the process to end and wait; False where it still runs after that time. True where it had ended."""
    pid = info.get("pid")
    if not isinstance(pid, int) or not runs(info):
        return True
    try:
        # held before the second look: the signal then reaches that process or none
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not runs(info):
            return True
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        ended, _, _ = select.select([fd], [], [], timeout_s)
        return bool(ended)
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)


__all__ = ["end", "runs", "started"]
