"""A client of one shard: remembers what it sent and was told, and has the checker judge it."""

from __future__ import annotations

from typing import Any

from tests.faults.process import Driver


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
        """Send and wait: the answer; None where it was refused; Died where no answer came."""
        self.sent(rows)
        return self.answered(rows, driver.ask("send", messages=rows))

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
        """Judge all that was seen: I1 to I6 of a single client that waits for its answers or not."""
        sent: dict[tuple[str, int, str], int] = {}
        acks: dict[tuple[str, int], int] = {}
        best: dict[str, int] = {}
        stable: dict[str, int] = {}
        floor: dict[tuple[str, int], int] = {}
        for event in self.events:
            if event[0] == "send":
                for conv, n, body in event[1]:
                    sent.setdefault((conv, n, body), len(sent))
                    floor.setdefault((conv, n), best.get(conv, 0))
            elif event[0] == "ack":
                for (conv, n, _), (status, seq, steady) in zip(*event[1:], strict=True):
                    assert acks.setdefault((conv, n), seq) == seq, f"I2: {conv} {n} has two numbers"
                    assert status != "new" or seq > floor[conv, n], f"I6: {conv} {n} is below what was acked before"
                    assert steady >= seq, f"an acked number of {conv} is stable"
                    best[conv] = max(best.get(conv, 0), seq)
                    stable[conv] = max(stable.get(conv, 0), steady)
            else:
                self._check_reading(event[1], sent, acks, stable)

    @staticmethod
    def _check_reading(
        messages: list[tuple[str, int, int, str]],
        sent: dict[tuple[str, int, str], int],
        acks: dict[tuple[str, int], int],
        stable: dict[str, int],
    ) -> None:
        numbers = {(conv, n): seq for conv, n, seq, _ in messages}
        assert len(numbers) == len(messages), "I2: an id stands once"
        assert len({(conv, seq) for conv, _, seq, _ in messages}) == len(messages), "I3: a number stands once"
        for key, seq in acks.items():
            assert numbers.get(key) == seq, f"I1: {key} was acked with {seq}"
        for conv, n, _, body in messages:
            assert (conv, n, body) in sent, f"nobody sent {conv} {n} {body!r}"
        for conv, head in stable.items():
            there = {seq for c, _, seq, _ in messages if c == conv}
            assert there >= set(range(1, head + 1)), f"I5: holes in {conv}"
