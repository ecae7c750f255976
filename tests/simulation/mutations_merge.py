"""Further rules broken one at a time: those of merging the log into the history, and of deleting what was merged."""

from __future__ import annotations

import pytest

from imray.history import retiring
from imray.log import checkpoint, reader
from imray.shard import recovery
from tests.simulation.mutations import rule


@rule("FAIL I1")
def a_fence_is_deleted(patch: pytest.MonkeyPatch) -> None:
    """What was merged goes, fences too: a former writer finds the name free that its successor's fence had."""
    patch.setattr(retiring, "is_fence", lambda *_: False)


@rule()
def segments_go_without_a_mark(patch: pytest.MonkeyPatch) -> None:
    """Nothing says of a segment that it was merged before it is deleted."""
    patch.setattr(retiring, "put_mark", lambda *_: None)
    patch.setattr(retiring, "marked", lambda *_: 1 << 60)


class _NoNewer:
    """`imray.log.checkpoint` for who does not look whether there is a newer one."""

    def checkpoints(self, *_: object) -> list[str]:
        return []

    def __getattr__(self, name: str) -> object:
        return getattr(checkpoint, name)


@rule()
def no_look_after_a_fence(patch: pytest.MonkeyPatch) -> None:
    """Who slept between reading the log and its fence believes the fence, whatever was merged and deleted meanwhile:
    neither marks nor newer checkpoints are looked for."""
    for who in (recovery, reader):
        patch.setattr(who, "check_not_deleted", lambda *_: None)
    patch.setattr(recovery, "checkpoint", _NoNewer())


@rule()
def a_missing_name_is_the_end(patch: pytest.MonkeyPatch) -> None:
    """Who follows names takes one that was deleted for the end of the log, or for a lost one."""
    patch.setattr(reader, "check_not_deleted", lambda *_: None)
