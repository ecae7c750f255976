"""Servers as processes: started, awaited, killed with all that they started, ended whatever happens."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0


_started: list[Daemon] = []


class Daemon:
    """One server process. `user` names another user to run as: some servers refuse root."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stop: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._command, self._folder, self._ready, self._stop = list(command), folder, ready, stop
        self._env, self._user = os.environ | (env or {}), user
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{Path(command[0]).name}.log"
        _started.append(self)
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers; RuntimeError with the end of its log where it does not."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._command[0]} did not start:\n{tail}")
            time.sleep(0.05)  # between two looks

    def kill(self) -> None:
        """SIGKILL to it and to all that it started."""
        if self._process is not None and self._process.poll() is None:
            _kill_all(self._process.pid)
            self._process.wait(_STOP_TIMEOUT_S)

    def stop(self) -> None:
        """End it in good order, and by force where that takes too long."""
        if self._process is None or self._process.poll() is not None:
            return
        family = descendants(self._process.pid)
        self._process.send_signal(self._stop)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        _kill(family)


def _kill_all(pid: int) -> None:
    """Kill a process and its descendants. Stopped first, so that none starts another meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    _kill([pid, *descendants(pid)])


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while not all(dead(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)  # between two looks


def end_leftovers() -> None:
    """Kill every daemon that still runs: a start or an end failed half-way."""
    for daemon in _started:
        daemon.kill()
    _started.clear()


def dead(pid: int) -> bool:
    """Whether a process is gone, or only its entry is left."""
    fields = _stat(pid)
    return fields is None or fields[0] in "ZX"


def descendants(pid: int) -> list[int]:
    """All processes that a process started, and those that these started, as /proc tells it now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    left = [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _stat(pid: int) -> list[str] | None:
    """State, parent and so on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def needs(things: Mapping[str, object], packages: Mapping[str, str]) -> str | None:
    """What is not there: of `things` by name, and of `packages` (name: module), which make installs; None: all is."""
    absent = [name for name, found in things.items() if not found]
    modules = [name for name, module in packages.items() if importlib.util.find_spec(module) is None]
    if modules:
        absent.append(f"{', '.join(modules)} (Python packages; `make bench-peers` installs them)")
    return "; ".join(absent) or None


def version_of(command: Sequence[str], *packages: str) -> str:
    """What a program says of its version, and the versions of packages."""
    said = subprocess.run(command, capture_output=True, check=True, text=True, timeout=_STOP_TIMEOUT_S).stdout
    return ", ".join([said.strip().splitlines()[0], *(f"{name} {metadata.version(name)}" for name in packages)])


def listens(port: int) -> bool:
    """Whether a TCP port of loopback takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def other_user(*names: str) -> str | None:
    """The first of these users that exists, where this process is root; None: run as who we are."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    found = next((name for name in names if name in known), None)
    if found is None:
        raise RuntimeError(f"root may not run this server, and there is no user {' or '.join(names)}")
    return found


def disk_bytes(folder: Path) -> int:
    """What the files below a folder take on the disk, in bytes; one that is removed meanwhile is not counted."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += 512 * os.lstat(os.path.join(base, name)).st_blocks
    return total
