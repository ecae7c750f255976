"""Further rules broken one at a time: those of merging the log into the history, and of deleting what was merged."""

from __future__ import annotations

import pytest

from imray.history import changes, retiring, table
from imray.history.cut import Cuts
from imray.log import reader
from imray.shard import recovery
from tests.simulation.mutations import rule


@rule()
def a_fence_is_deleted(patch: pytest.MonkeyPatch) -> None:
    """What was merged goes, fences too: a former writer finds the name free that its successor's fence had."""
    patch.setattr(retiring, "is_fence", lambda *_: False)


@rule()
def segments_go_without_a_mark(patch: pytest.MonkeyPatch) -> None:
    """Nothing says of a segment that it was merged before it is deleted."""
    patch.setattr(retiring, "put_mark", lambda *_: None)
    patch.setattr(retiring, "marked", lambda *_: 1 << 60)


@rule()
def no_look_after_a_fence(patch: pytest.MonkeyPatch) -> None:
    """Who slept between reading the log and its fence believes the fence, whatever was merged and deleted meanwhile."""
    patch.setattr(recovery, "check_not_deleted", lambda *_: None)


@rule()
def a_missing_name_is_the_end(patch: pytest.MonkeyPatch) -> None:
    """Who follows names takes one that was deleted for the end of the log, or for a lost one."""
    patch.setattr(reader, "check_not_deleted", lambda *_: None)


@rule()
def a_segment_is_merged_twice(patch: pytest.MonkeyPatch) -> None:
    """Two mergers commit what they made of the same segments."""
    patch.setattr(table, "find_conflict", lambda *_: None)
    patch.setattr(changes, "find_conflict", lambda *_: None)


@rule()
def everything_merged_is_deleted(patch: pytest.MonkeyPatch) -> None:
    """Whether checkpoints cover it does not matter."""
    patch.setattr(Cuts, "deletable", lambda self: {log: end.segment for log, end in self.cut().items()})
