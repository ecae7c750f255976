"""The audits: every question of `analytics.queries`, asked of a data folder, whether the system runs or is down.

Owns what is asked together: verified files, shard by shard where they are many. Does not own what is asked: one SQL
file a question.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from analytics.findings import ROWS_SHOWN_MAX, AuditReport, Finding, questions
from analytics.parts import AuditPart, PartAnswers, ask_part, combined
from analytics.snapshots import Opened, on_snapshot, sources_of
from analytics.verified import VerifiedSegment, Verifier
from analytics.views import connect, open_files
from imray.core.errors import CorruptError, UnavailableError
from imray.core.routing import home_of
from imray.history.layout import run_prefix
from imray.history.snapshot import RunFile
from imray.log.segment import segment_prefix
from imray.settings import Settings

__all__ = ["AuditPart", "AuditReport", "Finding", "PartAnswers", "in_processes", "in_sequence", "questions", "run"]

_CORRUPT_TITLE = "files that are missing, changed, or not in their place"
ROWS_TOGETHER_MAX = 2_000_000
"""More rows are asked shard by shard, at once where there are processes for it."""

AskPart = Callable[[AuditPart, Settings, bool], PartAnswers]
Spread = Callable[[AskPart, Sequence[AuditPart], Settings, bool], Iterable[PartAnswers]]
"""Asks parts: in this process, or in others."""


def in_sequence(ask: AskPart, parts: Sequence[AuditPart], settings: Settings, reports: bool) -> Iterable[PartAnswers]:
    """One part after the other, here."""
    return [ask(part, settings, reports) for part in parts]


def in_processes(ask: AskPart, parts: Sequence[AuditPart], settings: Settings, reports: bool) -> Iterable[PartAnswers]:
    """As many at once as there are processors."""
    if len(parts) == 1:
        return in_sequence(ask, parts, settings, reports)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(parts), os.cpu_count() or 1), context) as pool:
        return list(pool.map(ask, parts, repeat(settings), repeat(reports)))


def run(
    data: Path | str, settings: Settings | None = None, reports: bool = True, spread: Spread = in_sequence
) -> AuditReport:
    """Ask every question of a data folder; without `reports` for violations only, which is far cheaper where there are
    many messages. InvalidError where it is none.

    A log or a history that does not verify is itself a violation, `corrupt`; the other audits then cover each log up to
    its first fault, and no shard that a damaged run belongs to, nor one whose merged rows the table has lost."""
    settings = settings or Settings.from_env()
    return on_snapshot(data, settings, lambda opened: _audit(opened, settings, reports, spread), True)


def _audit(opened: Opened, settings: Settings, reports: bool, spread: Spread) -> AuditReport:
    verifier = opened.verifier
    found, faults, unsure = _survey(verifier)
    damaged = opened.runs.faults(opened.files)
    faults += damaged
    for fault in faults:
        opened.raise_if_replaced(fault)
    faults = [*opened.faults, *faults]
    shards = verifier.manifest().shards
    hit = opened.lost | {home for home in range(shards) for fault in damaged if fault.file.startswith(run_prefix(home))}
    homes = [home for home in range(shards) if home not in hit]
    parts = _parts(opened, found, unsure, homes, settings)
    try:
        answers = list(spread(ask_part, parts, settings, reports))
    except UnavailableError:
        _check_unchanged(opened, found, parts)
        raise
    try:
        _check_unchanged(opened, found, parts)
    except CorruptError as e:
        opened.raise_if_replaced(e)
        faults.append(e)
    rows: list[list[object]] = [[e.file, e.where, e.check] for e in faults[:ROWS_SHOWN_MAX]]
    columns = ["file", "place", "check"]
    corrupt = Finding("corrupt", _CORRUPT_TITLE, "violation", len(faults), columns, rows)
    return AuditReport(sum(a.segments for a in answers), [corrupt, *combined(answers, settings)])


def _check_unchanged(opened: Opened, found: Sequence[VerifiedSegment], parts: Sequence[AuditPart]) -> None:
    opened.verifier.unchanged(found)
    opened.runs.unchanged([f for part in parts for f in part.files])


def _parts(
    opened: Opened,
    found: Sequence[VerifiedSegment],
    unsure: set[tuple[int, int]],
    homes: Sequence[int],
    settings: Settings,
) -> list[AuditPart]:
    """All shards as one part, or each as one where they are large."""
    found = [s for s in found if home_of(s.meta.shard)[0] in homes]
    files = [f for f in opened.files if f.shard in homes]
    total = sum(s.meta.rows for s in found) + sum(f.rows for f in files)
    together = total <= ROWS_TOGETHER_MAX or not homes
    groups = [tuple(homes)] if together else [(home,) for home in homes]
    newest = _newest_us(opened, found, files, settings) if len(groups) > 1 else None
    data = str(opened.verifier.data)
    shards = opened.verifier.manifest().shards
    return [
        AuditPart(
            data=data,
            shards=shards,
            homes=group,
            segments=[s for s in found if home_of(s.meta.shard)[0] in group],
            files=[f for f in files if f.shard in group],
            unsure=sorted((log, segment) for log, segment in unsure if home_of(log)[0] in group),
            newest_us=newest,
        )
        for group in groups
    ]


def _newest_us(opened: Opened, found: Sequence[VerifiedSegment], files: Sequence[RunFile], settings: Settings) -> int:
    """When the newest record of the folder was committed, of what is sound."""
    with connect(settings) as connection:
        open_files(connection, sources_of(opened, found, files), "VIEW")
        newest = connection.sql("SELECT epoch_us(max(server_ts)) FROM segments WHERE rows > 0").fetchall()[0][0]
    return int(newest or 0)


def _survey(verifier: Verifier) -> tuple[list[VerifiedSegment], list[CorruptError], set[tuple[int, int]]]:
    """The sound segments of all logs, all faults, and (log, segment) of what may rest on segments that are not here.

    A system that runs writes on meanwhile. Partitions' logs are read after their home shard's, so what that says of
    theirs is here; but what they wrote since it was read may rest on what it says later. Where one of the logs is not
    whole, the others may rest on what is missing."""
    before = {log: verifier.last(log) for log in verifier.partition_logs()}
    found: list[VerifiedSegment] = []
    faults: list[CorruptError] = []
    several: set[int] = set()
    torn: set[int] = set()
    for log in verifier.logs():
        home, slot = home_of(log)
        sound, more = verifier.survey(log)
        found += sound
        faults += more
        if slot:
            several.add(home)
        if any(fault.file.startswith(segment_prefix(log)) for fault in more):
            torn.add(home)
    unsure = set()
    for s in found:
        home, slot = home_of(s.meta.shard)
        late = slot and s.meta.segment > before.get(s.meta.shard, 0)
        if late or home in torn & several:
            unsure.add((s.meta.shard, s.meta.segment))
    return found, faults, unsure
