"""I1 to I7 over the events of all clients together, one conversation at a time, in O(n log n).

Owns the judgement and its report; `events` owns the format, `listeners` what is judged of one listener alone. Where
two events could have happened in either order they are taken to be in the harmless one: "before" always means that an
answer had arrived before a question was asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.checker.events import Answer, Conversation, MalformedError, Read, Window, read_events, tries
from tests.checker.listeners import judge_listeners

INVARIANTS = {
    "I1": "every acked id can be read, with the number it was acked with",
    "I2": "one number per (conversation, client message id)",
    "I3": "one message per number",
    "I4": "stable_seq never goes back, and nothing appears at or below a published one",
    "I5": "every number up to stable_seq is a message or a void with its reason; lost data is never called a void",
    "I6": "ack(A) before send(B) implies seq(A) < seq(B)",
    "I7": "a listener from n is shown what can be read above n, in order, each once, voids told, to the end",
}
_WHAT = ("acks", "ids", "numbers", "stable_seqs", "numbers read", "ids", "told")
_JUDGED = dict(zip(INVARIANTS, _WHAT, strict=True))
_SHOWN_MAX = 10


@dataclass
class Report:
    """What was checked, and what is wrong: at most 10 rows an invariant, and how many there are."""

    checked: dict[str, int] = field(default_factory=dict)
    judged: Counter[str] = field(default_factory=Counter)
    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Nothing is violated."""
        return not self.counts

    def add(self, invariant: str, row: str, count: int = 1) -> None:
        """A violation, or `count` of them that one row tells."""
        self.counts[invariant] += count
        if len(self.violations[invariant]) < _SHOWN_MAX:
            self.violations[invariant].append(row)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        judged = {name: self.judged[name] for name in INVARIANTS}
        known = {"ok": self.ok, "checked": self.checked, "judged": judged}
        return {**known, "counts": dict(self.counts), "rows": dict(self.violations)}

    def to_text(self) -> str:
        """For people."""
        lines = ["checked " + ", ".join(f"{n} {name}" for name, n in self.checked.items())]
        for name, meaning in INVARIANTS.items():
            verdict = "FAIL" if self.counts[name] else "ok  "
            lines.append(f"{verdict} {name} {self.judged[name]:>10} {_JUDGED[name]:<13} {meaning}")
            lines += [f"       {row}" for row in self.violations.get(name, [])]
            if self.counts[name] > len(self.violations.get(name, [])):
                lines.append(f"       ... {self.counts[name]} in all")
        return "\n".join(lines)


def check(paths: Iterable[Path]) -> Report:
    """Check the record of all clients. MalformedError where a file is none, or where there is nothing to check."""
    seen: dict[str, Conversation] = {}
    for path in paths:
        read_events(path, seen)
    return judge(seen)


def judge(seen: dict[str, Conversation]) -> Report:
    """The same for what is in memory, by conversation."""
    kinds = Counter(a.kind for c in seen.values() for a in c.answers)
    if not kinds["ack"]:
        raise MalformedError("nothing to check: no ack in these files")
    report = Report({"conversations": len(seen), "sends": sum(len(c.sends) for c in seen.values())})
    report.checked |= {f"{kind}s": kinds[kind] for kind in ("ack", "conflict")}
    report.checked["reads"] = sum(len(c.reads) for c in seen.values())
    report.checked["listeners"] = sum(len({e.client for e in c.heard}) for c in seen.values())
    for conv in sorted(seen):
        _Judge(conv, seen[conv], report).judge()
    return report


class _Highest:
    """The highest value that had arrived before a time."""

    def __init__(self, arrivals: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(arrivals)
        self._times = [t for t, _ in ordered]
        self._values = list(accumulate((value for _, value in ordered), max))

    def before(self, t: int) -> int:
        """Strictly before: what arrived in the same instant may have come later."""
        at = bisect_left(self._times, t)
        return self._values[at - 1] if at else 0


class _Ranges:
    """Claims about ranges of numbers, and when the first arrived; a range may be huge, so none is ever unrolled."""

    def __init__(self, claims: Iterable[tuple[int, int, int]]) -> None:
        self._merged: list[list[int]] = []
        for low, high, t in sorted(claims):
            if self._merged and low <= self._merged[-1][1]:
                last = self._merged[-1]
                last[1], last[2] = max(last[1], high), min(last[2], t)
            else:
                self._merged.append([low, high, t])
        self._lows = [low for low, _, _ in self._merged]

    def at(self, number: int) -> int | None:
        """When a claim about this number first arrived."""
        at = bisect_right(self._lows, number) - 1
        return self._merged[at][2] if at >= 0 and number <= self._merged[at][1] else None


def _gaps(after: int, upto: int, known: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges in after < n <= upto that no known range holds."""
    at = after + 1
    for low, high in sorted(known):
        if at > upto:
            return
        if low > at:
            yield at, min(low - 1, upto)
        at = max(at, high + 1)
    if at <= upto:
        yield at, upto


class _Judge:
    """One conversation."""

    def __init__(self, conv: str, c: Conversation, report: Report) -> None:
        self._conv, self._c, self._report = conv, c, report
        self._sent: dict[str, dict[str, int]] = defaultdict(dict)
        for s in sorted(c.sends):
            self._sent[s.id].setdefault(s.payload, s.t)
        self._first_sent = {message_id: min(times.values()) for message_id, times in self._sent.items()}
        self._acks = [a for a in c.answers if a.kind == "ack"]
        stables = [(a.t, a.stable) for a in self._acks if a.stable is not None]
        # nothing is shown above stable_seq: a message that was shown publishes its own number
        shown = ((t, seq) for (seq, _, _), t in c.shown.items())
        self._published = _Highest([*stables, *((r.t, r.stable) for r in c.reads), *c.stables, *shown])

    def judge(self) -> None:
        """All seven."""
        # the window is judged at once: it goes on changing while the answers are gone through
        final = {(m, seq): payload for r in self._c.reads if r.final for seq, m, payload in r.rows}
        for answer, window in tries(self._c):
            self._answer(answer, window, final)
        self._final_reading()
        self._payloads_read()
        numbers = self._one_to_one()
        self._stable_reads()
        self._explained({seq for seqs in numbers.values() for seq in seqs})
        self._real_time(numbers)
        self._report.judged["I7"] += judge_listeners(self._c, lambda row, count: self._add("I7", row, count))

    def _add(self, invariant: str, row: str, count: int = 1) -> None:
        self._report.add(invariant, f"{self._conv} {row}", count)

    def _answer(self, a: Answer, window: Window | None, final: dict[tuple[str, int], str]) -> None:
        """I1, I4 and the conflicts, as far as they are about one answer and its tries."""
        tried = window.payloads if window else set(self._sent.get(a.id, ()))
        if a.kind == "conflict":
            others = {p for p, t in self._sent.get(a.id, {}).items() if t < a.t}
            if not (others - tried or len(tried) > 1) or {final.get((a.id, a.seq))} == tried:
                self._add("I2", f"{a.id}: called a conflict with {a.seq}, but that has no other payload")
        if a.kind != "ack":
            return
        self._report.judged["I1"] += 1
        payload = final.get((a.id, a.seq))
        if payload is None:
            self._add("I1", f"{a.id}: acked with {a.seq}, not in the final reading with that number")
        elif payload not in tried:
            self._add("I1", f"{a.id}: acked for payload {sorted(tried)}, read back with {payload}")
        if a.id not in self._first_sent or self._first_sent[a.id] > a.t:
            self._add("I1", f"{a.id}: acked with {a.seq} before anybody had sent it")
            return
        self._goes_back(f"ack of {a.id}", window.asked if window else self._first_sent[a.id], a.stable)
        before = self._published.before(self._first_sent[a.id])
        if not a.duplicate and a.seq <= before:
            self._add("I4", f"{a.id}: new with {a.seq}, first sent after stable_seq {before} was published")

    def _goes_back(self, what: str, asked: int, stable: int | None) -> None:
        if stable is not None:
            self._report.judged["I4"] += 1
            if stable < (before := self._published.before(asked)):
                self._add("I4", f"{what}: stable_seq {stable}, asked after {before} was published")

    def _stable_reads(self) -> None:
        for r in self._c.reads:
            self._goes_back(f"read after {r.after}", r.t0, r.stable)

    def _final_reading(self) -> None:
        """I1 can be judged only where the final reading is whole."""
        final = [r for r in self._c.reads if r.final]
        if not self._acks:
            return
        stable = max((r.stable for r in final), default=0)
        for low, high in _gaps(0, stable, ((r.after + 1, min(r.upto, r.stable)) for r in final)):
            self._add("I1", f"{low} to {high}: not covered by the final reading, stable_seq {stable}")

    def _payloads_read(self) -> None:
        """I1: what is read or shown is what was sent. Ids that nobody sent are left alone: another's, not recorded."""
        found = {(m, payload) for r in self._c.reads for _, m, payload in r.rows}
        for m, payload in sorted(found | {(m, payload) for _, m, payload in self._c.shown}):
            if m in self._sent and payload not in self._sent[m]:
                self._add("I1", f"{m}: read with payload {payload}, which nobody sent")
        for (seq, m, _), t in sorted(self._c.shown.items()):
            if self._first_sent.get(m, 0) > t:
                self._add("I7", f"{m}: shown with {seq} before anybody had sent it")

    def _one_to_one(self) -> dict[str, set[int]]:
        """I2 and I3, over everything that anybody saw; the numbers of each id."""
        numbers: dict[str, set[int]] = defaultdict(set)
        owners: dict[int, set[str]] = defaultdict(set)
        payloads: dict[tuple[int, str], str] = {}
        seen = [(a.seq, a.id) for a in self._c.answers if a.kind in ("ack", "conflict")]
        seen += [(seq, m) for seq, m, _ in self._c.shown]
        for r in self._c.reads:
            seen += [(seq, m) for seq, m, _ in r.rows]
            for seq, times in Counter(seq for seq, _, _ in r.rows).items():
                if times > 1:
                    self._add("I3", f"{seq}: {times} times in one read")
            for seq, m, payload in r.rows:
                if payloads.setdefault((seq, m), payload) != payload:
                    self._add("I3", f"{seq} ({m}): read with payload {payloads[seq, m]} and with {payload}")
        for seq, m in seen:
            numbers[m].add(seq)
            owners[seq].add(m)
        for m, seqs in numbers.items():
            if len(seqs) > 1:
                self._add("I2", f"{m}: numbers {sorted(seqs)}")
        for seq, ids in owners.items():
            if len(ids) > 1:
                self._add("I3", f"{seq}: ids {sorted(ids)}")
        self._report.judged.update(I2=len(numbers), I3=len(owners))
        return numbers

    def _explained(self, numbers: set[int]) -> None:
        """I5: no number unexplained, none both; and I4: no message where a read had found none."""
        holes: list[tuple[int, int, int]] = []
        empty: list[tuple[int, int, int]] = []
        asked_last: dict[int, int] = {}
        for r in self._c.reads:
            holes += [(low, high, r.t) for low, high, _ in r.holes]
            empty += [(low, min(high, r.stable), r.t) for low, high, _ in r.holes if low <= r.stable]
            empty += [(low, high, r.t) for low, high in self._unexplained(r)]
            for seq, _, _ in r.rows:
                asked_last[seq] = max(asked_last.get(seq, 0), r.t0)
        void, without = _Ranges(holes), _Ranges(empty)
        holes += {(e.low, e.high, e.t) for e in self._c.heard if e.kind == "told_hole"}
        for seq in sorted(numbers):
            if void.at(seq) is not None:
                self._add("I5", f"{seq}: a message that was acked or read is called void")
            found_empty = without.at(seq)
            if found_empty is not None and found_empty < asked_last.get(seq, 0):
                self._add("I4", f"{seq}: a message, where an earlier read up to stable_seq had none")

    def _unexplained(self, r: Read) -> Iterator[tuple[int, int]]:
        upto = min(r.upto, r.stable)
        self._report.judged["I5"] += max(0, upto - r.after)
        for low, high, reason in r.holes:
            if not reason.strip():
                self._add("I5", f"{low} to {high}: void without a reason")
        known = [(seq, seq) for seq, _, _ in r.rows] + [(low, high) for low, high, _ in r.holes]
        for low, high in _gaps(r.after, upto, known):
            row = f"{low} to {high}: neither message nor void, stable_seq {r.stable}"
            self._add("I5", row, high - low + 1)
            yield low, high

    def _real_time(self, numbers: dict[str, set[int]]) -> None:
        """I6. The number of B may come from a read: it counts also where its ack was lost."""
        acked = _Highest((a.t, a.seq) for a in self._acks)
        for m, sent in self._first_sent.items():
            if m in numbers:
                self._report.judged["I6"] += 1
                before = acked.before(sent)
                if min(numbers[m]) <= before:
                    self._add("I6", f"{m}: {min(numbers[m])}, first sent after {before} was acked")
