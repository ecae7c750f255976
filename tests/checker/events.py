"""What a client saw, as JSON lines: written by test clients, read by the checker.

Every event has `t` (time.monotonic_ns, comparable between the processes of one machine), `client` and `ev`:

- send: conv, id, payload (a hash) - before each try; a retry is another send of the same id
- ack: conv, id, seq, duplicate, stable - an answer with a number
- conflict: conv, id, seq; unknown: conv, id; refused: conv, id (not written)
- read: conv, after, upto, rows [[seq, id, payload]], holes [[from, to, reason]], stable, t0 (when it was asked),
  final (it belongs to the last complete reading) - one page that answers for after < n <= upto
- stable: conv, stable - a published stable_seq seen elsewhere
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FIELDS = {
    "send": {"conv", "id", "payload"},
    "ack": {"conv", "id", "seq", "duplicate", "stable"},
    "conflict": {"conv", "id", "seq"},
    "unknown": {"conv", "id"},
    "refused": {"conv", "id"},
    "read": {"conv", "after", "upto", "rows", "holes", "stable", "t0", "final"},
    "stable": {"conv", "stable"},
}


class MalformedError(Exception):
    """A file is not a record of events; says file and line."""


class EventLog:
    """Appends events to a file, each line flushed: what a killed client saw until then stays readable."""

    def __init__(self, path: Path, client: str) -> None:
        self._file = path.open("a", buffering=1)
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def send(self, conv: str, message_id: str, payload: str) -> None:
        """About to try (again)."""
        self._write("send", conv=conv, id=message_id, payload=payload)

    def ack(self, conv: str, message_id: str, seq: int | None, duplicate: bool, stable: int | None) -> None:
        """An answer with a number."""
        self._write("ack", conv=conv, id=message_id, seq=seq, duplicate=duplicate, stable=stable)

    def conflict(self, conv: str, message_id: str, seq: int) -> None:
        """The id has another payload; `seq` is the first's."""
        self._write("conflict", conv=conv, id=message_id, seq=seq)

    def unknown(self, conv: str, message_id: str) -> None:
        """No answer, or one that says nobody knows."""
        self._write("unknown", conv=conv, id=message_id)

    def refused(self, conv: str, message_id: str) -> None:
        """An answer that says it was not written."""
        self._write("refused", conv=conv, id=message_id)

    def stable(self, conv: str, stable: int) -> None:
        """A published stable_seq."""
        self._write("stable", conv=conv, stable=stable)

    def read(
        self,
        conv: str,
        after: int,
        upto: int,
        rows: Iterable[Sequence[Any]],
        holes: Iterable[Sequence[Any]],
        stable: int,
        t0: int,
        final: bool = False,
    ) -> None:
        """One page of history, asked at `t0`."""
        known = {"rows": [list(r) for r in rows], "holes": [list(h) for h in holes]}
        self._write("read", conv=conv, after=after, upto=upto, **known, stable=stable, t0=t0, final=final)

    def _write(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"t": time.monotonic_ns(), "client": self._client, "ev": event, **fields}) + "\n")


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file in their order; a torn last line (its client was killed) is left out."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            event = json.loads(line)
            missing = {"t", "client"} | FIELDS[event["ev"]]
            missing -= set(event)
        except (ValueError, KeyError, TypeError) as e:
            if number == len(lines):
                return
            raise MalformedError(f"{path}, line {number}: no event ({e})") from e
        if missing:
            raise MalformedError(f"{path}, line {number}: {event['ev']} without {sorted(missing)}")
        yield event
