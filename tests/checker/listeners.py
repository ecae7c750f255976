"""I7 over the listeners of one conversation: what each was shown, beside what can be read in the end.

Owns the walk through what one listener heard. Does not own the events (`events`) or the report (`invariants`). Every
listener is compared with the final reading, number for number, so those that pass were shown the same as one another.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable

from tests.checker.events import Conversation, Heard, Read

AddRow = Callable[[str, int], None]
"""Takes a violation's text, and how many numbers it is about."""


class Readable:
    """What can be read of a conversation in the end."""

    def __init__(self, reads: Iterable[Read]) -> None:
        final = [r for r in reads if r.final]
        self.known = bool(final)
        self.stable = max((r.stable for r in final), default=0)
        self.messages = {seq: (seq, m, payload) for r in final for seq, m, payload in r.rows}
        self._holes: list[list[int]] = []
        for low, high, _ in sorted(hole for r in final for hole in r.holes):
            if self._holes and low <= self._holes[-1][1] + 1:
                self._holes[-1][1] = max(self._holes[-1][1], high)
            else:
                self._holes.append([low, high])

    def void(self, low: int, high: int) -> bool:
        """All of low..high are void."""
        at = bisect_right(self._holes, low, key=lambda hole: hole[0]) - 1
        return at >= 0 and high <= self._holes[at][1]


class _Listener:
    """One client: `_at` is the number up to which it was told everything; None while it does not listen."""

    def __init__(self, client: str, readable: Readable, add: AddRow) -> None:
        self._client = client
        self._readable = readable
        self._add_row = add
        self._at: int | None = None
        self._was_at = 0
        self._seen: set[int] = set()
        self.told = 0

    def _add(self, text: str, count: int = 1) -> None:
        self._add_row(f"{self._client}: {text}", count)

    def take(self, e: Heard) -> None:
        """The next thing that it heard."""
        if e.kind == "listen":
            self._at = e.low
            self._seen.clear()
        elif e.kind == "unlisten":
            self._was_at = self._at or 0
            self._at = None
        elif self._at is None:
            what = f"shown {[seq for seq, _, _ in e.rows][:3]}" if e.kind == "shown" else e.kind
            self._add(f"{what} while it did not listen, after {self._was_at}")
        elif e.kind == "relisten":
            if e.low != self._at:
                self._add(f"listens again from {e.low}, but had been told everything up to {self._at}")
        elif e.kind == "told_hole":
            self._hole(e, self._at)
        else:
            for row in e.rows:
                self._message(row)

    def _message(self, row: tuple[int, str, str]) -> None:
        seq = row[0]
        at = self._at or 0
        self.told += 1
        if seq <= at:
            how = "twice" if seq in self._seen else f"out of order, after {at}"
            self._add(f"{seq}: shown {how}")
        elif seq > at + 1:
            self._add(f"{at + 1} to {seq - 1}: left out before {seq} was shown", seq - at - 1)
        if self._readable.messages.get(seq) != row:
            self._add(f"{seq}: shown as {row[1]} {row[2]}, in the final reading {self._final(seq)}")
        self._seen.add(seq)
        self._at = max(at, seq)

    def _final(self, seq: int) -> str:
        found = self._readable.messages.get(seq)
        return "it is not there" if found is None else f"it is {found[1]} {found[2]}"

    def _hole(self, e: Heard, at: int) -> None:
        self.told += 1
        if not e.reason.strip():
            self._add(f"{e.low} to {e.high}: told as void without a reason")
        if e.low > at + 1:
            self._add(f"{at + 1} to {e.low - 1}: left out before the void {e.low} to {e.high}", e.low - at - 1)
        if not self._readable.void(e.low, e.high):
            self._add(f"{e.low} to {e.high}: told as void, which it is not in the final reading")
        self._at = max(at, e.high)

    def end(self) -> None:
        """Nothing more comes: who still listens must have been told everything."""
        stable = self._readable.stable
        if self._at is not None and self._at < stable:
            self._add(f"{self._at + 1} to {stable}: never shown", stable - self._at)


def judge_listeners(c: Conversation, add: AddRow) -> int:
    """Add what is wrong; how many messages and voids the listeners were told."""
    if not c.heard:
        return 0
    readable = Readable(c.reads)
    if not readable.known:
        add("somebody listened, and there is no final reading to judge it by", 1)
        return 0
    by_client: dict[str, list[Heard]] = defaultdict(list)
    for e in c.heard:
        by_client[e.client].append(e)
    told = 0
    for client in sorted(by_client):
        listener = _Listener(client, readable, add)
        for e in sorted(by_client[client], key=lambda e: e.t):
            listener.take(e)
        listener.end()
        told += listener.told
    return told
