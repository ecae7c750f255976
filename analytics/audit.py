"""The audits: every question of `analytics.queries`, asked of a data folder, whether the system runs or is down.

Owns the asking and the report. Does not own what is asked: one SQL file a question.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from analytics.verified import VerifiedSegment, Verifier
from analytics.views import audit_views
from imray.core.errors import CorruptError, InvalidError
from imray.core.routing import home_of
from imray.log.segment import segment_prefix
from imray.settings import Settings

_ROWS_SHOWN_MAX = 20
_KINDS = ("violation", "report")
_HEAD = ("title", "kind", "row")
_CORRUPT_TITLE = "files that are missing, changed, or not in their place"


@dataclass(frozen=True)
class Question:
    """One SQL file."""

    name: str
    title: str
    kind: str
    row: str
    sql: str


@dataclass(frozen=True)
class Finding:
    """What one audit found. A violation's rows show it; a report's rows are its answer. `total` counts all rows,
    at most 20 are kept."""

    name: str
    title: str
    kind: str
    total: int
    columns: list[str] = field(default_factory=list)
    rows: list[list[object]] = field(default_factory=list)

    @property
    def violated(self) -> bool:
        """Whether a promise is broken."""
        return self.kind == "violation" and self.total > 0

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "violated": self.violated,
            "total": self.total,
            "rows": [dict(zip(self.columns, map(_jsonable, row), strict=True)) for row in self.rows],
        }

    def to_table(self) -> str:
        """Its rows as aligned text."""
        lines = [self.columns, *([_printable(_jsonable(v)) for v in row] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        if self.total > len(self.rows):
            text.append(f"... {self.total} in all")
        return "\n".join(text)


@dataclass(frozen=True)
class AuditReport:
    """All findings over one snapshot of a log."""

    segments: int
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """No violation."""
        return not any(f.violated for f in self.findings)

    def __getitem__(self, name: str) -> Finding:
        return next(f for f in self.findings if f.name == name)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"ok": self.ok, "segments": self.segments, "findings": [f.to_dict() for f in self.findings]}

    def to_text(self, reports: bool = False) -> str:
        """The violations looked for, with the rows that show one; `reports` adds the figures."""
        lines = [f"audit of {self.segments} segments: {'clean' if self.ok else 'VIOLATIONS FOUND'}"]
        for f in self.findings:
            if f.kind == "violation":
                lines.append(f"  {'FAIL' if f.violated else 'ok  '}  {f.name:<22} {f.title}")
            elif reports:
                lines.append(f"  {f.name}: {f.title}")
            if f.violated or (reports and f.kind == "report"):
                lines += [f"        {line}" for line in f.to_table().split("\n")]
        return "\n".join(lines)


def questions() -> list[Question]:
    """Every audit, violations first."""
    found = []
    for file in importlib.resources.files("analytics.queries").iterdir():
        if file.name.endswith(".sql"):
            found.append(_read_question(file.name.removesuffix(".sql"), file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda q: (_KINDS.index(q.kind), q.name))


def _read_question(name: str, sql: str) -> Question:
    lines = sql.splitlines()[: len(_HEAD)]
    head = dict(line[3:].split(": ", 1) for line in lines if line.startswith("-- ") and ": " in line)
    if tuple(head) != _HEAD or head["kind"] not in _KINDS:
        raise InvalidError(f"audit {name}: its first lines must be title, kind (violation or report) and row")
    return Question(name, head["title"], head["kind"], head["row"], sql)


def run(data: Path | str, settings: Settings | None = None) -> AuditReport:
    """Ask every question of a data folder. InvalidError where it is none.

    A log that does not verify is itself a violation, `corrupt`; the other audits then cover each log up to its first
    fault."""
    verifier = Verifier(data)
    shards = verifier.manifest().shards
    found, faults, unsure = _survey(verifier)
    with audit_views(found, shards, settings or Settings.from_env(), unsure) as connection:
        findings = [_ask(connection, q) for q in questions()]
    try:
        verifier.unchanged(found)
    except CorruptError as e:
        faults.append(e)
    rows: list[list[object]] = [[e.file, e.where, e.check] for e in faults[:_ROWS_SHOWN_MAX]]
    corrupt = Finding(
        name="corrupt",
        title=_CORRUPT_TITLE,
        kind="violation",
        total=len(faults),
        columns=["file", "place", "check"],
        rows=rows,
    )
    return AuditReport(len(found), [corrupt, *findings])


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


def _ask(connection: duckdb.DuckDBPyConnection, question: Question) -> Finding:
    found = connection.sql(f"FROM ({question.sql}) LIMIT {_ROWS_SHOWN_MAX}").to_arrow_table()
    total = found.num_rows
    if total == _ROWS_SHOWN_MAX:
        total = connection.sql(f"SELECT count(*) AS n FROM ({question.sql})").to_arrow_table()["n"][0].as_py()
    rows = [list(row.values()) for row in found.to_pylist()]
    return Finding(
        name=question.name, title=question.title, kind=question.kind, total=total, columns=found.column_names, rows=rows
    )


def _jsonable(value: object) -> object:
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def _printable(value: object) -> str:
    """Text that cannot steer a terminal: names are users' text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
