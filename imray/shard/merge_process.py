"""The child process that merges sealed intervals: requests come in, answers go out, a line of JSON each.

Owns nothing but that loop. Who starts it: `imray.shard.interval_merging`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import msgspec

from imray.core.errors import DerivedError, StorageError
from imray.log.sealed import merge, open_interval
from imray.log.store import LocalStore
from imray.shard.interval_merging import MergeAnswer, MergeRequest

_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> None:
    """Have the system end this process when its parent ends, however that ends."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return  # not Linux: the end of the input ends it, after a merge
    if os.getppid() != parent:
        sys.exit(0)  # it ended before that


def _answer(request: MergeRequest) -> MergeAnswer:
    store = LocalStore(request.root)
    try:
        made = merge(store, [open_interval(store, interval) for interval in request.intervals])
    except DerivedError as e:
        return MergeAnswer(derived=(e.file, e.check))
    except StorageError as e:
        return MergeAnswer(failed=str(e))
    return MergeAnswer(made=made.interval)


def main() -> None:
    """Answer requests until the input ends. Arguments: the parent's process id, and how nice to be."""
    parent, nice = map(int, sys.argv[1:3])
    _end_with(parent)
    os.nice(nice)
    # what a library prints is no answer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        answers.write(msgspec.json.encode(_answer(msgspec.json.decode(line, type=MergeRequest))) + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
