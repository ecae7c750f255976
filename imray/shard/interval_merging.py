"""Merges of sealed intervals, out of the process that numbers: a merge of millions of ids takes seconds of a core, and
holds the interpreter's lock now and then.

Owns the child process: it is started for a merge that is worth it, runs with less priority, ends with its parent and
after a while without work, and is started anew where it died. Does not own what a merge does (`imray.log.sealed`), nor
which are due (`imray.log.checkpoint`). Smaller merges, and those of stores that a child cannot open, are made here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

import msgspec

from imray.core.errors import DerivedError, StorageError
from imray.core.intervals import Interval
from imray.log import checkpoint
from imray.log.sealed import SealedInterval, merge_due, open_interval
from imray.log.store import LocalStore, Store

IN_CHILD_IDS_MIN = 200_000
"""Fewer take less than a child takes to start: half a second of CPU."""
_IDLE_S = 60.0
"""A child without work ends then: it holds 100 MB, and merges of one size come one after the other."""
_NICE = 10


class MergeRequest(msgspec.Struct, frozen=True):
    """What a child is to do: one line of JSON."""

    root: str
    """Of the data folder."""
    intervals: list[Interval]


class MergeAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of it: one line of JSON."""

    made: Interval | None = None
    derived: tuple[str, str] | None = None
    """File and check of a DerivedError."""
    failed: str | None = None
    """A StorageError."""


class IntervalMerger:
    """The merges of one shard. `step` in one thread, `stop` in any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._idle: threading.Timer | None = None
        self._is_busy = False
        self._stopped = False

    def step(
        self, store: Store, intervals: Sequence[SealedInterval]
    ) -> tuple[list[SealedInterval], SealedInterval] | None:
        """As `imray.log.checkpoint.merge_step`. StorageError, too, where the child died: another try starts another."""
        due = merge_due([s.interval for s in intervals])
        if due is None:
            return None
        parts = list(intervals[due])
        if type(store) is not LocalStore or sum(p.interval.ids for p in parts) < IN_CHILD_IDS_MIN:
            return checkpoint.merge_step(store, intervals)
        request = MergeRequest(str(store.root), [p.interval for p in parts])
        made = self._in_child(request)
        return parts, open_interval(store, made).loaded()

    def _in_child(self, request: MergeRequest) -> Interval:
        try:
            child = self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(msgspec.json.encode(request) + b"\n")
            child.stdin.flush()
            answer = msgspec.json.decode(child.stdout.readline(), type=MergeAnswer)
        except (OSError, ValueError, msgspec.DecodeError) as e:
            self._end_child()
            raise StorageError(f"the process that merges sealed intervals ended: {e}") from e
        self._end_when_idle()
        if answer.derived is not None:
            raise DerivedError(*answer.derived)
        if answer.made is None:
            raise StorageError(answer.failed or "a merge of sealed intervals came to nothing")
        return answer.made

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise OSError("no more merges are made")
            self._is_busy = True
            if self._child is None:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "imray.shard.merge_process", str(os.getpid()), str(_NICE)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            return self._child

    def _end_when_idle(self) -> None:
        with self._lock:
            self._is_busy = False
            if self._idle is not None:
                self._idle.cancel()
            self._idle = threading.Timer(_IDLE_S, self._end_idle)
            self._idle.daemon = True
            self._idle.start()

    def _end_idle(self) -> None:
        with self._lock:
            child = None if self._is_busy else self._child
            if child is not None:
                self._child = None
        _end(child)

    def _end_child(self) -> None:
        with self._lock:
            child = self._child
            self._child = None
            self._is_busy = False
        _end(child)

    def stop(self) -> None:
        """Make no more: what is being made comes to nothing, and nobody has to wait for it."""
        with self._lock:
            self._stopped = True
            child = self._child
        if child is not None:
            child.kill()  # whoever waits for its answer ends it
            child.wait()


def _end(child: subprocess.Popen[bytes] | None) -> None:
    if child is None:
        return
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written yet goes nowhere
                pipe.close()
