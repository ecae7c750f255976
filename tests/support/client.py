"""A client of one shard: remembers what it sent and was told, and has the checker judge it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imray.core.replies import Refused
from tests.checker.invariants import check
from tests.support.process import Driver, until


class Client:
    """Rows are as `driver` has them: [conv, number of the id, body]; answers are [status, seq, stable]."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.acked: dict[tuple[str, int], tuple[str, int]] = {}

    def sent(self, rows: list[list[Any]]) -> None:
        """A send began."""
        self.events.append(("send", [tuple(r) for r in rows]))

    def answered(self, rows: list[list[Any]], answer: dict[str, Any]) -> list[list[Any]] | None:
        """Its answer came; None for a refusal."""
        told: list[list[Any]] | None = answer.get("rows")
        if told is None:
            return None
        assert len(told) == len(rows)
        self.events.append(("ack", [tuple(r) for r in rows], [tuple(t) for t in told]))
        for (conv, n, body), (status, seq, _) in zip(rows, told, strict=True):
            if status != "conflict":
                assert self.acked.setdefault((conv, n), (body, seq)) == (body, seq)
        return told

    def send(self, driver: Driver, rows: list[list[Any]]) -> list[list[Any]] | None:
        """Send and wait: the answer; None where it was refused; Died where no answer came.

        As any client's, a send that is told "busy" comes again."""

        def answer() -> dict[str, Any] | None:
            self.sent(rows)
            told = driver.ask("send", messages=rows)
            return None if told.get("refused") == Refused.BUSY else told

        return self.answered(rows, until(answer, "an answer that is not busy"))

    def retry_all(self, driver: Driver) -> None:
        """Send every acked message again: all are duplicates with the first number."""
        rows = [[conv, n, body] for (conv, n), (body, _) in self.acked.items()]
        for i in range(0, len(rows), 1000):
            told = self.send(driver, rows[i : i + 1000])
            assert told is not None
            assert {t[0] for t in told} <= {"duplicate"}

    def read(self, driver: Driver) -> None:
        """Read the whole history."""
        self.has_read(driver.ask("read")["messages"])

    def has_read(self, messages: list[list[Any]]) -> None:
        """[conv, id, seq, body] of every message, as a reader saw them."""
        self.events.append(("read", [tuple(m) for m in messages]))

    def check(self) -> None:
        """Have the checker judge all that was seen; the last reading is the final one."""
        readings = [i for i, e in enumerate(self.events) if e[0] == "read"]
        lines = [line for i, e in enumerate(self.events) for line in _lines(i, e, final=i == readings[-1])]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "events.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            report = check([path])
        assert report.ok, report.to_text()


def _lines(t: int, event: tuple[Any, ...], final: bool) -> Iterator[dict[str, Any]]:
    """The checker's events for one of ours; our events' order is their time."""
    common = {"t": 2 * t, "client": "c"}
    if event[0] == "send":
        for conv, n, body in event[1]:
            yield {**common, "ev": "send", "conv": conv, "id": str(n), "payload": body}
    elif event[0] == "ack":
        for (conv, n, _), (status, seq, stable) in zip(*event[1:], strict=True):
            known = {"conv": conv, "id": str(n), "seq": seq}
            if status == "conflict":
                yield {**common, "ev": "conflict", **known}
            else:
                yield {**common, "ev": "ack", **known, "duplicate": status != "new", "stable": stable}
    else:
        rows: dict[str, list[Any]] = {}
        for conv, n, seq, body in event[1]:
            rows.setdefault(conv, []).append([seq, str(n), body])
        for conv, found in rows.items():
            head = max(seq for seq, _, _ in found)
            known = {"after": 0, "upto": head, "rows": found, "holes": [], "stable": head}
            yield {**common, "ev": "read", "conv": conv, **known, "t0": 2 * t - 1, "final": final}
