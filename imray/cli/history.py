"""`imray compact` and `imray vacuum`: merging the log of a data folder into its history, and deleting what that has."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from imray.cli.common import Data, Json, find_log, printable
from imray.core.errors import UnavailableError

if TYPE_CHECKING:
    from imray.core.status import MergeStatus
    from imray.history.merger import Merger
    from imray.log.store import Store

_CLOCK_STEP_S = 0.01
"""A sleep may end a little early by another clock."""


def compact(data: Data = None, as_json: Json = False) -> None:
    """Merge the log into the history now, and delete what is merged.

    Works while the system runs (beside its own merger, which does no harm) and while it is down. It goes up to the
    newest checkpoint of each shard: what was written after that waits for the next one, which a running system makes.
    Deleting waits for readers: 20 seconds (IMRAY_READ_S_MAX), or as long as one holds a pin.

    Example:

      imray compact --data ./chat
    """
    _run(find_log(data), as_json, only_vacuum=False)


def vacuum(data: Data = None, as_json: Json = False) -> None:
    """Delete what the history does not need any more: merged segments, replaced files, what merges that died left.

    Works while the system runs and while it is down. Waits for readers as `imray compact` does.

    Example:

      imray vacuum --data ./chat
    """
    _run(find_log(data), as_json, only_vacuum=True)


def _run(folder: Path, as_json: bool, only_vacuum: bool) -> None:
    from imray.history.merger import Merger
    from imray.log.manifest import read
    from imray.log.store import LocalStore
    from imray.settings import Settings

    store = LocalStore(folder)
    manifest = read(store)
    assert manifest is not None, "find_log found it"
    clock = time.monotonic
    merger = Merger(store, manifest.shards, Settings.from_env(), clock, _now_ms, only_vacuum)
    _work(merger)
    waited = False
    while (wait_s := _more_in_s(merger)) is not None:
        if not waited and not as_json and wait_s > 1:
            typer.echo(f"waiting {wait_s:.0f} s for readers of what was merged ...", err=True)
        waited = True
        time.sleep(wait_s + _CLOCK_STEP_S)
        if not _work(merger):
            break  # a pin holds the rest
    _show(store, merger, as_json, only_vacuum)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _work(merger: Merger) -> int:
    """Do all that can be done now: how many pieces of work that were."""
    done = 0
    at_work = list(range(merger.shards))
    while at_work:
        at_work = [shard for shard in at_work if merger.step(shard)]
        done += len(at_work)
    return done


def _more_in_s(merger: Merger) -> float | None:
    waits = [merger.more_in_s(shard) for shard in range(merger.shards)]
    return min((wait for wait in waits if wait is not None), default=None)


def _show(store: Store, merger: Merger, as_json: bool, only_vacuum: bool) -> None:
    done = merger.done
    states = [merger.status(shard) for shard in range(merger.shards)]
    held = [f"shard {state.shard}: {why}" for state in states for why in state.detail]
    unmerged = sum(lag.unmerged for state in states for lag in state.logs)
    kept = sum(lag.segments for state in states for lag in state.logs) - unmerged
    rest = [_rest_of(store, state) for state in states]
    above = sum(one.above for one in rest)
    if as_json:
        said: dict[str, Any] = {name: value for name, value in vars(done).items() if name != "conflicts"}
        said |= {"version": merger.version, "segments_unmerged": unmerged, "segments_above_checkpoint": above}
        said |= {"segments_kept": kept, "held": held}
        typer.echo(json.dumps(said))
    else:
        typer.echo(f"merged {done.segments} segments into {done.runs} runs of {done.bytes:,} bytes")
        typer.echo(f"deleted {done.segments_deleted} segments and {done.files_deleted} files of the history")
        if above:
            typer.echo(f"{above} segments are above the newest checkpoint: a running system makes the next one")
        for one in rest:
            for line in one.lines(only_vacuum):
                typer.echo(printable(line))
        if kept:
            typer.echo(f"{kept} merged segments stay: for a reader, or until two checkpoints cover them")
    if held:
        raise UnavailableError("; ".join(held))


@dataclass(frozen=True)
class _Rest:
    """What is not merged of one shard, by why."""

    shard: int
    above: int
    """Segments that its newest checkpoint does not cover."""
    below: list[tuple[int, str]]
    """Of each log: how many segments could be merged, and the error that holds them back (empty: none does)."""

    def lines(self, only_vacuum: bool) -> list[str]:
        """What is said of those that could be merged."""
        held: dict[str, int] = {}
        for count, why in self.below:
            held[why] = held.get(why, 0) + count
        free = "`imray compact` merges them" if only_vacuum else "another merger was at work: run it again"
        return [
            f"{count} segments of shard {self.shard} are "
            + (f"held back by an error: {why}" if why else f"not merged: {free}")
            for why, count in held.items()
        ]


def _rest_of(store: Store, state: MergeStatus) -> _Rest:
    from imray.history.cut import cut_of
    from imray.history.lag import lag_of

    ends = cut_of(store, state.shard)
    above = 0
    below = []
    for lag in state.logs:
        end = ends.get(lag.log)
        # a system that runs writes on: what came since the state was taken is left out
        over = min(lag.unmerged, lag_of(store, lag.log, end.segment).unmerged) if end else lag.unmerged
        above += over
        if lag.unmerged > over:
            below.append((lag.unmerged - over, _held_back(state, lag.log)))
    return _Rest(state.shard, above, below)


def _held_back(state: MergeStatus, log: int) -> str:
    """The error that keeps a log from being merged, as its shard's state has it; empty: none does."""
    stages = ("table: ", "merge: ", f"log {log}: ")
    return "; ".join(why for why in state.detail if why.startswith(stages))
