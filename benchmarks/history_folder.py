"""What a data folder consists of: bytes and files by kind, and how far the log is ahead of the history.

Reads only what is on disk, so that it asks nothing of the system that is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import say
from imray.history.table import Table
from imray.log.segment import segment_number
from imray.log.store import LocalStore

KINDS = ("wal", "history", "sealed", "checkpoint")
REST = "rest"
LAG_MAX = 100
"""Segments of a log: what a quiet system may hold, and where a load counts as done."""
_BLOCK_BYTES = 512
"""The unit of `st_blocks`."""
_LOOK_S = 0.25
_SAY_S = 30.0


@dataclass(frozen=True)
class FilesOfKind:
    """The files of one kind."""

    files: int = 0
    bytes: int = 0
    blocks: int = 0
    """Bytes of the disk that they occupy: a file of 2 KB takes 4."""

    def __add__(self, other: FilesOfKind) -> FilesOfKind:
        return FilesOfKind(self.files + other.files, self.bytes + other.bytes, self.blocks + other.blocks)


def survey(data: Path) -> dict[str, FilesOfKind]:
    """Every file below a folder, by the folder that it is in: KINDS and REST. One that goes meanwhile is left out."""
    found = dict.fromkeys((*KINDS, REST), FilesOfKind())
    for folder, _, names in os.walk(data):
        parts = Path(folder).relative_to(data).parts
        kind = parts[0] if parts and parts[0] in KINDS else REST
        for name in names:
            try:
                stat = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            found[kind] += FilesOfKind(1, stat.st_size, stat.st_blocks * _BLOCK_BYTES)
    return found


def total(found: dict[str, FilesOfKind]) -> FilesOfKind:
    """All kinds together."""
    return sum(found.values(), FilesOfKind())


def segments_of(data: Path) -> dict[str, list[int]]:
    """The segments that are there now, ascending, by their log's folder."""
    found: dict[str, list[int]] = {}
    wal = data / "wal"
    for folder in sorted(wal.iterdir()) if wal.is_dir() else []:
        found[folder.name] = sorted(map(segment_number, os.listdir(folder)))
    return found


def log_number(folder: str) -> int:
    """The log whose segments stand in a folder `shard=0007`."""
    return int(folder.partition("=")[2])


class Lag:
    """How many segments of each log are not merged yet, and how many there are."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._table = Table(LocalStore(data))
        self._known = self._table.snapshot()

    def unmerged(self) -> int:
        """Of the log that has the most."""
        self._known = self._table.snapshot(self._known)
        merged = self._known.merged
        behind = [
            sum(number > merged.get(log_number(folder), 0) for number in numbers)
            for folder, numbers in segments_of(self._data).items()
        ]
        return max(behind, default=0)

    def files(self) -> int:
        """Segments on disk, of the log that has the most."""
        return max(map(len, segments_of(self._data).values()), default=0)

    @property
    def version(self) -> int:
        """Of the table, at the last look."""
        return self._known.version

    def await_merged(self, seconds: float) -> float:
        """When no log has LAG_MAX unmerged segments any more (time.monotonic). RuntimeError: not in so long."""
        left = _await(self.unmerged, seconds, "unmerged segments")
        if left > LAG_MAX:
            raise RuntimeError(f"a log still has {left:,} unmerged segments after {seconds:.0f} s")
        return time.monotonic()

    def await_deleted(self, seconds: float) -> int:
        """Wait until no log has more than LAG_MAX segments on disk, or for so long: how many the longest has then."""
        return _await(self.files, seconds, "segments on disk")


def _await(count: Callable[[], int], seconds: float, what: str) -> int:
    deadline = time.monotonic() + seconds
    shown = time.monotonic() + _SAY_S
    while (left := count()) > LAG_MAX:
        now = time.monotonic()
        if now > deadline:
            break
        if now > shown:
            say(f"{left:,} {what}")
            shown = now + _SAY_S
        time.sleep(_LOOK_S)  # between two looks
    return left
