"""From a plan to the answers of its requests. Shards and partitions answer alike: they differ in who planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from imray.core.columns import Plan, RowStatus
from imray.core.replies import Appended, Firsts, Refusal, Refused
from imray.log.rows import Prepared

_IN_FLIGHT = Refusal(
    Refused.UNAVAILABLE, "an earlier send of one of these ids is not settled yet: retry with the same ids", 0.05
)


@dataclass(frozen=True)
class Written:
    """Where and when a plan's new rows stand."""

    epoch: int
    log_position: int
    server_ts: int
    stables: np.ndarray
    """One value a row."""
    hot: dict[str, int] = field(default_factory=dict)
    """How many partitions each hot conversation of the plan has."""


def answers_of(requests: Sequence[Prepared], planned: Plan, written: Written) -> list[Appended | Refusal]:
    """An answer for each request, whose rows follow each other in the plan.

    A request with an id that is in flight elsewhere is told to come back: whether that is a message is unknown."""
    one = planned.new_rows is None and len(planned.touched) == 1
    answers: list[Appended | Refusal] = []
    new_before = start = 0
    for request in requests:
        end = start + len(request)
        if one:
            answers.append(
                Appended(
                    len(request), written.epoch, written.log_position, written.server_ts, start,
                    int(planned.seq[start]), int(written.stables[0]), None, written.hot or None,
                )
            )  # fmt: skip
            start = end
            continue
        firsts = _firsts(planned, start, end, written)
        stables = written.stables[start:end]
        same = end - start == 1 or bool((stables == stables[0]).all())
        answer = Appended(
            len(request), written.epoch, written.log_position, written.server_ts, new_before,
            planned.seq[start:end], int(stables[0]) if same else stables, firsts, written.hot or None,
        )  # fmt: skip
        new_before += len(request) - (len(firsts.at) if firsts is not None else 0)
        flying = firsts is not None and bool((firsts.status == RowStatus.IN_FLIGHT).any())
        answers.append(_IN_FLIGHT if flying else answer)
        start = end
    return answers


def _firsts(planned: Plan, start: int, end: int, written: Written) -> Firsts | None:
    if planned.log_position is None or planned.epoch is None or planned.server_ts is None:
        return None
    at = np.flatnonzero(planned.status[start:end])
    if not len(at):
        return None
    rows = at + start
    here = planned.log_position[rows] == -1
    return Firsts(
        at,
        planned.status[rows],
        np.where(here, written.log_position, planned.log_position[rows]),
        planned.row_in_segment[rows],
        np.where(here, written.epoch, planned.epoch[rows]),
        np.where(here, written.server_ts, planned.server_ts[rows]),
    )
