"""The audits: every question of `analytics.queries`, asked of a data folder."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from analytics.verified import VerifiedSegment, Verifier
from analytics.views import views_over
from imray.core.errors import CorruptError
from imray.settings import Settings

_ROWS_SHOWN_MAX = 20


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
    """What one audit found. A violation's rows show it; a report's rows are its answer. At most 20 are kept."""

    name: str
    title: str
    kind: str
    total: int
    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)

    @property
    def violated(self) -> bool:
        """Whether a promise is broken."""
        return self.kind == "violation" and self.total > 0


@dataclass(frozen=True)
class AuditReport:
    """All findings over one snapshot of a log."""

    segments: int
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """No violation."""
        return not any(f.violated for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "segments": self.segments,
            "findings": [
                {
                    "name": f.name,
                    "title": f.title,
                    "kind": f.kind,
                    "violated": f.violated,
                    "total": f.total,
                    "rows": [dict(zip(f.columns, map(_jsonable, row), strict=True)) for row in f.rows],
                }
                for f in self.findings
            ],
        }

    def to_text(self, reports: bool = False) -> str:
        """A table of the violations looked for, with the rows that show one; `reports` adds the figures."""
        lines = [f"audit of {self.segments} segments: {'clean' if self.ok else 'VIOLATIONS FOUND'}"]
        for f in self.findings:
            if f.kind == "violation":
                lines.append(f"  {'FAIL' if f.violated else 'ok  '}  {f.name:<22} {f.title}")
            elif reports:
                lines.append(f"  {f.name}: {f.title}")
            if f.violated or (reports and f.kind == "report"):
                lines.append("        " + " | ".join(f.columns))
                lines += ["        " + " | ".join(map(str, row)) for row in f.rows]
                if f.total > len(f.rows):
                    lines.append(f"        ... {f.total} in all")
        return "\n".join(lines)


def questions() -> list[Question]:
    """Every audit, violations first."""
    found = []
    for file in importlib.resources.files("analytics.queries").iterdir():
        if not file.name.endswith(".sql"):
            continue
        sql = file.read_text()
        head = dict(line[3:].split(": ", 1) for line in sql.splitlines() if line.startswith("-- "))
        found.append(Question(file.name.removesuffix(".sql"), head["title"], head["kind"], head["row"], sql))
    return sorted(found, key=lambda q: (q.kind != "violation", q.name))


def run(data: Path | str, settings: Settings | None = None) -> AuditReport:
    """Ask every question of a data folder, whether the system runs or is down.

    A log that does not verify is itself a violation, `corrupt`; the other audits then cover the shards that do."""
    verifier = Verifier(data)
    shards = verifier.manifest().shards
    found: list[VerifiedSegment] = []
    corrupt = []
    for shard in range(shards):
        try:
            found += verifier.shard_log(shard)
        except CorruptError as e:
            corrupt.append([e.file, e.place, e.check])
    title = "files that are missing, changed, or not in their place"
    findings = [Finding("corrupt", title, "violation", len(corrupt), ["file", "place", "check"], corrupt)]
    with views_over(found, shards, settings or Settings.from_env(), bodies=False) as connection:
        findings += [_ask(connection, q) for q in questions()]
    return AuditReport(len(found), findings)


def _ask(connection: duckdb.DuckDBPyConnection, question: Question) -> Finding:
    found = connection.sql(question.sql).to_arrow_table()
    rows = [list(row.values()) for row in found.slice(0, _ROWS_SHOWN_MAX).to_pylist()]
    return Finding(question.name, question.title, question.kind, found.num_rows, found.column_names, rows)


def _jsonable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
