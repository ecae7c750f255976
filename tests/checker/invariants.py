"""I1 to I6 over the events of all clients together, in O(n log n)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.checker.events import MalformedError, read_events

INVARIANTS = {
    "I1": "every acked id can be read, with the number it was acked with",
    "I2": "one number per (conversation, client message id)",
    "I3": "one message per number",
    "I4": "stable_seq never goes back, and nothing appears at or below a published one",
    "I5": "every number up to stable_seq is a message or a void with its reason; lost data is never called a void",
    "I6": "ack(A) before send(B) implies seq(A) < seq(B)",
}
_SHOWN_MAX = 10

Key = tuple[str, str]


@dataclass
class Report:
    """What was checked, and what is wrong: at most 10 rows an invariant, and how many there are."""

    checked: dict[str, int]
    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def ok(self) -> bool:
        """Nothing is violated."""
        return not self.counts

    def add(self, invariant: str, row: str) -> None:
        """One violation."""
        self.counts[invariant] += 1
        if len(self.violations[invariant]) < _SHOWN_MAX:
            self.violations[invariant].append(row)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, "checked": self.checked, "counts": dict(self.counts), "rows": dict(self.violations)}

    def to_text(self) -> str:
        """For people."""
        lines = ["checked " + ", ".join(f"{n} {name}" for name, n in self.checked.items())]
        for name, meaning in INVARIANTS.items():
            lines.append(f"{'FAIL' if self.counts.get(name) else 'ok  '} {name}: {meaning}")
            lines += [f"       {row}" for row in self.violations.get(name, [])]
            if self.counts.get(name, 0) > _SHOWN_MAX:
                lines.append(f"       ... {self.counts[name]} in all")
        return "\n".join(lines)


def check(paths: Iterable[Path]) -> Report:
    """Check the record of all clients. MalformedError where a file is none, or where there is nothing to check."""
    events = sorted((e for path in paths for e in read_events(path)), key=lambda e: e["t"])
    kinds = ("send", "ack", "conflict", "read")
    report = Report({f"{kind}s": sum(e["ev"] == kind for e in events) for kind in kinds})
    if not report.checked["acks"]:
        raise MalformedError("nothing to check: no ack in these files")
    _numbers(events, report)
    _acked_is_read(events, report)
    _stable(events, report)
    _explained(events, report)
    _real_time(events, report)
    return report


def _numbered(events: list[dict[str, Any]]) -> Iterable[tuple[str, str, int]]:
    for e in events:
        if e["ev"] in ("ack", "conflict"):
            yield e["conv"], e["id"], e["seq"]
        elif e["ev"] == "read":
            for seq, message_id, _ in e["rows"]:
                yield e["conv"], message_id, seq


def _numbers(events: list[dict[str, Any]], report: Report) -> None:
    """I2 and I3, over everything that anybody saw."""
    number: dict[Key, int] = {}
    owner: dict[tuple[str, int], str] = {}
    for conv, message_id, seq in _numbered(events):
        if number.setdefault((conv, message_id), seq) != seq:
            report.add("I2", f"{conv} {message_id}: {number[conv, message_id]} and {seq}")
        if owner.setdefault((conv, seq), message_id) != message_id:
            report.add("I3", f"{conv} {seq}: {owner[conv, seq]} and {message_id}")


def _acked_is_read(events: list[dict[str, Any]], report: Report) -> None:
    """I1, against the final reading; also that what is read is what was sent."""
    payloads: dict[Key, set[str]] = defaultdict(set)
    for e in events:
        if e["ev"] == "send":
            payloads[e["conv"], e["id"]].add(e["payload"])
    final: dict[Key, tuple[int, str]] = {}
    for e in events:
        if e["ev"] == "read" and e["final"]:
            final |= {(e["conv"], message_id): (seq, payload) for seq, message_id, payload in e["rows"]}
    for e in events:
        if e["ev"] != "ack":
            continue
        seq, payload = final.get((e["conv"], e["id"]), (None, ""))
        if seq != e["seq"]:
            report.add("I1", f"{e['conv']} {e['id']}: acked with {e['seq']}, read back with {seq}")
        elif payload not in payloads[e["conv"], e["id"]]:
            report.add("I1", f"{e['conv']} {e['id']}: read back with a payload that nobody sent")


def _stable(events: list[dict[str, Any]], report: Report) -> None:
    """I4: against the highest stable_seq whose answer had arrived before the question was asked."""
    questions: list[tuple[int, int, dict[str, Any]]] = []
    first_send: dict[Key, int] = {}
    for e in events:
        if e["ev"] == "send":
            first_send.setdefault((e["conv"], e["id"]), e["t"])
        elif e["ev"] == "read":
            questions.append((e["t0"], 1, e))
        elif e["ev"] == "ack":
            questions.append((first_send.get((e["conv"], e["id"]), e["t"]), 1, e))
    answers = [(e["t"], 0, e) for e in events if e["ev"] in ("ack", "read", "stable")]
    published: dict[str, int] = {}
    for _, is_question, e in sorted(answers + questions, key=lambda a: a[:2]):
        conv = e["conv"]
        if not is_question:
            published[conv] = max(published.get(conv, 0), e["stable"])
            continue
        before = published.get(conv, 0)
        if e["stable"] < before and (e["ev"] == "read" or not e["duplicate"]):
            report.add("I4", f"{conv}: stable_seq {e['stable']} after {before} was published")
        if e["ev"] == "ack" and not e["duplicate"] and e["seq"] <= before:
            report.add("I4", f"{conv}: {e['seq']} ({e['id']}) was first sent after {before} was stable")


def _explained(events: list[dict[str, Any]], report: Report) -> None:
    """I5: pages without unexplained numbers; voids that never were, and never become, messages."""
    acked = {(e["conv"], e["seq"]) for e in events if e["ev"] == "ack"}
    messages: dict[tuple[str, int], str] = {}
    voids: set[tuple[str, int]] = set()
    for e in (e for e in events if e["ev"] == "read"):
        conv = e["conv"]
        there = {seq for seq, _, _ in e["rows"]}
        upto = min(e["upto"], e["stable"])
        void: set[int] = set()
        for low, high, reason in e["holes"]:
            void.update(range(low, high + 1))
            if not reason:
                report.add("I5", f"{conv}: {low} to {high} is void without a reason")
        for seq in sorted(there & void):
            report.add("I5", f"{conv} {seq}: a message and void at once")
        for seq in sorted(void):
            if (conv, seq) in acked or (conv, seq) in messages:
                report.add("I5", f"{conv} {seq}: a message that was acked or read is called void")
        for seq in range(e["after"] + 1, upto + 1):
            if seq not in there and seq not in void:
                report.add("I5", f"{conv} {seq}: neither a message nor void, below stable_seq {e['stable']}")
        for seq in there:
            if (conv, seq) in voids:
                report.add("I4", f"{conv} {seq}: a message appeared where a void was read before")
        voids |= {(conv, seq) for seq in void}
        messages |= {(conv, seq): message_id for seq, message_id, _ in e["rows"]}


def _real_time(events: list[dict[str, Any]], report: Report) -> None:
    """I6: the highest number acked before an id was first sent is below its own."""
    acked_before: dict[Key, int] = {}
    highest: dict[str, int] = defaultdict(int)
    for e in events:  # in the order of time
        if e["ev"] == "send":
            acked_before.setdefault((e["conv"], e["id"]), highest[e["conv"]])
        elif e["ev"] == "ack":
            floor = acked_before.get((e["conv"], e["id"]), 0)
            if e["seq"] <= floor:
                report.add("I6", f"{e['conv']} {e['id']}: {e['seq']}, sent after {floor} was acked")
            highest[e["conv"]] = max(highest[e["conv"]], e["seq"])
