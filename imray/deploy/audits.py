"""Audits of a data folder that every node of a cluster can read: each shard is a Ray task, wherever there is room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import ray

from analytics.audit import AskPart, AuditPart, AuditReport, PartAnswers, run
from imray.settings import Settings

_RETRIES = 2
"""A task only reads: it may be done again by another node."""


def audit_over_ray(data: Path | str, settings: Settings | None = None, reports: bool = False) -> AuditReport:
    """As `analytics.audit.run`, in the cluster that this process is connected to."""
    return run(data, settings, reports, spread_over_ray)


def spread_over_ray(
    ask: AskPart, parts: Sequence[AuditPart], settings: Settings, reports: bool
) -> Iterable[PartAnswers]:
    """Ask parts of a folder, all at once as far as there are processors."""
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(ask)
    answers: list[PartAnswers] = ray.get([task.remote(part, settings, reports) for part in parts])
    return answers
