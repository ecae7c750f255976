"""How everything here is measured: repeats, turns, medians, ratios within a turn, children in processes of their own.

Owns the method. Owns no workload and no question.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

# Of Linux: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL
_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_TOP_FOLDER = 0x00020000
ROOT = Path(__file__).resolve().parent.parent
_CHILD_GRACE_S = 120.0
"""Beyond its own running time: imports, compilation, a loaded machine."""

Sample = Mapping[str, float]
T = TypeVar("T")

_at_end = contextlib.ExitStack()
atexit.register(_at_end.close)


@dataclass(frozen=True)
class Options:
    """What every benchmark takes from the command line."""

    folder: Path
    """Where data is written: on a real disk, or fsync means nothing."""
    repeat: int = 5
    seconds: float = 5.0
    """How long one measurement takes, after warming up."""
    producers: int = 2
    window: int = 4
    """Batches in flight for each producer."""
    quick: bool = False
    """Leave out what takes long and answers a question of its own."""
    quota: float | None = None
    """Cores that each writer may use, for what knows it; None: all."""
    rows: int | None = None
    """Messages of `history`; None: its own default."""
    segments: int | None = None
    """Of `history`: unmerged segments of a folder that is made for it, instead of a load."""

    @contextlib.contextmanager
    def fresh_folder(self) -> Iterator[Path]:
        """An empty data folder, emptied afterwards and gone when the process ends.

        Not sooner: for minutes ext4 without a journal looks at each deleted inode again whenever it makes a file
        (`recently_deleted`), so what one measurement had removed took 1 ms from every commit of the next. It does so
        within a group of inodes, so each folder gets a group of its own, too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _spread_subfolders(self.folder)
        made = tempfile.TemporaryDirectory(prefix="bench-", dir=self.folder, ignore_cleanup_errors=True)
        folder = Path(_at_end.enter_context(made))
        try:
            yield folder
        finally:
            for path in folder.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    os.truncate(path, 0)


def _spread_subfolders(folder: Path) -> None:
    """Have the file system put each new folder below this one far from the others, where it can (as `chattr +T`)."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # no ext4, or not allowed
            flags = bytearray(8)
            fcntl.ioctl(opened, _GET_FLAGS, flags)
            fcntl.ioctl(opened, _SET_FLAGS, (int.from_bytes(flags, "little") | _TOP_FOLDER).to_bytes(8, "little"))
    finally:
        os.close(opened)


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value for each repeat, and what it should reach."""

    name: str
    unit: str
    values: Sequence[float]
    target: float | None = None
    more_is_better: bool = True
    note: str = ""
    benchmark: str = field(default="")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None where there is none."""
        if self.target is None:
            return None
        return self.median >= self.target if self.more_is_better else self.median <= self.target

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"values": list(self.values), "median": self.median, "met": self.met}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Figure:
        """The inverse of `as_dict`."""
        return cls(**{k: v for k, v in raw.items() if k not in ("median", "met")})


def say(text: str) -> None:
    """Progress, beside the results."""
    print(f"  {text}", file=sys.stderr, flush=True)


def in_turns(sides: Mapping[str, Callable[[], Sample]], repeat: int) -> dict[str, list[Sample]]:
    """Run the sides A B A B ..., so that what slows the machine for a while slows both."""
    taken: dict[str, list[Sample]] = {name: [] for name in sides}
    for turn in range(repeat):
        for name, run in sides.items():
            sample = run()
            taken[name].append(sample)
            say(f"turn {turn + 1}/{repeat}  {name}: " + "  ".join(f"{k} {v:,.4g}" for k, v in sample.items()))
    return taken


def column(samples: Sequence[Sample], key: str) -> list[float]:
    """One figure of each sample."""
    return [float(s[key]) for s in samples]


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """of / to, turn by turn: neighbours in time saw the same machine, medians over the whole run may not have."""
    if len(of) != len(to):
        raise ValueError(f"{len(of)} turns against {len(to)}: ratios need pairs")
    return [a / b for a, b in zip(of, to, strict=True)]


def differences(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """of - to, turn by turn."""
    if len(of) != len(to):
        raise ValueError(f"{len(of)} turns against {len(to)}: differences need pairs")
    return [a - b for a, b in zip(of, to, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all are not above (nearest rank)."""
    if not values:
        raise ValueError("no values: nothing was measured")
    rank = math.ceil(round(share * len(values), 6))
    return sorted(values)[max(1, rank) - 1]


def child(module: str, *arguments: object, seconds: float = 0.0, env: Mapping[str, str] | None = None) -> Any:
    """Run `python -m module arguments` in a process of its own; the JSON on its last line of output."""
    command = [sys.executable, "-m", module, *(str(a) for a in arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        timeout=seconds + _CHILD_GRACE_S,
        check=False,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}: its errors stand above")
    return json.loads(lines[-1])


def pin_to_one_core() -> int:
    """Let this process run on one core only (the last it may use); its number. Before libraries start threads."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core
