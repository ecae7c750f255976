"""Questions, what they found, and the report: values and their text. Owns no asking (`analytics.audit`)."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, field

from imray.core.errors import InvalidError

ROWS_SHOWN_MAX = 20
_KINDS = ("violation", "report")
_HEAD = ("title", "kind", "row")
_COMBINE = "-- combine: "


@dataclass(frozen=True)
class Question:
    """One SQL file."""

    name: str
    title: str
    kind: str
    row: str
    sql: str
    combine: str = ""
    """SQL over `parts`, the rows that each part of the folder answered with; empty: they stand one after the other, in
    the order of the question."""

    @property
    def order(self) -> str:
        """How its rows are ordered, and how many there are at most: the end of its SQL."""
        return self.sql.rsplit("ORDER BY", 1)[1].strip() if "ORDER BY" in self.sql else ""


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
    """All findings over one snapshot of a data folder."""

    segments: int
    """Merged ones among them."""
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
            found.append(read_question(file.name.removesuffix(".sql"), file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda q: (_KINDS.index(q.kind), q.name))


def read_question(name: str, sql: str) -> Question:
    """A question from its file's text; InvalidError where its head is not complete."""
    lines = sql.splitlines()
    head = dict(line[3:].split(": ", 1) for line in lines[: len(_HEAD)] if line.startswith("-- ") and ": " in line)
    if tuple(head) != _HEAD or head["kind"] not in _KINDS:
        raise InvalidError(f"audit {name}: its first lines must be title, kind (violation or report) and row")
    combine = " ".join(line.removeprefix(_COMBINE) for line in lines if line.startswith(_COMBINE))
    return Question(name, head["title"], head["kind"], head["row"], sql, combine)


def _jsonable(value: object) -> object:
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def _printable(value: object) -> str:
    """Text that cannot steer a terminal: names are users' text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
